"""Snapshots of the live cache, made by a forked child process.

fork(2) gives the child a consistent copy of the rows, the descriptors and the connections that are
being delivered. The daemon pays for the copy of the page table, and for a copy of each page that
it changes while the child runs.

The alternatives were tested and rejected. sqlite3_serialize() reads pages without the lock of the
connection, so calling it on another thread corrupts the database ("database disk image is
malformed", within a second). Calling it on the event loop's thread delays clients by many
milliseconds. Querying the kernel about thousands of descriptors on any thread delays them as much,
because that thread holds the interpreter lock.

The child only reads, and ends with _exit(2). SQLite forbids to close or write a connection after a
fork ("How To Corrupt An SQLite Database File"). Before the fork, `Database.held_still` waits until
no other thread is inside SQLite. The daemon neither commits nor checkpoints while the child reads
the database, so the pages of a database file do not change either.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol

import anyio

from scache.cache import Cache
from scache.daemon.auto_reset_event import AutoResetEvent
from scache.daemon.maintenance import clear_expired
from scache.daemon.poller import Poller
from scache.model import Connection, SocketInfo
from scache.store import FAULT, Database, complete, load
from scache.unix import fdpass
from scache.unix.closing import is_file
from scache.unix.socket_info import facts_of

TIMEOUT = 10.0
"""Seconds that one snapshot may take in all."""

COPY_TIMEOUT = 3.0
"""Longest time in seconds for which commits wait for a snapshot; part of TIMEOUT."""

MAX_LEAVING = 64
"""Limit on children that were killed and have not ended yet; at this limit no snapshot is taken. A
child cannot end while it holds a file on a file server that does not answer."""

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

_NAP = 0.0002
"""Seconds of each sleep of the child between two slices of work. The sleep makes its processor
idle, and Linux then moves a process to it that waits for another processor. Without the sleep, a
request may wait although only the child uses the other processor."""

_STINT = 64
"""Descriptors that the child examines between two sleeps."""

_WRITE_SIZE = 65536
"""Bytes that the child writes between two sleeps."""

_COPY_PATIENCE = 0.2
"""Seconds after which the child leaves SCHED_IDLE while commits wait for it."""

_PATIENCE = 2.0
"""Seconds after which the child leaves SCHED_IDLE when commits do not wait for it."""

_COPY_NICENESS = 5
"""Niceness added while commits wait, if the daemon may not raise priorities (sched(7))."""

_NICENESS = 10
"""Niceness added after that, if the daemon may not raise priorities."""

logger = logging.getLogger(__name__)


class Asker(Protocol):
    """A session that waits for a snapshot."""

    def snapshot_taken(self, descriptor: int | None) -> None:
        """Take over the descriptor of a sealed image; None if the snapshot failed."""

    def abort(self) -> None:
        """Disconnect, because `snapshot_taken` raised an exception."""


class SnapshotError(Exception):
    """The child failed, or no child may be started."""


class _Child(NamedTuple):
    pid: int
    pidfd: int
    told: int
    """A pipe: one byte after the child has read the database, another after the image is done."""


class Snapshots:
    """The queue of snapshot requests.

    Snapshots are taken one at a time. All requests that arrive meanwhile share the next one.
    """

    def __init__(
        self,
        database: Database,
        cache: Cache,
        poller: Poller,
        on_their_way: Callable[[], Iterable[Connection]],
        clients: Callable[[], Iterable[int]],
        figures: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """Prepare to take snapshots of this cache.

        ``on_their_way`` returns the connections that were found but not sent; they are included.
        ``clients`` returns the descriptors of all client sockets, polled or not. ``figures``
        returns rows of ``setting`` that are not in the database.
        """
        self._database = database
        self._cache = cache
        self._poller = poller
        self._on_their_way = on_their_way
        self._clients = clients
        self._figures = figures
        self._askers: list[Asker] = []
        self._leaving: set[int] = set()
        """Pidfds of the children that were killed and have not ended yet."""
        self._wanted = AutoResetEvent()

    def ask(self, asker: Asker) -> None:
        """Request a snapshot that is taken after this call."""
        self._askers.append(asker)
        self._wanted.set()

    async def run(self) -> None:
        """Take the requested snapshots; never return."""
        while True:
            await self._wanted.wait()
            askers, self._askers = self._askers, []
            if askers:
                await self._serve(askers)

    async def _serve(self, askers: list[Asker]) -> None:
        image = None
        try:
            with anyio.fail_after(TIMEOUT):
                image = await self._take()
        except (OSError, TimeoutError, SnapshotError) as error:
            logger.warning("cannot take a snapshot now: %s", error or type(error).__name__)
        except Exception:
            # A bug here must not end the daemon, because requests do not need snapshots.
            logger.exception("cannot take a snapshot now, please report it")
        try:
            for asker in askers:
                _hand_out(image, asker)
        finally:
            if image is not None:
                self._cache.closer.close((image,))

    async def _take(self) -> int:
        """Take a snapshot; return the descriptor of a sealed image, owned by the caller."""
        if len(self._leaving) >= MAX_LEAVING:
            raise SnapshotError(
                f"{len(self._leaving)} processes of earlier snapshots cannot end, because a cached "
                "descriptor is a file whose server does not answer: end that server"
            )
        image = os.memfd_create("scache-snapshot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            # The machine may have slept, or its clock may have been set, without a timer firing.
            await clear_expired(self._cache, self._database.batch.clock)
            async with self._database.held_still():
                child = self._fork(image)
                try:
                    with anyio.fail_after(COPY_TIMEOUT):
                        await _expect_byte(child, _COPY_PATIENCE)
                except BaseException:
                    self._end(child)
                    raise
            try:
                await _expect_byte(child, _PATIENCE)
            finally:
                self._end(child)
            fcntl.fcntl(image, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            self._cache.closer.close((image,))
            raise
        return image

    def _fork(self, image: int) -> _Child:
        self._database.batch.gather()
        on_their_way = list(self._on_their_way())
        with ExitStack() as stack, warnings.catch_warnings():
            told, tell = os.pipe()
            stack.callback(os.close, told)
            try:
                # Python warns that another thread may hold a lock; `held_still` excludes that.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
                if pid == 0:
                    self._work(image, tell, on_their_way)
            finally:
                os.close(tell)
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                os.kill(pid, signal.SIGKILL)
                with suppress(ChildProcessError):  # the kernel reaps it (see `reap_children`)
                    os.waitpid(pid, 0)
                raise
            stack.pop_all()
        return _Child(pid, pidfd, told)

    def _end(self, child: _Child) -> None:
        """Kill a child and track its end; the kernel reaps it (see `reap_children`)."""
        _urge(child)  # in SCHED_IDLE it would keep its descriptors while the machine is busy
        with suppress(OSError):
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        os.close(child.told)
        self._leaving.add(child.pidfd)
        self._poller.add(child.pidfd, partial(self._gone, child.pidfd))

    def _gone(self, pidfd: int) -> None:
        """Stop tracking a child that has ended."""
        self._leaving.remove(pidfd)
        self._poller.remove(pidfd)
        os.close(pidfd)

    def _work(self, image: int, tell: int, on_their_way: list[Connection]) -> NoReturn:
        """In the child: write the image, report progress through ``tell`` and exit."""
        try:
            own = os.getpriority(os.PRIO_PROCESS, 0)
            _stand_back(own, _COPY_NICENESS)
            signal.set_wakeup_fd(-1)  # a signal to the child would wake the daemon
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            # Clients and other daemons wait for these to be closed: the child must not hold them.
            watched = {*self._poller.descriptors(), self._cache.hang_ups()}
            fdpass.close({*watched, *self._clients()})
            self._database.let_go()
            copy = load(self._database.batch.serialize())
            os.write(tell, b".")
            _stand_back(own, _NICENESS)  # lower the priority further: commits wait no longer
            settings = dict(self._figures())
            if (fault := self._database.fault) is not None:
                settings[FAULT] = fault
            data = complete(copy, on_their_way, self._facts(), settings)
            copy.close()
            _write(image, data)
            del data
            _close_all_but_files(tell)
            os.write(tell, b".")
            os._exit(0)
        except BaseException:
            logger.exception("cannot take a snapshot")
        finally:
            os._exit(1)

    def _facts(self) -> Iterator[tuple[int, SocketInfo]]:
        """In the child: yield the socket information of each cached connection, and close it.

        The child closes its copy early, so that the peer sees end of file when the daemon closes
        the connection, and not when the child ends.
        """
        for number, (row_id, descriptor) in enumerate(self._cache.descriptors()):
            if not number % _STINT:
                time.sleep(_NAP)
            facts = facts_of(descriptor)
            if not is_file(descriptor):
                fdpass.close((descriptor,))
            yield row_id, facts


def _close_all_but_files(kept: int) -> None:
    """In the child: close all descriptors except files and ``kept``.

    The end of the process may wait for the close of a file. Other descriptors must not stay open
    until then.
    """
    for entry in list(Path("/proc/self/fd").iterdir()):
        descriptor = int(entry.name)
        if descriptor != kept and not is_file(descriptor):
            fdpass.close((descriptor,))


def _write(descriptor: int, data: bytes) -> None:
    """In the child: write data in small pieces, with a sleep before each.

    Kernels built for servers (without preemption) let a process keep its processor during a system
    call, or until the next timer tick.
    """
    rest = memoryview(data)
    while rest:
        time.sleep(_NAP)
        rest = rest[os.write(descriptor, rest[:_WRITE_SIZE]) :]


def _hand_out(image: int | None, asker: Asker) -> None:
    """Give a descriptor of the image to one asker; errors are logged and affect only this one."""
    descriptor = None
    if image is not None:
        try:
            descriptor = _reopened(image)
        except OSError as error:
            logger.warning("cannot hand a snapshot out now: %s", error)
    try:
        asker.snapshot_taken(descriptor)
    except Exception:
        logger.exception("cannot hand a snapshot out to a client, please report it")
        try:
            asker.abort()
        except Exception:
            logger.exception("cannot disconnect a client, please report it")


def _stand_back(own: int, more: int) -> None:
    """In the child: run at a low priority, so that the daemon and its clients run first.

    ``own`` is the daemon's niceness. A child that may raise its priority again runs in SCHED_IDLE
    until `_urge` takes it out. Otherwise ``more`` is added to the niceness.
    """
    may_raise_priority = _may_raise_priority()
    os.setpriority(os.PRIO_PROCESS, 0, max(own, 0) + (0 if may_raise_priority else more))
    if may_raise_priority:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _may_raise_priority() -> bool:
    """Return True if this process may raise its priority: root without CAP_SYS_NICE may not."""
    try:
        os.nice(-1)
    except PermissionError:
        return False
    os.nice(1)
    return True


def _reopened(image: int) -> int:
    """Return a read-only descriptor with an offset of its own."""
    try:
        return os.open(f"/proc/self/fd/{image}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return os.dup(image)


async def _expect_byte(child: _Child, patience: float) -> None:
    with anyio.move_on_after(patience) as waiting:
        await anyio.wait_readable(child.told)
    if waiting.cancelled_caught:
        _urge(child)
        await anyio.wait_readable(child.told)
    if not os.read(child.told, 1):
        raise SnapshotError("the child ended early")


def _urge(child: _Child) -> None:
    """Take a child out of SCHED_IDLE, so that it gets a regular share of the processor."""
    with suppress(OSError):  # the child may have ended
        # Fails if the child has ended: its pid may then belong to another process.
        signal.pidfd_send_signal(child.pidfd, 0)
        os.sched_setscheduler(child.pid, os.SCHED_OTHER, os.sched_param(0))


def reap_children() -> None:
    """Let the kernel reap the children of this process, so that no wait(2) is needed.

    wait(2) for a child with thousands of descriptors takes up to 20 ms, during which no client is
    served. Without it, the child spends this time.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
