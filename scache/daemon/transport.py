"""A client's socket: bytes and descriptors, in and out, never waiting."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from scache.daemon.poller import READABLE, WRITABLE, Poller
from scache.daemon.probe import SHORTAGES
from scache.unix import fdpass
from scache.unix.closing import Closer

_MUCH_SIZE = 4096
_MANY_DESCRIPTORS = 16
"""Bytes and descriptors of one read from which on whoever sent them has to wait for a turn."""

_BUFFER = fdpass.new_buffer()
"""For all clients: they are served in one thread, one after the other."""

_PEEK = int(socket.MSG_PEEK)
_A_BUG = "cannot go on with a client, which is disconnected; please report it"

client_logger = logging.getLogger("scache.clients")
"""For what clients can cause again and again: whoever writes the log may leave some of it out."""


class Receiver(Protocol):
    """What a transport tells of its client."""

    def received(self, data: bytes, descriptors: Sequence[int], truncated: bool) -> None:
        """Take what one `fdpass.receive` brought."""

    def undeliverable(self, data: bytes, error: OSError) -> bytes | None:
        """Return what to send instead of data whose descriptors the kernel cannot send now.

        None to hang up. Nothing of the data has been sent.
        """

    def drained(self) -> None:
        """Know that everything given to `Transport.send` has been sent."""

    def disconnected(self) -> None:
        """Know that the client has gone; the transport is closed."""


class Transport:
    """One connected client.

    While a client does not take what we send it, nothing more is read from it.
    """

    def __init__(self, sock: socket.socket, poller: Poller, closer: Closer) -> None:
        sock.setblocking(False)
        # A byte that is sent out of band stays in line with the descriptors that came with it:
        # recvmsg(2) would pass over it, and free these before it returned.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self._closer = closer
        self._socket = sock
        self._descriptor = sock.fileno()
        self._poller = poller
        self._receiver: Receiver
        self._unsent: list[tuple[bytes, Sequence[int]]] = []
        self._watched = self._held = False
        self._go_on: Callable[[], None]
        self.waiting = False
        """Whether the client's turn is still to come, and nothing is read from it meanwhile."""
        self.turns = 0
        """How many it has had."""
        self.open = True
        self._at_end = False
        """True once the end of what the client sends was read: nothing is left in the queue."""
        self.sent_all = True
        """Whether everything given to `send` has reached the kernel."""

    def start(self, receiver: Receiver) -> None:
        """Begin to read, and tell this receiver."""
        self._receiver = receiver
        self._watch()

    @property
    def sent_descriptors(self) -> bool:
        """Whether every descriptor given to `send` has reached the kernel."""
        return not any(descriptors for _, descriptors in self._unsent)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._descriptor

    def groups(self) -> list[int]:
        """Return the supplementary groups of the client (see `fdpass.peer_groups`)."""
        return fdpass.peer_groups(self._socket)

    def more_to_read(self) -> bool:
        """Whether the client has sent more than has been read.

        All the descriptors of one sendmsg(2) come with the first of the pieces that the kernel
        cuts it into, so those that nobody has asked for may belong to what is still to be read.
        """
        try:
            return bool(self._socket.recv(1, _PEEK))
        except OSError:
            return False

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send bytes, with descriptors attached to the first of them, now or when there is room.

        The descriptors stay the caller's, to be kept open until `sent_descriptors`.
        """
        if not self.sent_all:
            self._unsent.append((data, descriptors))
            return
        try:
            sent = fdpass.send(self._socket, data, descriptors)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            if descriptors and error.errno in SHORTAGES:
                instead = self._receiver.undeliverable(data, error)
                if instead is not None:
                    self.send(instead)
                    return
            # The client has gone. Whoever sends is in the middle of something: tell it later.
            sent = 0
            self._poller.call_later(self._hang_up)
        if sent < len(data):
            self._unsent.append((data[sent:], () if sent else descriptors))
            self.sent_all = False
            self._poller.modify(self._descriptor, WRITABLE)

    def yield_turn(self, go_on: Callable[[], None]) -> None:
        """Let others have their turn, then call ``go_on``; read nothing in between.

        Of several the last is called, and none if reading is on `hold` by then.
        """
        self._go_on = go_on
        if not self.waiting:
            self.waiting = True
            self._poller.enqueue(self._descriptor, self._take_turn)

    def _take_turn(self) -> None:
        self.waiting = False
        self.turns += 1
        if self.open and not self._held:
            try:
                self._watch()
            except OSError as error:
                client_logger.warning("cannot watch a client, which is disconnected: %s", error)
                self._hang_up()
                return
            self._tell(self._go_on)

    def hold(self) -> None:
        """Read nothing until `release`; to be called when everything has been sent."""
        self._held = True
        self._watch_no_more()

    def release(self) -> None:
        """Read again."""
        self._held = False
        self._watch()

    def close(self) -> None:
        """Hang up. The receiver is not told: whoever calls this knows."""
        if self.open:
            self.open = False
            self._poller.remove(self._descriptor)
            if self._at_end:
                self._socket.close()
            else:
                self._closer.close((self._socket.detach(),))

    def _watch(self) -> None:
        if not self._watched:
            self._poller.add(self._descriptor, self._on_ready)
            self._watched = True

    def _watch_no_more(self) -> None:
        self._watched = False
        self._poller.remove(self._descriptor)

    def _on_ready(self) -> None:
        if not self.sent_all:
            self._on_writable()
            return
        if self.waiting:
            self._watch_no_more()  # or it would be ready all the time
            return
        try:
            data, descriptors, truncated = fdpass.receive(self._socket, _BUFFER)
        except BlockingIOError:
            return
        except OSError:
            self._hang_up()
            return
        if not data:
            self._at_end = not descriptors
            self._closer.close(descriptors)
            self._hang_up()
            return
        try:
            self._receiver.received(data, descriptors, truncated)
        except Exception:
            client_logger.exception(_A_BUG)
            self._hang_up()
        much = len(data) >= _MUCH_SIZE or len(descriptors) >= _MANY_DESCRIPTORS
        if much and self.open and not self.waiting:
            self.yield_turn(self._on_ready)

    def _tell(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            client_logger.exception(_A_BUG)
            self._hang_up()

    def _on_writable(self) -> None:
        unsent, self._unsent = self._unsent, []
        self.sent_all = True
        for data, descriptors in unsent:
            self.send(data, descriptors)
        if self.sent_all:
            self._poller.modify(self._descriptor, READABLE)
            self._tell(self._receiver.drained)

    def _hang_up(self) -> None:
        if self.open:
            self.close()
            self._receiver.disconnected()
