"""A client's socket on the event loop: bytes and descriptors, in and out, never waiting.

The socket is served by a persistent readiness callback of the asyncio loop.
Waiting for each message in a task of its own would cost several times what the
message itself costs.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from scache import fdpass

_RECEIVES_PER_TURN = 16
"""Messages served for one client before the others have their turn."""


class Receiver(Protocol):
    """What a channel tells of its client."""

    def received(self, received: fdpass.Received) -> None:
        """Take what the client sent."""

    def drained(self) -> None:
        """Know that everything given to `Channel.send` has been sent."""

    def disconnected(self) -> None:
        """Know that the client has gone; the channel is closed."""


class Channel:
    """One connected client.

    While a client does not take what we send it, nothing more is read from it.
    """

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._loop = loop
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()
        self._receiver: Receiver
        self._held = False
        self.open = True
        self.sent_all = True
        """Whether everything given to `send` has reached the kernel."""

    def start(self, receiver: Receiver) -> None:
        """Begin to read, and tell this receiver."""
        self._receiver = receiver
        self._loop.add_reader(self._socket, self._on_readable)

    @property
    def sent_descriptors(self) -> bool:
        """Whether every descriptor given to `send` has reached the kernel."""
        return not any(descriptors for _, descriptors in self._unsent)

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send bytes, with descriptors attached to the first of them, now or when there is room.

        The descriptors stay the caller's, to be kept open until `sent_descriptors`.
        """
        if not self.open:
            return
        self._unsent.append((data, descriptors))
        if self.sent_all:
            self._flush()

    def yield_turn(self, go_on: Callable[[], None]) -> None:
        """Let others have their turn, then call ``go_on``; read nothing in between."""
        self._held = True
        self._loop.remove_reader(self._socket)
        self._loop.call_soon(self._take_turn, go_on)

    def close(self) -> None:
        """Hang up. The receiver is not told: whoever calls this knows."""
        if self.open:
            self.open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def _on_readable(self) -> None:
        for _ in range(_RECEIVES_PER_TURN):
            try:
                received = fdpass.receive(self._socket)
            except BlockingIOError:
                return
            except OSError:
                self._hang_up()
                return
            if not received.data:
                fdpass.close(received.descriptors)
                self._hang_up()
                return
            self._receiver.received(received)
            if not self.open or self._held or not self.sent_all:
                return

    def _take_turn(self, go_on: Callable[[], None]) -> None:
        self._held = False
        if self.open:
            if self.sent_all:
                self._loop.add_reader(self._socket, self._on_readable)
            go_on()

    def _flush(self) -> None:
        """Send what the socket takes; wait for room if it takes no more."""
        self.sent_all = False
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                sent = fdpass.send(self._socket, data, descriptors)
            except BlockingIOError:
                self._loop.remove_reader(self._socket)
                self._loop.add_writer(self._socket, self._on_writable)
                return
            except OSError:
                # Whoever sent is in the middle of something: tell it in a turn of its own.
                self._loop.remove_reader(self._socket)
                self._loop.call_soon(self._hang_up)
                return
            if sent == len(data):
                self._unsent.popleft()
            else:
                self._unsent[0] = (data[sent:], ())
        self.sent_all = True

    def _on_writable(self) -> None:
        self._flush()
        if self.open and self.sent_all:
            self._loop.remove_writer(self._socket)
            if not self._held:
                self._loop.add_reader(self._socket, self._on_readable)
            self._receiver.drained()

    def _hang_up(self) -> None:
        if self.open:
            self.close()
            self._receiver.disconnected()
