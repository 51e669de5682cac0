"""The server: startup, client admission, background tasks and shutdown of the daemon."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Collection, Iterator
from contextlib import closing
from operator import attrgetter

import anyio
from anyio.abc import TaskGroup

from scache.cache import Cache
from scache.cache.limits import Limits
from scache.clock import Clock
from scache.daemon import maintenance
from scache.daemon.access import AccessControl, Principals
from scache.daemon.auto_reset_event import AutoResetEvent
from scache.daemon.capacity import capacity, client_limit, shortage
from scache.daemon.identity import OwnSockets
from scache.daemon.idle import IdleTimer
from scache.daemon.listener import Listener
from scache.daemon.listening_socket import ListeningSocket, make_directory
from scache.daemon.ownership import left_out
from scache.daemon.poller import Poller
from scache.daemon.privileges import become
from scache.daemon.probe import Probe
from scache.daemon.session import Session
from scache.daemon.snapshots import Snapshots, reap_children
from scache.daemon.transport import Transport, client_logger
from scache.daemon.watchdog import Watchdog
from scache.errors import DatabaseError, DatabaseFault
from scache.model import Connection, Peer
from scache.protocol.server import ServerConversation
from scache.settings.declarations import Settings
from scache.store import CLIENTS_SERVED, Database, Start, open_database
from scache.unix import credentials, sockopt
from scache.unix.namespace import ROOT, described, unmapped
from scache.version import __version__

MAX_REFUSED = 16
"""Refused clients that stay connected; a further one disconnects the oldest. Clients over the
client limit and clients that access control refuses are counted separately, so that one kind does
not disconnect the other."""

STOP_TIMEOUT = 1.0
"""Seconds for exchanges in progress to complete after the daemon was asked to stop."""

CLOSE_TIMEOUT = 1.0
"""Seconds to wait at shutdown until the cached descriptors are closed."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that the daemon handles."""

logger = logging.getLogger(__name__)


class Server:
    """The connected clients, the poller and the background tasks of a running daemon."""

    def __init__(
        self,
        settings: Settings,
        max_clients: int,
        clock: Clock,
        database: Database,
        cache: Cache,
    ) -> None:
        self._settings = settings
        self._max_clients = max_clients
        self._clock = clock
        self._database = database
        self._cache = cache
        self._sessions: set[Session] = set()
        self._connected_somebody = AutoResetEvent()
        self._idle = IdleTimer(settings.max_idle)
        self._loop = asyncio.get_running_loop()
        self._probe = Probe()
        self._poller = Poller(self._loop)
        self._snapshots = Snapshots(
            database,
            cache,
            self._poller,
            self._on_their_way,
            lambda: [session.fileno() for session in self._sessions],
            lambda: {CLIENTS_SERVED: str(len(self._admitted))},
        )
        strangers = unmapped("uid"), unmapped("gid")
        if notice := described(*strangers):
            logger.warning("%s", notice)
        self._access = AccessControl(Principals(*settings.admin_ids, *strangers), self._snapshots)
        self._allowed = Principals(*settings.allowed_ids, *strangers)
        self._admitted: set[Session] = set()
        """Sessions being served."""
        self._crowd: dict[Session, None] = {}
        """Sessions over the client limit, oldest first."""
        self._not_allowed: dict[Session, None] = {}
        """Sessions that access control refuses, oldest first."""
        self._crowded = False
        """True while the client limit is reached; the log has a message about it."""
        self._stop = anyio.Event()
        self._all_gone = anyio.Event()

    async def serve(self, sock: ListeningSocket) -> None:
        """Serve clients of this listening socket until a signal or idle exit stops the daemon."""
        listener = Listener(
            sock,
            self._loop,
            self._poller,
            self._connected,
            self._out_of_descriptors,
            self._cache.closer,
        )
        self._cache.is_own_socket = OwnSockets(sock.socket).include
        # The objects made so far are permanent. Without freeze(), each full collection would scan
        # them, and all clients would wait for milliseconds.
        gc.freeze()
        gc.enable()
        try:
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._watch_signals)
                self._start_upkeep(tasks)
                tasks.start_soon(self._watch_idleness, sock)
                listener.start()
                # Not in the poller: epoll_ctl(2) refuses to add a nested epoll instance to another
                # one if a client has saved the same connection a hundred times, and
                # `Poller.paused` adds the poller to the event loop again.
                self._loop.add_reader(self._cache.hang_ups(), self._cache.close_hung_up)
                logger.info(
                    "listening on %s, database %s", self._settings.socket, self._database.path
                )
                await self._stop.wait()
                listener.close()
                await self._finish_sessions()
                tasks.cancel_scope.cancel()
        finally:
            self._loop.remove_reader(self._cache.hang_ups())
            listener.close()
            for session in list(self._sessions):
                session.abort()
            self._probe.close()
            self._poller.close()
            maintenance.log_statistics(self._cache)

    def _start_upkeep(self, tasks: TaskGroup) -> None:
        committed = AutoResetEvent()
        tasks.start_soon(maintenance.watch, self._cache)
        tasks.start_soon(maintenance.close, self._cache.closer, self._cache.counts)
        tasks.start_soon(maintenance.expire, self._cache, self._clock)
        tasks.start_soon(maintenance.commit, self._database, committed)
        tasks.start_soon(maintenance.checkpoint, self._database, self._poller, committed)
        tasks.start_soon(maintenance.watch_files, self._database)
        watchdog: Watchdog[Session] = Watchdog(self._settings.exchange_timeout)
        tasks.start_soon(
            maintenance.drop_overdue, watchdog, self._sessions, self._connected_somebody
        )
        tasks.start_soon(maintenance.report, self._cache, self._settings.status_interval)
        tasks.start_soon(self._snapshots.run)

    async def _watch_signals(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Handle SIGNALS: SIGHUP logs the statistics, SIGTERM and SIGINT stop the daemon.

        A second SIGTERM or SIGINT ends the process at once.
        """
        try:
            with anyio.open_signal_receiver(*SIGNALS) as signals:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
                task_status.started()
                async for number in signals:
                    if number == signal.SIGHUP:
                        maintenance.log_statistics(self._cache)
                    elif self._stop.is_set():
                        signal.signal(number, signal.SIG_DFL)
                        signal.raise_signal(number)
                    else:
                        logger.info("stopping: received %s", signal.Signals(number).name)
                        self._stop.set()
        finally:
            # asyncio leaves a handler that raises KeyboardInterrupt.
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    async def _watch_idleness(self, sock: ListeningSocket) -> None:
        await self._idle.wait(lambda: sockopt.is_quiet(sock.socket.fileno()))
        logger.info("stopping: no client for %g seconds", self._settings.max_idle)
        self._stop.set()

    def _connected(self, client: socket.socket) -> None:
        settings = self._settings
        transport, peer = (
            Transport(client, self._poller, self._cache.closer),
            credentials.peer(client),
        )
        groups = transport.groups()
        allowed = self._allows(peer, groups)
        session = Session(
            transport,
            peer,
            self._cache,
            self._access,
            ServerConversation(
                announce=settings.announce,
                offer_inline=allowed or self._access.permits(peer, groups),
                max_message_size=settings.max_message_size,
                max_ahead_size=settings.max_ahead_size,
            ),
            self._admit,
            self._disconnected,
            self._out_of_descriptors,
            self._probe,
            allowed=allowed,
        )
        self._sessions.add(session)
        self._idle.connected()
        self._connected_somebody.set()
        try:
            session.start()
        except OSError as error:
            client_logger.warning("cannot serve a client: %s", error)
            session.abort()
        for refused in (self._crowd, self._not_allowed):
            if len(refused) > MAX_REFUSED:
                next(iter(refused)).abort()

    def _out_of_descriptors(self, what: str) -> None:
        """Log and count a shortage; disconnect the client with the most waiting descriptors.

        Waiting descriptors are received descriptors whose requests are not served yet.
        """
        self._cache.counts["limit_open_files"] += 1
        client_logger.warning("out of descriptors: %s", what)
        greediest = max(self._sessions, key=attrgetter("waiting_descriptors"), default=None)
        if greediest is not None and greediest.waiting_descriptors > 1:
            self._poller.call_later(greediest.abort)

    def _allows(self, peer: Peer, groups: Collection[int]) -> bool:
        people = self._allowed
        return not (people.uids or people.gids) or people.include(peer, groups)

    def _admit(self, session: Session) -> str | None:
        """Admit a client, or return why its requests are refused for now."""
        if not session.allowed:
            self._not_allowed.setdefault(session)
            return "not allowed: see allow_uids and allow_gids"
        if len(self._admitted) >= self._max_clients:
            if session not in self._crowd:
                self._crowd[session] = None
                self._cache.counts["limit_clients"] += 1
            self._say_crowded(crowded=True)
            return "limit: clients"
        self._say_crowded(crowded=False)
        self._crowd.pop(session, None)
        self._admitted.add(session)
        return None

    def _say_crowded(self, *, crowded: bool) -> None:
        """Log once when the client limit is reached, and once when a client is admitted again."""
        if crowded and not self._crowded:
            client_logger.warning(
                "%d clients are connected, as many as %s; further ones are told no",
                len(self._admitted),
                client_limit(self._settings, self._max_clients),
            )
        elif self._crowded and not crowded:
            client_logger.warning("there is room for clients again")
        self._crowded = crowded

    def _on_their_way(self) -> Iterator[Connection]:
        """Yield the rows of connections that were found but not sent, with wall-clock times."""
        offset = self._clock.offset
        for session in self._sessions:
            for row in (delivery.connection for delivery in session.deliveries):
                saved_at, expires_at = row.saved_at + offset, row.expires_at + offset
                yield row._replace(saved_at=saved_at, expires_at=expires_at)

    def _disconnected(self, session: Session) -> None:
        self._sessions.remove(session)
        self._admitted.discard(session)
        self._crowd.pop(session, None)
        self._not_allowed.pop(session, None)
        self._idle.disconnected()
        if not self._sessions:
            self._all_gone.set()

    async def _finish_sessions(self) -> None:
        """Wait up to STOP_TIMEOUT seconds for exchanges in progress to complete."""
        for session in list(self._sessions):
            session.finish()
        self._all_gone = anyio.Event()
        if self._sessions:
            with anyio.move_on_after(STOP_TIMEOUT):
                await self._all_gone.wait()


async def serve(settings: Settings, open_files: int) -> None:
    """Run the daemon until it is asked to stop or has been idle for long enough.

    ``open_files`` is the limit on open files in force. Raises StartupError if the daemon cannot
    start.
    """
    reap_children()
    if settings.socket_is_default:
        make_directory(settings.socket.parent)
    # Bind before opening the database: a second daemon must fail without touching it.
    owner = settings.user_ids if settings.socket_owner is None else settings.owner_ids
    sock = ListeningSocket(settings.socket, settings.socket_mode, owner)
    with closing(sock):
        if owner[0] != ROOT and (mistake := left_out(settings.socket)):
            logger.warning("%s", mistake)
        room = capacity(settings, open_files)
        if too_little := shortage(settings, room, open_files):
            logger.warning("%s", too_little)
        become(*settings.user_ids)
        clock = Clock()
        start = Start(
            clock,
            __version__,
            settings.ttl_limit,
            settings.audit_rows,
            settings.as_text()
            | {"max_clients": str(room.clients), "max_connections": str(room.connections)}
            | {"open_files_limit": str(open_files)},
            set_aside=settings.on_corrupt == "set-aside",
        )
        async with open_database(settings.database, start) as database:
            try:
                cache = Cache(
                    database,
                    clock,
                    Limits(
                        settings.ttl_limit,
                        room.connections,
                        settings.max_connections_per_endpoint,
                        settings.max_bindings_per_destination,
                        settings.max_bindings,
                    ),
                    close_on_data=settings.on_data == "close",
                )
            except DatabaseFault as error:
                raise DatabaseError(
                    f"the database {settings.database} cannot be read ({error}): try again"
                ) from error
            try:
                server = Server(settings, room.clients, clock, database, cache)
                await server.serve(sock)
            finally:
                cache.close()
                await database.stop(clock.stamp())
                if left := cache.closer.finish(CLOSE_TIMEOUT):
                    logger.warning(
                        "close(2) of a descriptor does not return (waiting in all: %d): this "
                        "process ends when another program, such as a file server, answers",
                        left,
                    )
