"""The daemon from its first step to its last."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, suppress

import anyio
from anyio.abc import TaskGroup

from scache import __version__, fdpass
from scache.cache import Cache
from scache.clock import Clock
from scache.daemon import upkeep
from scache.daemon.administration import Administration
from scache.daemon.channel import Channel
from scache.daemon.idle import IdleTimer
from scache.daemon.listener import Listener, ListeningSocket, make_directory
from scache.daemon.readiness import Readiness
from scache.daemon.session import Session
from scache.daemon.snapshots import Snapshots
from scache.daemon.watchdog import Watchdog
from scache.errors import DatabaseError, DatabaseFault
from scache.model import Connection
from scache.settings import Settings
from scache.store import Database, Start, open_database

STOP_TIMEOUT = 1.0
"""Seconds that exchanges under way have to come to their end once the daemon is asked to stop."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Those that the daemon answers to."""

logger = logging.getLogger(__name__)


class Server:
    """The connected clients, and all that is done for them until the daemon stops."""

    def __init__(self, settings: Settings, clock: Clock, database: Database, cache: Cache) -> None:
        self._settings = settings
        self._clock = clock
        self._database = database
        self._cache = cache
        self._sessions: set[Session] = set()
        self._connected_somebody = upkeep.Signal()
        self._idle = IdleTimer(settings.max_idle)
        self._loop = asyncio.get_running_loop()
        self._readiness = Readiness(self._loop)
        self._snapshots = Snapshots(database, cache, self._readiness, self._on_their_way)
        self._administration = Administration(
            settings.admin_uid_numbers, settings.admin_gid_numbers, self._snapshots
        )
        self._stop = anyio.Event()
        self._all_gone = anyio.Event()

    async def serve(self, sock: ListeningSocket) -> None:
        """Serve clients of this listening socket until a signal or idleness ends it."""
        listener = Listener(sock, self._loop, self._readiness, self._connected)
        # What is there by now stays: the collector need never look at it, which takes it
        # milliseconds for which everybody waits.
        gc.freeze()
        gc.enable()
        try:
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._watch_signals)
                self._start_upkeep(tasks)
                listener.start()
                logger.info(
                    "listening on %s, database %s", self._settings.socket, self._database.path
                )
                await self._stop.wait()
                listener.close()
                await self._finish_sessions()
                tasks.cancel_scope.cancel()
        finally:
            listener.close()
            for session in list(self._sessions):
                session.abort()
            self._readiness.close()
            upkeep.log_statistics(self._cache, self._clock)

    def _start_upkeep(self, tasks: TaskGroup) -> None:
        committed = upkeep.Signal()
        tasks.start_soon(upkeep.expire, self._cache, self._clock)
        tasks.start_soon(upkeep.commit, self._database, committed)
        tasks.start_soon(upkeep.checkpoint, self._database, self._readiness, committed)
        tasks.start_soon(upkeep.watch_files, self._database)
        watchdog: Watchdog[Session] = Watchdog(self._clock, self._settings.exchange_timeout)
        tasks.start_soon(upkeep.drop_overdue, watchdog, self._sessions, self._connected_somebody)
        tasks.start_soon(upkeep.report, self._cache, self._clock, self._settings.status_interval)
        tasks.start_soon(self._snapshots.run)
        tasks.start_soon(self._watch_idleness)

    async def _watch_signals(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """SIGHUP logs the statistics; SIGTERM and SIGINT stop, and a second one stops at once."""
        with anyio.open_signal_receiver(*SIGNALS) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    upkeep.log_statistics(self._cache, self._clock)
                elif self._stop.is_set():
                    signal.signal(number, signal.SIG_DFL)
                    signal.raise_signal(number)
                else:
                    logger.info("stopping: received %s", signal.Signals(number).name)
                    self._stop.set()

    async def _watch_idleness(self) -> None:
        await self._idle.wait()
        logger.info("stopping: no client for %g seconds", self._settings.max_idle)
        self._stop.set()

    def _connected(self, client: socket.socket) -> None:
        session = Session(
            Channel(client, self._readiness),
            fdpass.peer(client),
            self._cache,
            self._administration,
            self._disconnected,
            announce=self._settings.announce,
        )
        self._sessions.add(session)
        self._idle.connected()
        self._connected_somebody.set()
        try:
            session.start()
        except OSError as error:
            logger.warning("cannot serve a client: %s", error)
            session.abort()

    def _on_their_way(self) -> Iterator[Connection]:
        for session in self._sessions:
            for loan in session.loans:
                yield loan.connection

    def _disconnected(self, session: Session) -> None:
        self._sessions.remove(session)
        self._idle.disconnected()
        if not self._sessions:
            self._all_gone.set()

    async def _finish_sessions(self) -> None:
        """Give exchanges under way their time to end."""
        for session in list(self._sessions):
            session.finish()
        self._all_gone = anyio.Event()
        if self._sessions:
            with anyio.move_on_after(STOP_TIMEOUT):
                await self._all_gone.wait()


async def serve(settings: Settings) -> None:
    """Run the daemon until it is asked to stop or has been idle for long enough.

    Raises StartupError when it cannot start.
    """
    open_files = _raise_descriptor_limit()
    if settings.socket_is_default:
        make_directory(settings.socket.parent)
    # First, so that a daemon that is not to be leaves no trace in a database.
    sock = ListeningSocket(settings.socket, settings.socket_mode, settings.owner_ids)
    with closing(sock):
        clock = Clock()
        start = Start(
            clock.now(),
            __version__,
            settings.ttl_limit,
            settings.audit_rows,
            settings.as_text() | {"open_files_limit": str(open_files)},
            set_aside=settings.on_corrupt == "set-aside",
        )
        async with open_database(settings.database, start) as database:
            try:
                cache = Cache(database, clock, settings.ttl_limit)
            except DatabaseFault as error:
                raise DatabaseError(
                    f"the database {settings.database} cannot be read ({error}): try again"
                ) from error
            try:
                await Server(settings, clock, database, cache).serve(sock)
            finally:
                cache.close()
                await database.stop(clock.now())


def _raise_descriptor_limit() -> int:
    """Let this process hold as many descriptors as it may; return how many these are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
