"""What both clients hold: a socket, and the conversation on it."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from scache import fdpass
from scache.client.exchanges import HangupError
from scache.errors import ProtocolError, Unavailable
from scache.protocol.client import ClientConversation

DEFAULT_TIMEOUT = 5.0
"""Seconds that a request may take, as Postfix's own client gives it."""

CONNECT_PAUSE = 0.01
"""Seconds until the next attempt while the daemon's backlog is full: no event tells of room."""


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
        self._process_id = os.getpid()
        self._user: dict[str, object] = {}
        """Under one key, the token of the request under way."""
        self._buffer = fdpass.new_buffer()
        self._told = False
        """Whether the server may have acted on what it was sent of the request under way."""
        self._heard = False
        """Whether it has answered any of it."""

    def __repr__(self) -> str:
        state = "connected" if self._socket else "not connected"
        return f"<{type(self).__name__} {self._path} {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied: it holds a connection and the "
            "conversation on it; make a new one from the same path"
        )

    def close(self) -> None:
        """Hang up; what was saved stays in the cache. A later request connects again."""
        self._hang_up()

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        fdpass.close(self._conversation.close())

    def _forked(self) -> bool:
        """Leave the conversation to the parent, if this process is a child that has just found out.

        Only copies of descriptors are closed: the parent's connection goes on.
        """
        if self._process_id == os.getpid():
            return False
        self._process_id = os.getpid()
        self._user = {}
        self._hang_up()
        return True

    def _begin_request(self) -> None:
        self._told = self._heard = False

    def _begin_connection(self, sock: socket.socket) -> None:
        """Take a socket that is about to be connected."""
        self._socket = sock
        self._conversation = ClientConversation()

    def _connected(self, sock: socket.socket) -> bool:
        """Connect; return False while the daemon's backlog is full."""
        try:
            sock.connect(self._path)
        except BlockingIOError:
            return False
        except OSError as error:
            reason = error.strerror or error
            raise Unavailable(f"no daemon answers at {self._path}: {reason}") from error
        return True

    def _receive_some(self, sock: socket.socket) -> None:
        """Give the conversation what one recvmsg(2) brings."""
        try:
            data, descriptors, truncated = fdpass.receive(sock, self._buffer)
        except ConnectionResetError:
            # It closed without having read what it was sent.
            self._told = self._heard
            raise
        self._heard = self._heard or bool(data)
        self._conversation.receive(data, descriptors)
        if truncated:
            raise ProtocolError(
                "this process is at its limit of descriptors, and lost some that were sent"
            )
        if not data:
            raise HangupError

    def _send_some(
        self, sock: socket.socket, data: bytes, descriptors: Sequence[int]
    ) -> tuple[bytes, Sequence[int]]:
        """Send as much as there is room for; return the rest."""
        sent = fdpass.send(sock, data, descriptors)
        self._told = True
        return data[sent:], ()

    def _hung_up(self) -> Unavailable:
        return Unavailable(f"the daemon at {self._path} hung up")

    def _late(self) -> Unavailable:
        return Unavailable(
            f"the daemon at {self._path} did not answer within {self._timeout:g} seconds"
        )


def send_courtesy(sock: socket.socket, data: bytes) -> None:
    """Send this now or never: without it the connection is of no more use, and is shut down."""
    try:
        fdpass.send(sock, data)
    except OSError:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
