"""The server: its sessions, signals, background tasks and shutdown."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from operator import attrgetter

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from scache.cache import Cache
from scache.clock import Clock
from scache.daemon import maintenance
from scache.daemon.access import AccessControl, Principals
from scache.daemon.admission import MAX_OBSERVERS, NOT_ALLOWED, Admission
from scache.daemon.auto_reset_event import AutoResetEvent
from scache.daemon.capacity import capacity, client_limit_remedy, in_force, limits
from scache.daemon.client_log import client_logger
from scache.daemon.followers import Followers
from scache.daemon.identity import OwnSockets
from scache.daemon.idle import IdleTimer
from scache.daemon.launch import Launch
from scache.daemon.listener import Listener
from scache.daemon.listening_socket import InheritedSocket, ListeningSocket
from scache.daemon.observation import Figures, Limited, Observation, Population
from scache.daemon.poller import Poller
from scache.daemon.probe import Probe
from scache.daemon.session import Session
from scache.daemon.snapshots import Snapshots
from scache.daemon.socket_watch import LOOK_INTERVAL, SocketWatch
from scache.daemon.transport import Transport
from scache.daemon.watchdog import Watchdog
from scache.errors import ScacheError, SocketError, reason_of
from scache.escape import quoted
from scache.model import Connection
from scache.protocol.server import ServerConversation
from scache.settings.declarations import Settings
from scache.settings.reloading import reloaded
from scache.store.database import Database
from scache.store.serialized import CLASSES, CLIENTS_SERVED, LOG_BYTES
from scache.unix import credentials, memory, sockopt
from scache.unix.namespace import described, unmapped
from scache.unix.process import end_by, thread_needed

STOP_TIMEOUT = 1.0
"""Seconds for exchanges in progress to complete after the daemon was asked to stop."""

_STOP_INTERVALS = 10
"""Parts of STOP_TIMEOUT that are waited for one by one. A pause of the process (SIGSTOP) of any
length counts as one of them, so data that clients sent meanwhile is still read."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Signals that the daemon handles."""

logger = logging.getLogger(__name__)


class Server:
    """The connected clients, the poller and the background tasks of a running daemon."""

    def __init__(
        self,
        settings: Settings,
        open_files: int,
        clock: Clock,
        database: Database,
        cache: Cache,
        launch: Launch,
    ) -> None:
        self._settings = settings
        self._open_files = open_files
        self._launch = launch
        self._supervisor = launch.supervisor
        cache.audit_log.classes.change(settings.classes)
        self._clock = clock
        self._database = database
        self._cache = cache
        self._sessions: set[Session] = set()
        self._client_connected = AutoResetEvent()
        self._idle = IdleTimer(settings.max_idle)
        self._loop = asyncio.get_running_loop()
        self._probe = Probe()
        self._poller = Poller(self._loop)
        self._snapshots = Snapshots(
            database,
            cache,
            self._poller,
            self._being_delivered,
            lambda: [session.fileno() for session in self._sessions],
            self._figures,
            self._record_silent_clients,
        )
        self._unmapped = unmapped("uid"), unmapped("gid")
        if notice := described(*self._unmapped):
            logger.warning("%s", notice)
        admins = Principals(*settings.admin_ids, *self._unmapped)
        self._access = AccessControl(admins, self._snapshots)
        max_clients = capacity(settings, open_files).clients
        self._admission = Admission(
            Principals(*settings.allowed_ids, *self._unmapped),
            max_clients,
            client_limit_remedy(settings, max_clients),
            cache.audit_log,
            self._idle,
        )
        self._arrived = AutoResetEvent()  # set when a session is new
        self._followers = Followers(cache.audit_log)
        figures = Figures(clock, database, cache, self._population, self._limits, open_files)
        self._observation = Observation(figures.encoded, self._followers)
        self._watchdog: Watchdog[Session] = Watchdog(settings.exchange_timeout)
        self._report = AutoResetEvent()
        """Set when the interval between two logs of the statistics has changed."""
        self._stop = anyio.Event()
        self._failure: SocketError | None = None
        """The reason of a stop that is an error."""
        self._all_gone = anyio.Event()

    async def serve(self, sock: ListeningSocket | InheritedSocket) -> None:
        """Serve clients of this listening socket until a signal or idle exit stops the daemon.

        Raises SocketError if the path of a socket that a supervisor has made is lost.
        """
        listener = Listener(
            sock,
            self._loop,
            self._poller,
            self._connected,
            self._out_of_descriptors,
            self._cache.closer,
        )
        own_sockets = OwnSockets(sock.socket)
        self._cache.is_own_socket = own_sockets.include

        def renewed(old: socket.socket) -> None:
            listener.take_over(old)
            own_sockets.add(sock.socket)

        # The objects made so far are permanent. Without freeze(), each full collection would scan
        # them, and all clients would wait for milliseconds.
        memory.restore()
        gc.freeze()
        gc.enable()
        try:
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._watch_signals)
                self._start_upkeep(tasks)
                tasks.start_soon(self._watch_idleness, sock)
                tasks.start_soon(self._watch_path, SocketWatch(sock, renewed))
                listener.start()
                # Not in the poller: epoll_ctl(2) refuses to add a nested epoll instance to another
                # one if a client has saved the same connection a hundred times, and
                # `Poller.paused` adds the poller to the event loop again.
                self._loop.add_reader(self._cache.hang_ups(), self._cache.close_hung_up)
                logger.info(
                    "listening on %(socket)s, database %(database)s; "
                    "look inside with `%(command)s`",
                    {
                        "socket": self._settings.socket,
                        "database": self._database.path,
                        "command": f"scache stats --socket {quoted(str(self._settings.socket))}",
                    },
                )
                self._supervisor.ready()
                await self._stop.wait()
                self._supervisor.stopping()
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
        if self._failure is not None:
            raise self._failure

    def _start_upkeep(self, tasks: TaskGroup) -> None:
        def begin(task: Callable[..., Awaitable[None]], *arguments: object) -> None:
            tasks.start_soon(maintenance.endure, task, *arguments)

        committed = AutoResetEvent()
        begin(maintenance.watch, self._cache)
        begin(maintenance.close, self._cache.closer, self._cache.audit_log)
        begin(maintenance.expire, self._cache, self._clock)
        begin(maintenance.commit, self._database, committed)
        begin(maintenance.checkpoint, self._database, self._poller, committed)
        begin(maintenance.watch_files, self._database)
        begin(maintenance.drop_overdue, self._watchdog, self._sessions, self._client_connected)
        begin(maintenance.record_clients, self._admission.new, self._arrived)
        begin(maintenance.report, self._cache, lambda: self._settings.status_interval, self._report)
        begin(self._followers.run)
        begin(self._supervisor.run, self._status, self._end)
        begin(self._snapshots.run)

    async def _watch_signals(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Handle SIGNALS: SIGHUP reloads, SIGUSR1 logs statistics, SIGTERM and SIGINT stop.

        A second SIGTERM or SIGINT ends the process at once.
        """
        stopping = False
        try:
            with anyio.open_signal_receiver(*SIGNALS) as signals:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
                task_status.started()
                async for number in signals:
                    if number == signal.SIGUSR1:
                        maintenance.log_statistics(self._cache)
                    elif number == signal.SIGHUP:
                        await self._reload()
                    elif stopping:
                        end_by(number)
                    else:
                        stopping = True
                        self._end(f"received {signal.Signals(number).name}")
        finally:
            # asyncio leaves a handler that raises KeyboardInterrupt, and none for SIGTERM, which
            # does not end a process with pid 1.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, end_by)

    def _end(self, why: str) -> None:
        """Stop the daemon, unless it stops already."""
        if not self._stop.is_set():
            logger.info("stopping: %(reason)s", {"reason": why})
            self._stop.set()

    def _status(self) -> str:
        """Return one line about the state of the daemon, for a supervisor."""
        statistics, fault = self._cache.statistics, self._database.fault
        line = (
            f"{statistics.connections} connections of {statistics.endpoints} endpoints, "
            f"{self._admission.clients} clients"
        )
        return f"{line}; database: {fault}" if fault else line

    def _figures(self) -> dict[str, str]:
        """Return what a snapshot has besides the database, as rows of ``setting``."""
        figures = {CLIENTS_SERVED: str(self._admission.clients)}
        if self._database.is_file:
            figures[LOG_BYTES] = str(self._database.wal.size)
        if self._settings.classes:
            import json  # not needed without classes

            figures[CLASSES] = json.dumps(self._cache.audit_log.classes.figures())
        return figures

    def _population(self) -> Population:
        return Population(self._admission.clients, self._admission.observers, len(self._sessions))

    def _limits(self) -> Limited:
        settings, admission = self._settings, self._admission
        room = capacity(settings, self._open_files)
        return {
            "clients": (room.clients, admission.clients),
            "observers": (MAX_OBSERVERS, admission.observers),
        } | self._cache.use_of_limits()

    def _record_silent_clients(self) -> None:
        """Record the clients that have sent nothing yet, so that a snapshot has them."""
        for session in [each for each in self._admission.new if each.is_silent]:
            session.record()

    async def _reload(self) -> None:
        """Read the settings again; keep the old ones if they cannot be read."""
        if self._launch.reread is None:
            logger.info("SIGHUP is ignored: the settings of this daemon cannot change")
            return
        self._supervisor.reloading()
        try:
            # In a thread, because a file or a user database may be on a server that is away.
            with thread_needed():
                settings = await anyio.to_thread.run_sync(self._launch.reread)
            self._apply(settings)
        except ScacheError as error:
            reason = {"reason": error}
            logger.error("the settings stay as they are: %(reason)s", reason)  # noqa: TRY400
        self._supervisor.ready()

    def _apply(self, wanted: Settings) -> None:
        """Apply the settings that can change, and log what has changed."""
        settings, changed, postponed = reloaded(self._settings, wanted)
        self._settings = settings
        room = capacity(settings, self._open_files)
        self._cache.change_limits(limits(settings, room))
        self._cache.audit_log.classes.change(settings.classes)
        self._idle.change_limit(settings.max_idle)
        self._watchdog.change_timeout(settings.exchange_timeout)
        self._report.set()
        self._access.change(Principals(*settings.admin_ids, *self._unmapped))
        self._admission.change(
            Principals(*settings.allowed_ids, *self._unmapped),
            room.clients,
            client_limit_remedy(settings, room.clients),
        )
        logging.getLogger("scache").setLevel(settings.log_level.upper())
        self._database.record_settings(in_force(settings, room, self._open_files))
        names = {"settings": ", ".join(changed) or "none"}
        logger.info("settings reloaded, changed: %(settings)s", names)
        if postponed:
            names = {"settings": ", ".join(postponed)}
            logger.warning("these settings change at the next start: %(settings)s", names)

    async def _watch_idleness(self, sock: ListeningSocket | InheritedSocket) -> None:
        await self._idle.wait(lambda: sockopt.is_quiet(sock.socket.fileno()))
        self._end(f"no client for {self._settings.max_idle:g} s")

    async def _watch_path(self, path: SocketWatch) -> None:
        """Check the path of the listening socket until the daemon stops."""
        while not self._stop.is_set():
            try:
                path.look()
            except SocketError as error:
                self._failure = error
                self._end(str(error))
            await anyio.sleep(LOOK_INTERVAL)

    def _connected(self, client: socket.socket) -> None:
        settings = self._settings
        transport = Transport(client, self._poller, self._cache.closer)
        peer, groups = credentials.peer(client), transport.groups()
        allowed = self._admission.allows(peer, groups)
        session = Session(
            transport,
            peer,
            self._cache,
            self._access,
            ServerConversation(
                announce=settings.announce,
                not_offered=(
                    None
                    if allowed or self._access.permits(peer, groups)
                    else f"the daemon does not serve this client: {NOT_ALLOWED}"
                ),
                max_message_size=settings.max_message_size,
                max_ahead_size=settings.max_ahead_size,
            ),
            self._admission,
            self._observation,
            self._disconnected,
            self._out_of_descriptors,
            self._probe,
            allowed=allowed,
        )
        self._sessions.add(session)
        self._arrived.set()
        self._client_connected.set()
        self._supervisor.client_connected()
        try:
            session.start()
        except OSError as error:
            client_logger.warning("cannot serve a client: %s", reason_of(error))
            session.abort()
        self._admission.disconnect_surplus()

    def _out_of_descriptors(self, what: str) -> None:
        """Log and count a shortage; disconnect the client with the most waiting descriptors.

        Waiting descriptors are received descriptors whose requests are not served yet.
        """
        self._cache.audit_log.limit_reached("open_files")
        client_logger.warning("out of descriptors: %s", what)
        greediest = max(self._sessions, key=attrgetter("waiting_descriptors"), default=None)
        if greediest is not None and greediest.waiting_descriptors > 1:
            self._poller.call_later(greediest.abort)

    def _being_delivered(self) -> Iterator[Connection]:
        """Yield the rows of connections that were found but not sent, with wall-clock times."""
        offset = self._clock.offset
        for session in self._sessions:
            for row in (delivery.connection for delivery in session.deliveries):
                saved_at, expires_at = row.saved_at + offset, row.expires_at + offset
                yield row._replace(saved_at=saved_at, expires_at=expires_at)

    def _disconnected(self, session: Session) -> None:
        self._sessions.remove(session)
        self._admission.remove(session)
        if not self._sessions:
            self._all_gone.set()

    async def _finish_sessions(self) -> None:
        """Wait up to STOP_TIMEOUT seconds for exchanges in progress to complete."""
        self._followers.send()
        for session in list(self._sessions):
            session.finish()
        self._all_gone = anyio.Event()
        for _ in range(_STOP_INTERVALS):
            if self._sessions:
                with anyio.move_on_after(STOP_TIMEOUT / _STOP_INTERVALS):
                    await self._all_gone.wait()
