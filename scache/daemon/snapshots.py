"""Snapshots of the live cache: a forked child has all of it, and all the time that it needs.

fork(2) gives the child the rows, the descriptors and the connections under way
as they were in one moment, for the price of a page table. Whatever it does
then costs the daemon nothing but a copy of each page that it changes meanwhile.
The alternatives were tried: SQLite reads the pages of a connection that it
serializes without its lock, so doing that on another thread ruins the database
("database disk image is malformed", within a second), and doing it on the
loop's thread, or asking the kernel about thousands of descriptors with the
interpreter's lock in hand, keeps clients waiting for many milliseconds.

The child only reads, and leaves by _exit(2). SQLite forbids more: a connection
must not be closed or written through after a fork ("How To Corrupt An SQLite
Database File"). No other thread is inside SQLite at the moment of the fork, for which
`Database.held_still` waits, and as long as the child reads the daemon commits
and checkpoints nothing, so the pages stay what they were in a file too.
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
from scache.daemon.maintenance import Signal, clear_expired
from scache.daemon.poller import Poller
from scache.model import Connection, SocketInfo
from scache.store import FAULT, Database, complete, load
from scache.unix import fdpass
from scache.unix.closing import is_file
from scache.unix.socket_info import facts_of

TIMEOUT = 10.0
"""Seconds that a snapshot may take."""

COPY_TIMEOUT = 3.0
"""Seconds of them for which commits wait at the most."""

MAX_LEAVING = 64
"""Children that may be on their way to their end: while a file is cached whose server does not
answer, each child stays there, and when there are this many no further snapshot is taken."""

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

_NAP = 0.0002
"""Seconds for which the child sleeps again and again. A request may have to wait for a processor
though there is another one on which only the child runs: when that one falls idle, Linux looks for
who waits elsewhere."""

_STINT = 64
_WRITE_SIZE = 65536
"""Descriptors and bytes that it deals with in between."""

_COPY_PATIENCE = 0.2
_PATIENCE = 2.0
"""Seconds for which a child in SCHED_IDLE is left in it, while commits wait for it and
after that: then it gets its share."""

_COPY_NICENESS = 5
_NICENESS = 10
"""Of the child of a daemon that may not take it out of SCHED_IDLE again (sched(7)): what is added
to the daemon's own while commits wait for it, and after that."""

logger = logging.getLogger(__name__)


class Asker(Protocol):
    """Who waits for a snapshot."""

    def snapshot_taken(self, descriptor: int | None) -> None:
        """Take the descriptor of a sealed image, now yours to close; None if there is none."""

    def abort(self) -> None:
        """End, because that could not be done."""


class SnapshotError(Exception):
    """The child did not do its work."""


class _Child(NamedTuple):
    pid: int
    pidfd: int
    told: int
    """A pipe that has a byte when it has read the database, and another when all is done."""


class Snapshots:
    """Takes snapshots one at a time; whoever asks meanwhile gets, with the others, the next."""

    def __init__(
        self,
        database: Database,
        cache: Cache,
        poller: Poller,
        on_their_way: Callable[[], Iterable[Connection]],
        clients: Callable[[], Iterable[int]],
        figures: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """Include, besides what is in the cache, what is on its way to those who found it.

        ``clients`` returns the descriptors of all clients' sockets, watched or not; ``figures``
        returns rows of ``setting`` that only the process knows.
        """
        self._database = database
        self._cache = cache
        self._poller = poller
        self._on_their_way = on_their_way
        self._clients = clients
        self._figures = figures
        self._askers: list[Asker] = []
        self._leaving: set[int] = set()
        """Children that were ended and are not gone, by their pidfds."""
        self._wanted = Signal()

    def ask(self, asker: Asker) -> None:
        """Take a snapshot of this moment or later."""
        self._askers.append(asker)
        self._wanted.set()

    async def run(self) -> None:
        """Do what is asked, for ever."""
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
            # A bug here must not end the daemon: what it serves needs no snapshots.
            logger.exception("cannot take a snapshot now, please report it")
        try:
            for asker in askers:
                _hand_out(image, asker)
        finally:
            if image is not None:
                self._cache.closer.close((image,))

    async def _take(self) -> int:
        """Return a descriptor of a sealed image."""
        if len(self._leaving) >= MAX_LEAVING:
            raise SnapshotError(
                f"{len(self._leaving)} processes of earlier snapshots cannot end, because a cached "
                "descriptor is a file whose server does not answer: end that server"
            )
        image = os.memfd_create("scache-snapshot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            # The machine may just have slept, or its clock been set, and no timer has told yet.
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
                # Python warns that another thread may hold a lock: ours does nothing just now.
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
                with suppress(ChildProcessError):  # it is buried already
                    os.waitpid(pid, 0)
                raise
            stack.pop_all()
        return _Child(pid, pidfd, told)

    def _end(self, child: _Child) -> None:
        """Make sure that a child is gone, or soon will be; `reap_children` does the rest."""
        _urge(child)  # or it would keep its descriptors as long as the machine is busy
        with suppress(OSError):
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        os.close(child.told)
        self._leaving.add(child.pidfd)
        self._poller.add(child.pidfd, partial(self._gone, child.pidfd))

    def _gone(self, pidfd: int) -> None:
        """Forget a child that has gone."""
        self._leaving.remove(pidfd)
        self._poller.remove(pidfd)
        os.close(pidfd)

    def _work(self, image: int, tell: int, on_their_way: list[Connection]) -> NoReturn:
        """Be the child."""
        try:
            own = os.getpriority(os.PRIO_PROCESS, 0)
            _stand_back(own, _COPY_NICENESS)
            signal.set_wakeup_fd(-1)  # it is the daemon's, who would think that it was meant
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            # What a client or another daemon waits for must not stay open with us.
            fdpass.close({*self._poller.descriptors(), *self._clients()})
            self._database.let_go()
            copy = load(self._database.batch.serialize())
            os.write(tell, b".")
            _stand_back(own, _NICENESS)  # the more so: commits wait no longer
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
        """In the child: yield what is known of each cached connection, and part with it.

        Its peer is to see the end of it when the daemon closes it, and not when the child ends.
        """
        for number, (row_id, descriptor) in enumerate(self._cache.descriptors()):
            if not number % _STINT:
                time.sleep(_NAP)
            facts = facts_of(descriptor)
            if not is_file(descriptor):
                fdpass.close((descriptor,))
            yield row_id, facts


def _close_all_but_files(kept: int) -> None:
    """In the child: close what must not stay open if the end of the process waits for a file."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        descriptor = int(entry.name)
        if descriptor != kept and not is_file(descriptor):
            fdpass.close((descriptor,))


def _write(descriptor: int, data: bytes) -> None:
    """In the child: write little at a time.

    Kernels that are built for servers let whoever has a processor keep it through a system call,
    or until the next tick of the clock.
    """
    rest = memoryview(data)
    while rest:
        time.sleep(_NAP)
        rest = rest[os.write(descriptor, rest[:_WRITE_SIZE]) :]


def _hand_out(image: int | None, asker: Asker) -> None:
    """Give one of them its own descriptor; whatever goes wrong is no concern of the others."""
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

    ``own`` is the daemon's niceness. A child that may raise its priority again runs as SCHED_IDLE,
    until `_urge` changes that; any other adds ``more`` to the niceness.
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
    """Let a child have its share of the processor from now on."""
    with suppress(OSError):  # it may have ended
        signal.pidfd_send_signal(child.pidfd, 0)  # then its number may be another process's
        os.sched_setscheduler(child.pid, os.SCHED_OTHER, os.sched_param(0))


def reap_children() -> None:
    """Let children of this process be gone when they end, without a wait(2).

    To wait for one that had thousands of descriptors takes up to 20 ms, in which nobody is
    served; this way it takes them from the child.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
