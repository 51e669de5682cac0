"""The anyio edge: sockets, signals, deadlines, and the tasks that keep the cache in order."""

from __future__ import annotations

import anyio

from scache.daemon.server import serve
from scache.errors import EXIT_OK
from scache.settings import Settings

__all__ = ["run"]


def run(settings: Settings) -> int:
    """Run the daemon in the foreground; return its exit code.

    Raises StartupError, whose text is one sentence, when it cannot start.
    """
    anyio.run(serve, settings, backend="asyncio")
    return EXIT_OK
