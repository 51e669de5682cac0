"""The server: its sessions, signals, background tasks and shutdown."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Iterator
from operator import attrgetter

import anyio
from anyio.abc import TaskGroup

from scache.cache import Cache
from scache.clock import Clock
from scache.daemon import maintenance
from scache.daemon.access import AccessControl, Principals
from scache.daemon.admission import Admission
from scache.daemon.auto_reset_event import AutoResetEvent
from scache.daemon.capacity import client_limit_remedy
from scache.daemon.identity import OwnSockets
from scache.daemon.idle import IdleTimer
from scache.daemon.listener import Listener
from scache.daemon.listening_socket import ListeningSocket
from scache.daemon.poller import Poller
from scache.daemon.probe import Probe
from scache.daemon.session import Session
from scache.daemon.snapshots import Snapshots
from scache.daemon.transport import Transport, client_logger
from scache.daemon.watchdog import Watchdog
from scache.model import Connection
from scache.protocol.server import ServerConversation
from scache.settings.declarations import Settings
from scache.store import CLIENTS_SERVED, Database
from scache.unix import credentials, sockopt
from scache.unix.namespace import described, unmapped

STOP_TIMEOUT = 1.0
"""Seconds for exchanges in progress to complete after the daemon was asked to stop."""

_STOP_INTERVALS = 10
"""Parts of STOP_TIMEOUT that are waited for one by one. A pause of the process (SIGSTOP) of any
length counts as one of them, so data that clients sent meanwhile is still read."""

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
            lambda: {CLIENTS_SERVED: str(self._admission.admitted)},
        )
        unmapped_ids = unmapped("uid"), unmapped("gid")
        if notice := described(*unmapped_ids):
            logger.warning("%s", notice)
        self._access = AccessControl(
            Principals(*settings.admin_ids, *unmapped_ids), self._snapshots
        )
        self._admission = Admission(
            Principals(*settings.allowed_ids, *unmapped_ids),
            max_clients,
            client_limit_remedy(settings, max_clients),
            cache.audit_log,
        )
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
        tasks.start_soon(maintenance.close, self._cache.closer, self._cache.audit_log)
        tasks.start_soon(maintenance.expire, self._cache, self._clock)
        tasks.start_soon(maintenance.commit, self._database, committed)
        tasks.start_soon(maintenance.checkpoint, self._database, self._poller, committed)
        tasks.start_soon(maintenance.watch_files, self._database)
        watchdog: Watchdog[Session] = Watchdog(self._settings.exchange_timeout)
        tasks.start_soon(maintenance.drop_overdue, watchdog, self._sessions, self._client_connected)
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
                offer_inline=allowed or self._access.permits(peer, groups),
                max_message_size=settings.max_message_size,
                max_ahead_size=settings.max_ahead_size,
            ),
            self._admission.admit,
            self._disconnected,
            self._out_of_descriptors,
            self._probe,
            allowed=allowed,
        )
        self._sessions.add(session)
        self._idle.connected()
        self._client_connected.set()
        try:
            session.start()
        except OSError as error:
            client_logger.warning("cannot serve a client: %s", error)
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
        self._idle.disconnected()
        if not self._sessions:
            self._all_gone.set()

    async def _finish_sessions(self) -> None:
        """Wait up to STOP_TIMEOUT seconds for exchanges in progress to complete."""
        for session in list(self._sessions):
            session.finish()
        self._all_gone = anyio.Event()
        for _ in range(_STOP_INTERVALS):
            if self._sessions:
                with anyio.move_on_after(STOP_TIMEOUT / _STOP_INTERVALS):
                    await self._all_gone.wait()
