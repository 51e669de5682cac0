"""A client of the daemon that says what it likes, when it likes, and may stop anywhere."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from scache import fdpass
from scache.model import Status
from scache.protocol.codec import Attributes
from scache.protocol.messages import (
    ANNOUNCEMENT,
    DESCRIPTOR_BYTE,
    DUMMY,
    FindDest,
    FindEndp,
    SaveDest,
    SaveEndp,
    encode_request,
)

DEADLINE = 10.0
"""Seconds after which whatever a test waits for is said not to happen."""


class Hit(NamedTuple):
    """What a find brought."""

    properties: tuple[bytes, ...]
    descriptor: int


class Dialogue:
    """A conversation in the base protocol, step by step.

    What it receives and nobody takes is closed with it.
    """

    def __init__(self, path: Path, *, announced: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(DEADLINE)
        self._received = b""
        self._descriptors: deque[int] = deque()
        try:
            self.socket.connect(os.fspath(path))
            if announced:
                self.expect(ANNOUNCEMENT)
        except BaseException:
            self.close()
            raise

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
        """Hang up."""
        self.socket.close()
        fdpass.close(self._descriptors)
        self._descriptors.clear()

    def send(self, data: bytes, *descriptors: int) -> None:
        """Send bytes in one sendmsg(2), descriptors attached to the first of them."""
        assert fdpass.send(self.socket, data, descriptors) == len(data)

    def expect(self, data: bytes) -> None:
        """Receive exactly these bytes."""
        while len(self._received) < len(data) and data.startswith(self._received):
            self._receive()
        assert self._received[: len(data)] == data
        self._received = self._received[len(data) :]

    def message(self) -> Attributes:
        """Receive one message."""
        attributes: Attributes = []
        while name := self._token():
            attributes.append((name, self._token()))
        return attributes

    def descriptor(self) -> int:
        """Receive the byte that carries a descriptor, and nothing with it; it is the caller's."""
        self.expect(DESCRIPTOR_BYTE)
        assert len(self._descriptors) == 1
        return self._descriptors.popleft()

    def expect_end(self) -> None:
        """Wait until the daemon hangs up, having said nothing more."""
        assert self._received == b""
        with contextlib.suppress(ConnectionResetError):
            assert fdpass.receive(self.socket).data == b""

    def await_readable(self) -> None:
        """Wait until the daemon has sent something, and leave it there."""
        readable, _, _ = select.select([self.socket], [], [], DEADLINE)
        assert readable

    def save_endp(
        self, endpoint: bytes, descriptor: int, properties: bytes = b"", ttl: int = 60
    ) -> Status:
        """Do the whole exchange."""
        self.send(encode_request(SaveEndp(ttl, endpoint, properties)))
        self.expect(DUMMY)
        self.send(DESCRIPTOR_BYTE, descriptor)
        return self.status()

    def save_dest(
        self, destination: bytes, endpoint: bytes, properties: bytes = b"", ttl: int = 60
    ) -> Status:
        """Do the whole exchange."""
        self.send(encode_request(SaveDest(ttl, destination, properties, endpoint)))
        return self.status()

    def find_endp(self, endpoint: bytes) -> Hit | None:
        """Do the whole exchange."""
        return self.find(FindEndp(endpoint))

    def find_dest(self, destination: bytes) -> Hit | None:
        """Do the whole exchange."""
        return self.find(FindDest(destination))

    def find(self, request: FindEndp | FindDest) -> Hit | None:
        """Do the whole exchange."""
        self.send(encode_request(request))
        return self.take_hit(request)

    def take_hit(self, request: FindEndp | FindDest) -> Hit | None:
        """Go on with a find that has been sent."""
        (_, status), *properties = reply = self.message()
        names = [b"status", b"property", b"property"][: 2 + isinstance(request, FindDest)]
        assert [name for name, _ in reply] == names
        if status != b"0":
            assert reply == list(zip(names, [b"2", b"", b""], strict=False))
            return None
        self.send(DUMMY)
        descriptor = self.descriptor()
        self.send(DUMMY)
        return Hit(tuple(value for _, value in properties), descriptor)

    def status(self) -> Status:
        """Receive the reply to a save."""
        ((name, status),) = self.message()
        assert name == b"status"
        return Status(int(status))

    def _token(self) -> bytes:
        while b"\0" not in self._received:
            self._receive()
        token, _, self._received = self._received.partition(b"\0")
        return token

    def _receive(self) -> None:
        received = fdpass.receive(self.socket)
        self._descriptors.extend(received.descriptors)
        assert received.data, "the daemon hung up"
        self._received += received.data


def eventually(condition: Callable[[], object]) -> None:
    """Wait for what has no event to wait for."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)
