"""Snapshots of the live cache, made by a forked child process.

fork(2) gives the child a consistent copy of the rows, the descriptors and the connections that are
being delivered. The daemon pays for the copy of the page table, and for a copy of each page that
it changes while the child runs.

The alternatives were tested and rejected. sqlite3_serialize() reads pages without the lock of the
connection, so calling it on another thread corrupts the database ("database disk image is
malformed", within a second). Calling it on the event loop's thread delays clients by many
milliseconds. Querying the kernel about thousands of descriptors on any thread delays them as much,
because that thread holds the interpreter lock.

Before the fork, `Database.held_still` waits until no other thread is inside SQLite. The daemon
neither commits nor checkpoints while the child reads the database, so the pages of a database file
do not change either.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import anyio

from scache.cache import Cache
from scache.daemon.auto_reset_event import AutoResetEvent
from scache.daemon.maintenance import clear_expired
from scache.daemon.poller import Poller
from scache.daemon.shortages import shortage_of
from scache.daemon.snapshot_child import Child, SnapshotError, Source, start
from scache.errors import reason_of
from scache.model import Connection
from scache.store.database import Database

TIMEOUT = 10.0
"""Seconds that one snapshot may take in all."""

COPY_TIMEOUT = 3.0
"""Longest time in seconds for which commits wait for a snapshot; part of TIMEOUT."""

MAX_LEAVING = 64
"""Limit on children that were killed and have not ended yet; at this limit no snapshot is taken. A
child cannot end while it holds a file on a file server that does not answer."""

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

_COPY_PATIENCE = 0.2
"""Seconds after which the child leaves SCHED_IDLE while commits wait for it."""

_PATIENCE = 2.0
"""Seconds after which the child leaves SCHED_IDLE when commits do not wait for it."""

logger = logging.getLogger(__name__)


class Asker(Protocol):
    """A session that waits for a snapshot."""

    def snapshot_taken(self, descriptor: int | None, shortage: str | None = None) -> None:
        """Take over the descriptor of a sealed image; None if the snapshot failed.

        ``shortage`` is the word for what was missing then, or None.
        """

    def abort(self) -> None:
        """Disconnect, because `snapshot_taken` raised an exception."""


class Snapshots:
    """The queue of snapshot requests.

    Snapshots are taken one at a time. All requests that arrive meanwhile share the next one.
    """

    def __init__(
        self,
        database: Database,
        cache: Cache,
        poller: Poller,
        being_delivered: Callable[[], Iterable[Connection]],
        clients: Callable[[], Iterable[int]],
        figures: Callable[[], Mapping[str, str]] = dict,
        record_clients: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare to take snapshots of this cache.

        ``being_delivered`` returns the connections that were found but not sent; they are included.
        ``clients`` returns the descriptors of all client sockets, polled or not. ``figures``
        returns rows of ``setting`` that are not in the database. ``record_clients`` is called at
        each request, before the snapshot is taken.
        """
        self._record_clients = record_clients
        self._database = database
        self._cache = cache
        self._poller = poller
        self._being_delivered = being_delivered
        self._source = Source(
            database, cache, lambda: {*poller.descriptors(), cache.hang_ups(), *clients()}, figures
        )
        self._askers: list[Asker] = []
        self._leaving: set[int] = set()
        """Pidfds of the children that were killed and have not ended yet."""
        self._wanted = AutoResetEvent()

    def ask(self, asker: Asker) -> None:
        """Request a snapshot that is taken after this call."""
        self._record_clients()
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
        image = shortage = None
        try:
            with _within(TIMEOUT, f"it took longer than {TIMEOUT:g} s"):
                image = await self._take()
        except SnapshotError as error:
            logger.warning("cannot take a snapshot now: %s", error)
            shortage = error.shortage
        except (OSError, MemoryError) as error:
            logger.warning("cannot take a snapshot now: %s", reason_of(error))
            shortage = shortage_of(error)
        except Exception:
            # A bug here must not end the daemon, because requests do not need snapshots.
            logger.exception("cannot take a snapshot now, please report it")
        try:
            for asker in askers:
                _hand_out(image, shortage, asker)
        finally:
            if image is not None:
                self._cache.closer.close((image,))

    async def _take(self) -> int:
        """Take a snapshot; return the descriptor of a sealed image, owned by the caller."""
        if len(self._leaving) >= MAX_LEAVING:
            raise SnapshotError(
                f"{len(self._leaving)} processes of earlier snapshots cannot end, because a cached "
                "descriptor is a file whose server does not answer: end that server",
                "processes",
            )
        image = _new_image()
        try:
            # The machine may have slept, or its clock may have been set, without a timer firing.
            await clear_expired(self._cache, self._database.batch.clock)
            async with self._database.held_still():
                self._database.batch.gather()
                child = start(image, self._source, list(self._being_delivered()))
                try:
                    waited = f"commits waited for it longer than {COPY_TIMEOUT:g} s"
                    with _within(COPY_TIMEOUT, waited):
                        await child.wait_for_byte(_COPY_PATIENCE)
                except BaseException:
                    self._end(child)
                    raise
            try:
                await child.wait_for_byte(_PATIENCE)
            finally:
                self._end(child)
            fcntl.fcntl(image, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            self._cache.closer.close((image,))
            raise
        return image

    def _end(self, child: Child) -> None:
        """Kill a child, and track it until it has ended."""
        child.kill()
        self._leaving.add(child.pidfd)
        self._poller.add(child.pidfd, partial(self._gone, child.pidfd))

    def _gone(self, pidfd: int) -> None:
        """Stop tracking a child that has ended."""
        self._leaving.remove(pidfd)
        self._poller.remove(pidfd)
        os.close(pidfd)


@contextmanager
def _within(seconds: float, reason: str) -> Iterator[None]:
    """Cancel the block and raise SnapshotError with this reason if it takes longer."""
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise SnapshotError(reason, "time")


def _new_image() -> int:
    """Return the descriptor of an empty memfd."""
    try:
        return os.memfd_create("scache-snapshot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        # A sandbox may refuse the system call with any error.
        shortage = shortage_of(error) or "memfd"
        raise SnapshotError(f"memfd_create(2): {reason_of(error)}", shortage) from error


def _hand_out(image: int | None, shortage: str | None, asker: Asker) -> None:
    """Give a descriptor of the image to one asker; errors are logged and affect only this one."""
    descriptor = None
    if image is not None:
        try:
            descriptor = _reopened(image)
        except OSError as error:
            logger.warning("cannot hand a snapshot out now: %s", reason_of(error))
            shortage = shortage_of(error)
    try:
        asker.snapshot_taken(descriptor, shortage)
    except Exception:
        logger.exception("cannot hand a snapshot out to a client, please report it")
        try:
            asker.abort()
        except Exception:
            logger.exception("cannot disconnect a client, please report it")


def _reopened(image: int) -> int:
    """Return a read-only descriptor with an offset of its own."""
    try:
        return os.open(f"/proc/self/fd/{image}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return os.dup(image)
