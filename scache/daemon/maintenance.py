"""What has to be done now and then, each a task of its own that sleeps in between."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, MutableMapping

import anyio
import anyio.lowlevel

from scache.cache import Cache
from scache.clock import Clock
from scache.daemon.poller import Poller
from scache.daemon.session import Session
from scache.daemon.transport import client_logger
from scache.daemon.watchdog import Watchdog
from scache.store import COMMIT_INTERVAL, FAULT_RETRY_INTERVAL, Database
from scache.unix.closing import Closer, Look

EXPIRY_PAUSE = 0.01
"""Seconds between two rounds of expiry, so that a steady trickle does not keep us busy."""

TICK = 0.5
"""Seconds until expiry looks at the clocks again, however far away the next one is: the timers
of the loop stand still while the machine sleeps, and nothing tells that the wall clock was set."""

WATCH_INTERVAL = 0.05
"""Seconds for which a connection is not watched: most are found sooner."""

CLOSE_INTERVAL = 0.1
"""Seconds between two looks at what waits to be closed, while anything does."""

CHECKPOINT_INTERVAL = 1.0
"""Seconds from a commit to the checkpoint that follows."""

_CATCH_UP_ROUNDS = 3
"""How often the log is copied before clients wait for the rest."""

CATCH_UP_TIMEOUT = 0.008
"""Seconds for which clients wait, at the most, while the log is made ready to start over."""

LONG_CATCH_UP_TIMEOUT = 0.05
"""The same once the log is several times as long as it should be: it has to end some time."""

LOOK_INTERVAL = 1.0
"""Seconds between two looks at the files of the database."""

RENEW_INTERVAL = 10.0
"""Seconds between two attempts to make a lost file anew."""

logger = logging.getLogger(__name__)


class Signal:
    """An event that can be waited for again and again; setting it twice is setting it once."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Wake whoever waits, or will."""
        self._event.set()

    async def wait(self, at_most: float = math.inf) -> None:
        """Return when it has been set since the last time, or after ``at_most`` seconds."""
        if at_most == math.inf:
            await self._event.wait()
        else:
            with anyio.move_on_after(at_most):
                await self._event.wait()
        if self._event.is_set():
            self._event = anyio.Event()


async def expire(cache: Cache, clock: Clock) -> None:
    """Clear away what expires, when it does, a slice at a time."""
    earlier = Signal()
    cache.on_earlier_expiry = earlier.set
    while True:
        due_in = cache.expire() - clock.now()
        if due_in <= 0:
            await anyio.lowlevel.checkpoint()
        else:
            await anyio.sleep(min(due_in, EXPIRY_PAUSE))
            await earlier.wait(min(max(0, due_in - EXPIRY_PAUSE), TICK))


async def clear_expired(cache: Cache, clock: Clock) -> None:
    """Clear away all that has expired by now, however much that is, a slice at a time."""
    while cache.expire() <= clock.now():
        await anyio.lowlevel.checkpoint()


async def watch(cache: Cache) -> None:
    """Begin to watch for hang-ups of what stays in the cache for longer than WATCH_INTERVAL."""
    parked = Signal()
    cache.on_parked = parked.set
    while True:
        await parked.wait()
        await anyio.sleep(WATCH_INTERVAL)
        while cache.watch():
            await anyio.lowlevel.checkpoint()


async def close(closer: Closer, counts: MutableMapping[str, int]) -> None:
    """See that what waits to be closed is closed, and tell what cannot be."""
    pending = Signal()
    closer.on_pending = pending.set
    while True:
        await pending.wait()
        stuck, logged = 0, False
        while closer.pending:
            await anyio.sleep(CLOSE_INTERVAL)
            look = closer.look()
            counts["closes_stuck"] += max(0, look.stuck - stuck)
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


async def commit(database: Database, committed: Signal) -> None:
    """Commit each batch COMMIT_INTERVAL after it began."""
    pending = Signal()
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


async def checkpoint(database: Database, poller: Poller, committed: Signal) -> None:
    """Keep the write-ahead log short.

    Most of it is copied while requests are served. The rest, which they have
    added meanwhile, is copied while they wait, CATCH_UP_TIMEOUT at the most.
    """
    while True:
        await committed.wait()
        await anyio.sleep(CHECKPOINT_INTERVAL)
        if not database.log_is_long:
            continue
        async with database.control_turn:
            timeout = LONG_CATCH_UP_TIMEOUT if database.log_is_very_long else CATCH_UP_TIMEOUT
            for _ in range(_CATCH_UP_ROUNDS):
                await database.checkpoint()  # each leaves less to the next
            with poller.paused():
                database.batch.commit()
                with anyio.move_on_after(timeout):
                    await database.checkpoint()


async def watch_files(database: Database) -> None:
    """Notice what others do to the files of the database, and mend what can be mended."""
    while database.is_file:
        await anyio.sleep(LOOK_INTERVAL)
        if database.look_at_files() and not await database.renew():
            await anyio.sleep(RENEW_INTERVAL - LOOK_INTERVAL)


async def drop_overdue(
    watchdog: Watchdog[Session], sessions: Collection[Session], connected: Signal
) -> None:
    """Disconnect clients that leave an exchange half done; sleep while there are no clients."""
    while True:
        if not sessions:
            await connected.wait()
        await anyio.sleep(watchdog.interval)
        for session in watchdog.look(sessions):
            session.overdue()


def log_statistics(cache: Cache) -> None:
    """Log what scache(8) logs of the time since the last report."""
    for line in cache.statistics.report():
        logger.info("%s", line)


async def report(cache: Cache, interval: float) -> None:
    """Log the statistics every ``interval`` seconds; 0 is never."""
    while interval:
        await anyio.sleep(interval)
        log_statistics(cache)
