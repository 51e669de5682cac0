"""Periodic background tasks: expiry, commits, checkpoints, closing, time-outs and statistics."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Collection, Hashable
from typing import Any, Protocol

import anyio
import anyio.lowlevel

from scache.cache import Cache
from scache.clock import Clock
from scache.daemon.auto_reset_event import AutoResetEvent
from scache.daemon.client_log import client_logger, out_of_memory
from scache.daemon.poller import Poller
from scache.daemon.watchdog import W, Watchdog
from scache.store.audit import AuditLog
from scache.store.batch import COMMIT_INTERVAL, FAULT_RETRY_INTERVAL
from scache.store.database import Database
from scache.unix.closing import Closer, Look

EXPIRY_PAUSE = 0.01
"""Seconds between two rounds of expiry; limits the rounds while rows expire continuously."""

TICK = 0.5
"""Longest sleep of the expiry task, in seconds. The event loop's timers stop while the machine
sleeps, and a change of the wall clock is not reported, so the clocks are read regularly."""

WATCH_INTERVAL = 0.05
"""Seconds until a saved connection is watched for hang-ups; most are found before that."""

CLOSE_INTERVAL = 0.1
"""Seconds between two checks of the descriptors that wait to be closed."""

CHECKPOINT_INTERVAL = 1.0
"""Seconds from a commit to the checkpoint that follows."""

_CATCH_UP_ROUNDS = 3
"""Checkpoints made while clients are served, before serving pauses for the last one."""

CATCH_UP_TIMEOUT = 0.008
"""Longest pause of serving, in seconds, for the checkpoint that lets the log start over."""

LONG_CATCH_UP_TIMEOUT = 0.05
"""Longest pause, in seconds, when the log is several times its intended size."""

LOOK_INTERVAL = 1.0
"""Seconds between two checks of the database files."""

RENEW_INTERVAL = 10.0
"""Seconds between two attempts to create a lost file again."""

RECORD_INTERVAL = 0.25
"""Seconds between two looks for clients that have connected and made no request."""

logger = logging.getLogger(__name__)


class Recordable(Hashable, Protocol):
    """A session that may be recorded as a client."""

    def record(self) -> None:
        """Record the session as a client, unless it is one already."""


async def endure(task: Callable[..., Awaitable[None]], *arguments: Any) -> None:  # noqa: ANN401
    """Run a task of this module; begin it anew after a pause when it runs out of memory."""
    while True:
        try:
            await task(*arguments)
        except MemoryError:
            out_of_memory()
            await anyio.sleep(FAULT_RETRY_INTERVAL)
        else:
            return


async def expire(cache: Cache, clock: Clock) -> None:
    """Remove rows when they expire, in slices, so that clients are served in between."""
    earlier = AutoResetEvent()
    cache.deadline.on_earlier = earlier.set
    while True:
        due_in = cache.expire() - clock.now()
        if due_in <= 0:
            await anyio.lowlevel.checkpoint()
        else:
            await anyio.sleep(min(due_in, EXPIRY_PAUSE))
            await earlier.wait(min(max(0, due_in - EXPIRY_PAUSE), TICK))


async def clear_expired(cache: Cache, clock: Clock) -> None:
    """Remove all rows that have expired by now, in slices; return when none is left."""
    while cache.expire() <= clock.now():
        await anyio.lowlevel.checkpoint()


async def watch(cache: Cache) -> None:
    """Watch connections for hang-ups once they have been cached for about WATCH_INTERVAL."""
    parked = AutoResetEvent()
    cache.connections.on_parked = parked.set
    parked.set()  # for what was parked before this task began
    while True:
        await parked.wait()
        await anyio.sleep(WATCH_INTERVAL)
        while cache.watch():
            await anyio.lowlevel.checkpoint()


async def close(closer: Closer, audit_log: AuditLog) -> None:
    """Monitor the closer; log and count the descriptors that stay stuck in a system call."""
    pending = AutoResetEvent()
    closer.on_pending = pending.set
    pending.set()  # for what waits since before this task began
    while True:
        await pending.wait()
        stuck, logged = 0, False
        while closer.pending:
            await anyio.sleep(CLOSE_INTERVAL)
            look = closer.look()
            audit_log.closes_stuck(max(0, look.stuck - stuck))
            stuck = look.stuck
            if (stuck or look.error) and not logged:
                client_logger.warning("%s", _trouble(look))
                logged = True
        if logged:
            client_logger.warning("every descriptor that waited to be closed is closed")


def _trouble(look: Look) -> str:
    if look.error is not None:
        return (
            f"no thread can be started to close descriptors ({look.error}; waiting: "
            f"{look.pending}): raise the limit on processes (ulimit -u)"
        )
    return (
        f"close(2) of a descriptor does not return (stuck: {look.stuck}, waiting in all: "
        f"{look.pending}): another program, such as a file server, does not answer"
    )


async def commit(database: Database, committed: AutoResetEvent) -> None:
    """Commit each batch COMMIT_INTERVAL seconds after its first write; retry after a fault."""
    pending = AutoResetEvent()
    database.batch.on_pending = pending.set
    pending.set()  # for what was written before this task began
    while True:
        await pending.wait()
        await anyio.sleep(COMMIT_INTERVAL)
        if await database.commit():
            committed.set()
        else:
            await anyio.sleep(FAULT_RETRY_INTERVAL - COMMIT_INTERVAL)
            pending.set()


async def checkpoint(database: Database, poller: Poller, committed: AutoResetEvent) -> None:
    """Keep the write-ahead log short.

    Most of the log is copied while requests are served. Serving then pauses for at most
    CATCH_UP_TIMEOUT seconds, and the pages that these requests have added are copied.
    """
    while True:
        await committed.wait()
        await anyio.sleep(CHECKPOINT_INTERVAL)
        if not database.wal.is_long:
            continue
        async with database.control_lock:
            timeout = LONG_CATCH_UP_TIMEOUT if database.wal.is_very_long else CATCH_UP_TIMEOUT
            for _ in range(_CATCH_UP_ROUNDS):
                await database.checkpoint()  # each round leaves fewer pages for the next one
            with poller.paused():
                database.batch.commit()
                with anyio.move_on_after(timeout):
                    await database.checkpoint()


async def watch_files(database: Database) -> None:
    """Check the database files for changes by other processes; create a lost file again."""
    while database.is_file:
        await anyio.sleep(LOOK_INTERVAL)
        if database.look_at_files() and not await database.renew():
            await anyio.sleep(RENEW_INTERVAL - LOOK_INTERVAL)


async def drop_overdue(
    watchdog: Watchdog[W], clients: Collection[W], connected: AutoResetEvent
) -> None:
    """Disconnect clients that stop in an exchange; wait while no client is connected."""
    while True:
        if not clients:
            await connected.wait()
        await anyio.sleep(watchdog.interval)
        for client in watchdog.look(clients):
            client.overdue()


async def record_clients(new: Collection[Recordable], connected: AutoResetEvent) -> None:
    """Record the clients that make no request for RECORD_INTERVAL seconds, or twice that."""
    before: set[Recordable] = set()
    while True:
        if not new:
            await connected.wait()
        await anyio.sleep(RECORD_INTERVAL)
        for session in before.intersection(new):
            session.record()
        before = set(new)


def log_statistics(cache: Cache) -> None:
    """Log the statistics since the last report, in the format of Postfix's scache(8)."""
    for line in cache.statistics.report():
        logger.info("%s", line)


async def report(cache: Cache, interval: Callable[[], float], changed: AutoResetEvent) -> None:
    """Log the statistics at this interval, in seconds; never while it is 0.

    The interval begins anew when ``changed`` is set.
    """
    while True:
        if not await changed.wait(interval() or math.inf):
            log_statistics(cache)
