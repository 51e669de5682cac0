"""The daemon process: sockets, signals, time-outs and background tasks, on anyio."""

from __future__ import annotations

import signal

import anyio

from scache.daemon.capacity import raise_open_files
from scache.daemon.server import SIGNALS, serve
from scache.errors import EXIT_OK
from scache.settings.declarations import Settings

__all__ = ["run"]


def run(settings: Settings) -> int:
    """Run the daemon in the foreground; return its exit code.

    SIGNALS are blocked until the daemon is ready to handle them. Raises StartupError, with a
    message of one sentence, if the daemon cannot start.
    """
    open_files = raise_open_files()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        anyio.run(serve, settings, open_files, backend="asyncio")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return EXIT_OK
