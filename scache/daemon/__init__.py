"""The anyio edge: sockets, signals, deadlines, and the tasks that keep the cache in order."""

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

    A signal that comes before it is ready waits until it is. Raises
    StartupError, whose text is one sentence, when it cannot start.
    """
    open_files = raise_open_files()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        anyio.run(serve, settings, open_files, backend="asyncio")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return EXIT_OK
