"""The daemon's start and end: builds its parts, runs the server, and closes them in order."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace

import anyio

from scache.cache import Cache
from scache.clock import Clock
from scache.daemon.capacity import (
    Capacity,
    capacity,
    check_open_files,
    in_force,
    limits,
    most_open_files,
    shortage,
)
from scache.daemon.launch import Launch
from scache.daemon.listening_socket import InheritedSocket, ListeningSocket
from scache.daemon.ownership import left_out
from scache.daemon.server import SIGNALS, Server
from scache.errors import EXIT_OK, DatabaseError, DatabaseFault
from scache.settings.declarations import Settings
from scache.store.database import MEMORY, Database, open_database
from scache.store.migrations import migrations
from scache.store.recovery import Start
from scache.unix.namespace import ROOT
from scache.unix.process import become, check_threads, raise_open_files, reap_children
from scache.version import __version__

CLOSE_TIMEOUT = 1.0
"""Seconds to wait at shutdown until the cached descriptors are closed."""

logger = logging.getLogger(__name__)


def run(settings: Settings, launch: Launch | None = None) -> int:
    """Run the daemon in the foreground; return its exit code.

    SIGNALS are blocked until the daemon is ready to handle them. Raises StartupError, with a
    message of one sentence, if the daemon cannot start.
    """
    open_files = raise_open_files(most_open_files(settings))
    check_open_files(open_files)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        anyio.run(_run, settings, launch or Launch(), open_files, backend="asyncio")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return EXIT_OK


async def _run(settings: Settings, launch: Launch, open_files: int) -> None:
    """Run the daemon until it is asked to stop or has been idle for long enough.

    ``open_files`` is the limit on open files in force. Raises StartupError if the daemon cannot
    start.
    """
    reap_children()
    room = capacity(settings, open_files)
    # Bind before opening the database: a second daemon must fail without touching it.
    with closing(_listen(settings, launch)) as sock:
        if too_little := shortage(settings, room, open_files):
            logger.warning("%s", too_little)
        migrations()  # read before the daemon gives up root, which may be needed for that
        become(*settings.user_ids)
        check_threads()  # the database needs one; a limit may be that of the new user
        clock = Clock()
        settings = replace(settings, socket=sock.path)
        start = _start(settings, room, open_files, clock)
        async with _database(settings, start, launch) as database:
            cache = _cache(settings, room, clock, database)
            try:
                server = Server(settings, open_files, clock, database, cache, launch)
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


def _listen(settings: Settings, launch: Launch) -> ListeningSocket | InheritedSocket:
    if launch.listening is not None:
        return InheritedSocket(launch.listening)
    owner = settings.user_ids if settings.socket_owner is None else settings.owner_ids
    sock = ListeningSocket(
        settings.socket, settings.socket_mode, owner, make_parent=settings.socket_is_default
    )
    if owner[0] != ROOT and (mistake := left_out(settings.socket)):
        logger.warning("%s", mistake)
    return sock


@asynccontextmanager
async def _database(settings: Settings, start: Start, launch: Launch) -> AsyncIterator[Database]:
    """Open the database of the settings, or one in memory if it is unusable and that is allowed."""
    async with AsyncExitStack() as stack:
        try:
            database = await stack.enter_async_context(open_database(settings.database, start))
        except DatabaseError as error:
            if not launch.memory_on_fault:
                raise
            logger.warning("%s; the database is kept in memory until the next start", error)
            database = await stack.enter_async_context(open_database(MEMORY, start))
        yield database


def _start(settings: Settings, room: Capacity, open_files: int, clock: Clock) -> Start:
    return Start(
        clock,
        __version__,
        settings.ttl_limit,
        settings.audit_rows,
        in_force(settings, room, open_files),
        set_aside=settings.on_corrupt == "set-aside",
    )


def _cache(settings: Settings, room: Capacity, clock: Clock, database: Database) -> Cache:
    try:
        return Cache(
            database, clock, limits(settings, room), close_on_data=settings.on_data == "close"
        )
    except DatabaseFault as error:
        raise DatabaseError(
            f"the database {settings.database} cannot be read ({error}): try again"
        ) from error
