"""The daemon's start and end: builds its parts, runs the server, and closes them in order."""

from __future__ import annotations

import logging
import signal
from contextlib import closing

import anyio

from scache.cache import Cache
from scache.cache.limits import Limits
from scache.clock import Clock
from scache.daemon.capacity import Capacity, capacity, check_open_files, shortage
from scache.daemon.listening_socket import ListeningSocket, make_directory
from scache.daemon.ownership import left_out
from scache.daemon.server import SIGNALS, Server
from scache.errors import EXIT_OK, DatabaseError, DatabaseFault
from scache.settings.declarations import Settings
from scache.store import Database, Start, open_database
from scache.unix.namespace import ROOT
from scache.unix.process import become, raise_open_files, reap_children
from scache.version import __version__

CLOSE_TIMEOUT = 1.0
"""Seconds to wait at shutdown until the cached descriptors are closed."""

logger = logging.getLogger(__name__)


def run(settings: Settings) -> int:
    """Run the daemon in the foreground; return its exit code.

    SIGNALS are blocked until the daemon is ready to handle them. Raises StartupError, with a
    message of one sentence, if the daemon cannot start.
    """
    open_files = raise_open_files()
    check_open_files(open_files)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        anyio.run(_run, settings, open_files, backend="asyncio")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return EXIT_OK


async def _run(settings: Settings, open_files: int) -> None:
    """Run the daemon until it is asked to stop or has been idle for long enough.

    ``open_files`` is the limit on open files in force. Raises StartupError if the daemon cannot
    start.
    """
    reap_children()
    room = capacity(settings, open_files)
    # Bind before opening the database: a second daemon must fail without touching it.
    with closing(_listen(settings)) as sock:
        if too_little := shortage(settings, room, open_files):
            logger.warning("%s", too_little)
        become(*settings.user_ids)
        clock = Clock()
        start = _start(settings, room, open_files, clock)
        async with open_database(settings.database, start) as database:
            cache = _cache(settings, room, clock, database)
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


def _listen(settings: Settings) -> ListeningSocket:
    if settings.socket_is_default:
        make_directory(settings.socket.parent)
    owner = settings.user_ids if settings.socket_owner is None else settings.owner_ids
    sock = ListeningSocket(settings.socket, settings.socket_mode, owner)
    if owner[0] != ROOT and (mistake := left_out(settings.socket)):
        logger.warning("%s", mistake)
    return sock


def _start(settings: Settings, room: Capacity, open_files: int, clock: Clock) -> Start:
    in_force = {
        "max_clients": str(room.clients),
        "max_connections": str(room.connections),
        "open_files_limit": str(open_files),
    }
    return Start(
        clock,
        __version__,
        settings.ttl_limit,
        settings.audit_rows,
        settings.as_text() | in_force,
        set_aside=settings.on_corrupt == "set-aside",
    )


def _cache(settings: Settings, room: Capacity, clock: Clock, database: Database) -> Cache:
    limits = Limits(
        settings.ttl_limit,
        room.connections,
        settings.max_connections_per_endpoint,
        settings.max_bindings_per_destination,
        settings.max_bindings,
    )
    try:
        return Cache(database, clock, limits, close_on_data=settings.on_data == "close")
    except DatabaseFault as error:
        raise DatabaseError(
            f"the database {settings.database} cannot be read ({error}): try again"
        ) from error
