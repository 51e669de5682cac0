"""What both clients hold: a socket, and the conversation on it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from scache import fdpass
from scache.protocol.client import ClientConversation

DEFAULT_TIMEOUT = 5.0
"""Seconds that a request may take, as Postfix's own client gives it."""


class BaseClient:
    """A client that may be connected."""

    def __init__(
        self, path: str | Path, *, timeout: float = DEFAULT_TIMEOUT, inline: bool = True
    ) -> None:
        """Speak to the socket at this path; give each request ``timeout`` seconds.

        ``inline=False`` stays in the base protocol with every server.
        """
        self._path = os.fspath(path)
        self._timeout = timeout
        self._inline = inline
        self._socket: socket.socket | None = None
        self._conversation = ClientConversation()
        self._process_id = 0
        self._heard = False

    def __repr__(self) -> str:
        state = "connected" if self._socket else "not connected"
        return f"<{type(self).__name__} {self._path} {state}>"

    def close(self) -> None:
        """Hang up; what was saved stays in the cache. A later request connects again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        fdpass.close(self._conversation.close())

    def _begin_connection(self, sock: socket.socket) -> None:
        """Take a socket that is about to be connected."""
        self._socket = sock
        self._process_id = os.getpid()
        self._conversation = ClientConversation()
