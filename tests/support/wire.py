"""A blocking client of the base protocol that can violate it.

It shares no code with the package, so it is an independent implementation of the protocol.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import termios
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

Attributes = list[tuple[bytes, bytes]]

DEADLINE = 60.0
"""Seconds that a test waits for an event before it fails; long enough for a busy machine."""

DUMMY = b"dummy\0\0\0"
"""The message that requests a descriptor, or acknowledges one."""

DESCRIPTOR_BYTE = b"\0"

_RECEIVE_SIZE = 65536
_CONTROL_SIZE = socket.CMSG_SPACE(253 * array.array("i").itemsize)


def encode(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the message with these attributes."""
    return b"".join(name + b"\0" + value + b"\0" for name, value in pairs) + b"\0"


def message_length(data: bytes) -> int | None:
    """Return the length of the message at the start of ``data``; None if it is not complete."""
    at = 0
    while (end := data.find(b"\0", at)) > at:
        value_end = data.find(b"\0", end + 1)
        if value_end < 0:
            return None
        at = value_end + 1
    return None if end < 0 else end + 1


def decode(message: bytes) -> Attributes:
    """Return the attributes of one whole message."""
    tokens = message.removesuffix(b"\0").split(b"\0")[:-1]
    return list(zip(tokens[::2], tokens[1::2], strict=True))


class Wire:
    """One connection to a server.

    Raises TimeoutError after ``timeout`` seconds, and EOFError when the server hangs up in the
    middle of a message.
    """

    def __init__(self, path: str | Path, timeout: float = DEADLINE) -> None:
        self._timeout = timeout
        self._received = b""
        self._descriptors: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; close the received descriptors that were not returned."""
        self._socket.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def fileno(self) -> int:
        """Return the descriptor of the socket, for select(2)."""
        return self._socket.fileno()

    def all_read(self) -> bool:
        """Return True if the daemon has read all sent bytes (SIOCOUTQ, unix(7))."""
        waiting = bytearray(4)
        fcntl.ioctl(self._socket, termios.TIOCOUTQ, waiting)
        return not any(waiting)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes, with descriptors attached to the first of them."""
        self._socket.settimeout(self._timeout)
        if fds:
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            data = data[self._socket.sendmsg([data], control) :]
        if data:  # sendall fails without data, too, if the server has hung up
            self._socket.sendall(data)

    def receive_raw(self, timeout: float | None = None) -> tuple[bytes, list[int]]:
        """Return the received bytes and descriptors, if there are any; else wait for some.

        No bytes mean that the server has hung up. The caller must close the descriptors.
        """
        if not self._received and not self._descriptors:
            self._receive(time.monotonic() + (self._timeout if timeout is None else timeout))
        received, self._received = self._received, b""
        descriptors, self._descriptors = self._descriptors, []
        return received, descriptors

    def receive_message_bytes(self) -> bytes:
        """Return the bytes of one message."""
        deadline = time.monotonic() + self._timeout
        while (length := message_length(self._received)) is None:
            self._receive_more(deadline)
        return self._take(length)

    def receive_message(self) -> Attributes:
        """Return the attributes of one message."""
        return decode(self.receive_message_bytes())

    def receive_descriptor(self) -> int:
        """Receive a NUL byte; return its descriptor, which the caller must close."""
        deadline = time.monotonic() + self._timeout
        while not self._received:
            self._receive_more(deadline)
        byte = self._take(1)
        assert byte == DESCRIPTOR_BYTE, f"{byte!r} came in place of a descriptor"
        assert self._descriptors, "the byte that was to carry a descriptor came without one"
        return self._descriptors.pop(0)

    def take_descriptor(self) -> int:
        """Return the next received descriptor, which the caller must close."""
        return self._descriptors.pop(0)

    def announcement(self) -> bytes:
        """Return the first message of the server."""
        return self.receive_message_bytes()

    def save_endp(self, ttl: int, label: bytes, prop: bytes, fd: int) -> bytes:
        """Save a duplicate of a descriptor; return the reply."""
        request = ((b"request", b"save_endp"), (b"ttl", b"%d" % ttl))
        self.send(encode((*request, (b"label", label), (b"property", prop))))
        reply = self.receive_message_bytes()
        if reply == DUMMY:
            self.send(DESCRIPTOR_BYTE, [fd])
            reply = self.receive_message_bytes()
        return reply

    def save_dest(self, ttl: int, label: bytes, prop: bytes, endpoint: bytes) -> bytes:
        """Bind an endpoint to a destination; return the reply."""
        request = ((b"request", b"save_dest"), (b"ttl", b"%d" % ttl))
        binding = ((b"label", label), (b"property", prop), (b"label", endpoint))
        self.send(encode((*request, *binding)))
        return self.receive_message_bytes()

    def find_endp(self, label: bytes) -> tuple[bytes, int | None]:
        """Return the reply and the descriptor, if any, which the caller must close."""
        return self._find(b"find_endp", label)

    def find_dest(self, label: bytes) -> tuple[bytes, int | None]:
        """Return the reply and the descriptor, if any, which the caller must close."""
        return self._find(b"find_dest", label)

    def _find(self, name: bytes, label: bytes) -> tuple[bytes, int | None]:
        self.send(encode(((b"request", name), (b"label", label))))
        reply = self.receive_message_bytes()
        if decode(reply)[0] != (b"status", b"0"):
            return reply, None
        self.send(DUMMY)
        descriptor = self.receive_descriptor()
        self.send(DUMMY)
        return reply, descriptor

    def _take(self, length: int) -> bytes:
        taken, self._received = self._received[:length], self._received[length:]
        return taken

    def _receive_more(self, deadline: float) -> None:
        if not self._receive(deadline):
            raise EOFError(f"the server hung up, having sent {self._received!r}")

    def _receive(self, deadline: float) -> bool:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError(f"the server did not go on, having sent {self._received!r}")
        self._socket.settimeout(remaining)
        data, control, flags, _ = self._socket.recvmsg(
            _RECEIVE_SIZE, _CONTROL_SIZE, socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, payload in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._descriptors.extend(array.array("i", payload))
        assert not flags & socket.MSG_CTRUNC, "descriptors were lost on the way"
        self._received += data
        return bool(data)
