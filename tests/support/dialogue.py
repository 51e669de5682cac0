"""A client of the base protocol that sends and receives each message on its own."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import anyio

from scache.model import Status
from scache.protocol.messages import (
    ANNOUNCEMENT,
    DESCRIPTOR_BYTE,
    DUMMY,
    FindDest,
    FindEndp,
    SaveDest,
    SaveEndp,
    encode_reply,
    encode_request,
)
from scache.unix import fdpass
from tests.support.wire import DEADLINE as DEADLINE
from tests.support.wire import Wire


class Hit(NamedTuple):
    """The result of a find that hits."""

    properties: tuple[bytes, ...]
    descriptor: int
    """The caller must close it."""


class Dialogue(Wire):
    """A conversation in the base protocol that checks every byte of the daemon."""

    def __init__(self, path: Path, *, announced: bool = True, timeout: float = DEADLINE) -> None:
        super().__init__(path, timeout)
        if announced:
            self.expect(ANNOUNCEMENT)

    def expect(self, data: bytes) -> None:
        """Receive exactly these bytes."""
        deadline = time.monotonic() + DEADLINE
        while len(self._received) < len(data) and data.startswith(self._received):
            self._receive_more(deadline)
        assert self._take(len(data)) == data

    def status(self) -> Status:
        """Receive the reply to a save."""
        ((name, status),) = self.receive_message()
        assert name == b"status"
        return Status(int(status))

    def shutdown(self) -> None:
        """End the conversation, also in a thread that is sending."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def await_readable(self) -> None:
        """Wait until the daemon has sent data; do not receive it."""
        readable, _, _ = select.select([self], [], [], DEADLINE)
        assert readable

    def await_end(self) -> None:
        """Wait until the daemon disconnects; discard the data that it sends before."""
        with contextlib.suppress(ConnectionResetError):
            data = b"anything"
            while data:
                data, descriptors = self.receive_raw()
                fdpass.close(descriptors)

    def park(
        self, endpoint: bytes, descriptor: int, properties: bytes = b"", ttl: int = 60
    ) -> Status:
        """Save a connection."""
        self.send(encode_request(SaveEndp(ttl, endpoint, properties)))
        self.expect(DUMMY)
        self.send(DESCRIPTOR_BYTE, [descriptor])
        return self.status()

    def bind(
        self, destination: bytes, endpoint: bytes, properties: bytes = b"", ttl: int = 60
    ) -> Status:
        """Save a binding."""
        self.send(encode_request(SaveDest(ttl, destination, properties, endpoint)))
        return self.status()

    def take_endp(self, endpoint: bytes) -> Hit | None:
        """Take a connection of an endpoint."""
        return self.take(FindEndp(endpoint))

    def take_dest(self, destination: bytes) -> Hit | None:
        """Take a connection for a destination."""
        return self.take(FindDest(destination))

    def take(self, request: FindEndp | FindDest) -> Hit | None:
        """Take a connection."""
        self.send(encode_request(request))
        return self.go_on(request)

    def go_on(self, request: FindEndp | FindDest) -> Hit | None:
        """Take a connection whose request has been sent."""
        (status, _), *rest = [(value, name) for name, value in self.receive_message()]
        properties = tuple(value for value, _ in rest)
        assert len(properties) == 1 + isinstance(request, FindDest)
        if status != b"0":
            assert (status, b"".join(properties)) == (b"2", b"")
            return None
        self.send(DUMMY)
        descriptor = self.receive_descriptor()
        self.send(DUMMY)
        return Hit(properties, descriptor)


MISS_ENDP = encode_reply(Status.FAIL, b"")
"""The reply to a ``find_endp`` that misses."""

MISS_DEST = encode_reply(Status.FAIL, b"", b"")
"""The reply to a ``find_dest`` that misses."""


def eventually(condition: Callable[[], object]) -> None:
    """Wait until a condition is true; poll it, because no event is set."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.005)


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true while the event loop runs."""
    with anyio.fail_after(DEADLINE):
        while not condition():  # noqa: ASYNC110 - the code under test sets no event
            await anyio.sleep(0.005)
