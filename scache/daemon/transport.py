"""Non-blocking transport of bytes and descriptors over a client's socket."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from scache.daemon.client_log import client_logger, out_of_memory
from scache.daemon.poller import READABLE, WRITABLE, Poller
from scache.daemon.probe import SHORTAGES
from scache.errors import reason_of
from scache.unix import credentials, fdpass
from scache.unix.closing import Closer

_MUCH_SIZE = 4096
"""Bytes in one read from which the client waits in the scheduler's queue before the next read."""

_MANY_DESCRIPTORS = 16
"""Descriptors in one read from which the client waits in the queue before the next read."""

_BUFFER = fdpass.new_buffer()
"""Receive buffer for all clients. One thread serves them, so they can share it."""

_PEEK = int(socket.MSG_PEEK)
_BUG = "cannot go on with a client, which is disconnected; please report it"


class Receiver(Protocol):
    """The callbacks of a transport."""

    def received(self, data: bytes, descriptors: Sequence[int], truncated: bool) -> None:
        """Take over the data and descriptors of one `fdpass.receive`."""

    def undeliverable(self, data: bytes, error: OSError) -> bytes | None:
        """Return a replacement for data whose descriptors the kernel cannot send now.

        Nothing of the data has been sent. None disconnects the client.
        """

    def drained(self) -> None:
        """Continue after a backlog of `Transport.send` has been sent completely."""

    def disconnected(self) -> None:
        """Release resources after the client disconnected; the transport is closed."""


class Transport:
    """The transport of one connected client.

    Back-pressure: nothing is read from a client while a reply to it is not fully sent.
    """

    def __init__(self, sock: socket.socket, poller: Poller, closer: Closer) -> None:
        sock.setblocking(False)
        # Keep out-of-band bytes in the stream. Without this option, recvmsg(2) skips such a byte
        # and closes the descriptors that came with it before it returns.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self._closer = closer
        self._socket = sock
        self._descriptor = sock.fileno()
        self._poller = poller
        self._receiver: Receiver
        self._unsent: list[tuple[bytes, Sequence[int]]] = []
        self.unsent_size = 0
        """Bytes given to `send` that the kernel has not accepted yet."""
        self._watched = self._held = False
        self._go_on: Callable[[], None]
        self.waiting = False
        """True while the client waits in the scheduler's queue and nothing is read from it."""
        self.quanta = 0
        """Number of times that the client was taken from the queue and served."""
        self.open = True
        self._at_end = False
        """True once end of file was read: the receive queue of the socket is empty."""
        self.sent_all = True
        """True if the kernel has accepted everything given to `send`."""

    def start(self, receiver: Receiver) -> None:
        """Start reading from the client; call this receiver."""
        self._receiver = receiver
        self._watch()

    @property
    def sent_descriptors(self) -> bool:
        """True if the kernel has accepted every descriptor given to `send`."""
        return not any(descriptors for _, descriptors in self._unsent)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._descriptor

    def groups(self) -> list[int]:
        """Return the supplementary groups of the client (see `credentials.peer_groups`)."""
        return credentials.peer_groups(self._socket)

    def more_to_read(self) -> bool:
        """Return True if the client has sent data that is not read yet.

        The kernel splits a long message, and all its descriptors arrive with the first part. So
        surplus descriptors may belong to requests that are not read yet.
        """
        try:
            return bool(self._socket.recv(1, _PEEK))
        except OSError:
            return False

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send bytes, with descriptors attached to the first byte; queue what does not fit now.

        The caller owns the descriptors, and must keep them open until `sent_descriptors` is True.
        """
        if not self.sent_all:
            self._unsent.append((data, descriptors))
            self.unsent_size += len(data)
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
            # The client has disconnected. Report it later, because the caller of this method is
            # not prepared for `disconnected` here.
            sent = 0
            self._poller.call_later(self._hang_up)
        if sent < len(data):
            self._unsent.append((data[sent:], () if sent else descriptors))
            self.unsent_size += len(data) - sent
            self.sent_all = False
            self._poller.modify(self._descriptor, WRITABLE)

    def enqueue(self, go_on: Callable[[], None]) -> None:
        """Wait in the scheduler's queue, then call ``go_on``; read nothing meanwhile.

        A later call replaces ``go_on``. It is not called if reading is on `hold` by then.
        """
        self._go_on = go_on
        if not self.waiting:
            self.waiting = True
            self._poller.enqueue(self._descriptor, self._dequeued)

    def _dequeued(self) -> None:
        self.waiting = False
        self.quanta += 1
        if self.open and not self._held:
            try:
                self._watch()
            except OSError as error:
                client_logger.warning(
                    "cannot watch a client, which is disconnected: %s", reason_of(error)
                )
                self._hang_up()
                return
            self._call(self._go_on)

    def hold(self) -> None:
        """Read nothing until `release`; call this only if `sent_all` is True."""
        self._held = True
        self._unwatch()

    def release(self) -> None:
        """Resume reading after `hold`."""
        self._held = False
        self._watch()

    def close(self) -> None:
        """Close the socket without calling `Receiver.disconnected`."""
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

    def _unwatch(self) -> None:
        self._watched = False
        self._poller.remove(self._descriptor)

    def _on_ready(self) -> None:
        if not self.sent_all:
            self._on_writable()
            return
        if self.waiting:
            self._unwatch()  # level-triggered: each poll would report the socket
            return
        try:
            data, descriptors, truncated = fdpass.receive(self._socket, _BUFFER)
        except BlockingIOError:
            return
        except OSError:
            self._hang_up()
            return
        except MemoryError as error:
            self._give_up(error)  # what was received is lost
            return
        if not data:
            self._at_end = not descriptors
            self._closer.close(descriptors)
            self._hang_up()
            return
        try:
            self._receiver.received(data, descriptors, truncated)
        except Exception as error:  # noqa: BLE001 - `_give_up` logs it
            self._give_up(error)
        much = len(data) >= _MUCH_SIZE or len(descriptors) >= _MANY_DESCRIPTORS
        if much and self.open and not self.waiting:
            self.enqueue(self._on_ready)

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - `_give_up` logs it
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Disconnect the client because of an error that no callback expects."""
        if isinstance(error, MemoryError):
            out_of_memory()
        else:
            client_logger.error(_BUG, exc_info=error)
        self._hang_up()

    def _on_writable(self) -> None:
        unsent, self._unsent = self._unsent, []
        self.unsent_size = 0
        self.sent_all = True
        for data, descriptors in unsent:
            self.send(data, descriptors)
        if self.sent_all:
            self._poller.modify(self._descriptor, READABLE)
            self._call(self._receiver.drained)

    def _hang_up(self) -> None:
        if self.open:
            self.close()
            self._receiver.disconnected()
