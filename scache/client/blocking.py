"""The blocking client."""

from __future__ import annotations

import operator
import os
import socket
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from scache import fdpass
from scache.client.found import Found
from scache.errors import ProtocolError, Unavailable
from scache.model import Status
from scache.protocol.client import ClientConversation, Hit, Send
from scache.protocol.codec import NeedData
from scache.protocol.messages import FindDest, FindEndp, SaveDest, SaveEndp

DEFAULT_TIMEOUT = 5.0
"""Seconds that a request may take, as Postfix's own client gives it."""

T = TypeVar("T")
Exchange = Generator[Send | NeedData, None, T]


class HasFileno(Protocol):
    """Anything with a descriptor, such as a socket."""

    def fileno(self) -> int:
        """Return the descriptor."""


class _HangupError(Exception):
    """The server closed the connection."""


class Client:
    """A blocking client of the daemon, or of the genuine scache(8).

    It connects at the first request, keeps the connection, and connects once
    more by itself when the daemon was restarted meanwhile, or when it finds
    itself in a forked child, which must not share the parent's conversation.
    One thread at a time may use it. As a context manager it closes itself.

    Labels and properties are bytes, or text that is sent as UTF-8; they may
    hold anything but a NUL, and come back as exact bytes.

    Every request raises `Unavailable` if no daemon answers within the timeout,
    `ProtocolError` if what answers breaks the protocol or says that the request
    is malformed (a ttl below 1, a label above 64 KiB), and ValueError for a
    NUL in a label or in properties.
    """

    def __init__(self, path: str | Path, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Speak to the socket at this path; give each request ``timeout`` seconds."""
        self._path = os.fspath(path)
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._conversation = ClientConversation()
        self._process_id = 0

    def __repr__(self) -> str:
        state = "connected" if self._socket else "not connected"
        return f"<Client {self._path} {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; what was saved stays in the cache. A later request connects again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        fdpass.close(self._conversation.close())

    def save_endp(
        self, ttl: int, endpoint: str | bytes, properties: str | bytes, connection: HasFileno | int
    ) -> bool:
        """Park a connection under an endpoint for ``ttl`` seconds; return whether it was taken.

        The daemon gets a duplicate. Your own descriptor stays yours: close it
        afterwards, in every case, because whoever finds the connection is to be
        its only user. False means that the daemon said no, at a limit say.
        """
        descriptor = connection if isinstance(connection, int) else connection.fileno()
        request = SaveEndp(operator.index(ttl), _bytes(endpoint), _bytes(properties))
        return _accepted(self._run(lambda peer: peer.save_endp(request, descriptor)))

    def find_endp(self, endpoint: str | bytes) -> Found | None:
        """Take the oldest connection of an endpoint; None if there is none."""
        return _found(self._run(lambda peer: peer.find(FindEndp(_bytes(endpoint)))))

    def save_dest(
        self,
        ttl: int,
        destination: str | bytes,
        properties: str | bytes,
        endpoint: str | bytes,
    ) -> bool:
        """Bind a destination to an endpoint for ``ttl`` seconds; return whether it was taken.

        The endpoint need not have a connection yet. The same destination,
        endpoint and properties again only set a new ttl.
        """
        request = SaveDest(
            operator.index(ttl), _bytes(destination), _bytes(properties), _bytes(endpoint)
        )
        return _accepted(self._run(lambda peer: peer.save_dest(request)))

    def find_dest(self, destination: str | bytes) -> Found | None:
        """Take the oldest connection of the first endpoint of a destination that has one."""
        return _found(self._run(lambda peer: peer.find(FindDest(_bytes(destination)))))

    def _run(self, begin: Callable[[ClientConversation], Exchange[T]]) -> T:
        """Carry out an exchange, on a new connection if the one that we had is gone."""
        deadline = time.monotonic() + self._timeout
        if self._socket is not None and self._process_id == os.getpid():
            try:
                return self._drive(begin, deadline)
            except _HangupError:
                self.close()
        else:
            self.close()
        self._connect(deadline)
        try:
            return self._drive(begin, deadline)
        except _HangupError:
            self.close()
            raise Unavailable(f"the daemon at {self._path} hung up") from None

    def _connect(self, deadline: float) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            sock.connect(self._path)
        except OSError as error:
            sock.close()
            raise Unavailable(
                f"no daemon answers at {self._path}: {error.strerror or error}"
            ) from error
        self._socket = sock
        self._process_id = os.getpid()
        self._conversation = ClientConversation()

    def _drive(self, begin: Callable[[ClientConversation], Exchange[T]], deadline: float) -> T:
        """Do what the exchange says until it ends; hang up if it does not end well."""
        assert self._socket is not None
        exchange = begin(self._conversation)
        try:
            while True:
                step = next(exchange)
                self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
                if isinstance(step, Send):
                    _send_all(self._socket, step)
                else:
                    received = fdpass.receive(self._socket)
                    self._conversation.receive(received.data, received.descriptors)
                    if not received.data:
                        raise _HangupError
        except StopIteration as end:
            result: T = end.value
            return result
        except TimeoutError:
            self.close()
            raise Unavailable(
                f"the daemon at {self._path} did not answer within {self._timeout:g} seconds"
            ) from None
        except OSError as error:
            raise _HangupError from error
        except BaseException:
            self.close()
            raise


def _send_all(sock: socket.socket, step: Send) -> None:
    descriptors = () if step.descriptor is None else (step.descriptor,)
    sent = fdpass.send(sock, step.data, descriptors)
    if sent < len(step.data):
        sock.sendall(step.data[sent:])


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _accepted(status: Status) -> bool:
    if status is Status.BAD:
        raise ProtocolError("the server calls the request malformed: is the ttl at least 1?")
    return status is Status.OK


def _found(outcome: Hit | Status) -> Found | None:
    if isinstance(outcome, Hit):
        return Found(outcome.descriptor, outcome.properties[-1], b"".join(outcome.properties[:-1]))
    if outcome is Status.BAD:
        raise ProtocolError("the server calls the request malformed: is the label too long?")
    return None
