"""A connection to the daemon: its socket, its conversation and the received descriptors."""

from __future__ import annotations

import _socket
import errno
import os
import resource
import select
import socket
from collections.abc import Sequence
from contextlib import suppress
from itertools import repeat
from pathlib import Path

from scache.client.exchanges import HangupError
from scache.client.raised import is_raised_by_call
from scache.errors import DescriptorLimit, Unavailable, reason_of
from scache.protocol.client import ClientConversation
from scache.unix import fdpass

_LONGEST_WAIT = 2**31 - 1
"""Milliseconds; the longest time-out of poll(2)."""

_FEW = 8
"""Below this number, reserving each descriptor is cheaper than counting the open ones."""

_SLACK = 256
"""Descriptors that other threads may open between a request and its reply."""


class Connection:
    """A connection to the daemon. It owns received descriptors until they are passed on.

    A signal handler may raise an exception at any bytecode. Each descriptor still has an owner
    then: a list of this object, or the object that it was passed to. The caller must close a
    connection that is not at rest after an exception.
    """

    def __init__(self) -> None:
        """Create a non-blocking socket; raise DescriptorLimit at the file descriptor limit."""
        self.at_rest = False
        """True between two requests if the server has answered all requests."""
        self.may_have_acted = False
        """True if the server may have acted on data that was sent for the current request."""
        self.conversation = ClientConversation()
        self._replied = False
        """True if the server has sent data since the current request began."""
        self._received: list[fdpass.Received] = []
        self._spares: list[int] = []
        """Placeholder descriptors that reserve room for those to be received."""
        try:
            # Not socket.socket, which eventlet replaces by a class without recvmsg_into(2).
            self.socket = _socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            limited = "this process" if error.errno == errno.EMFILE else "the machine"
            raise DescriptorLimit(
                error.errno,
                f"cannot open a connection to the daemon: {limited} has reached its limit on open "
                "files; close files or raise the limit",
            ) from error
        self._readable = None
        if _has_poll():
            self._readable = select.poll()
            self._readable.register(self.socket, select.POLLIN)

    def connect(self, path: str) -> bool:
        """Connect; return False while the daemon's backlog is full."""
        try:
            self.socket.connect(path)
        except BlockingIOError:
            return False
        except OSError as error:
            if not is_raised_by_call(error):
                raise
            reason = reason_of(error)
            advice = "; run as root or set socket_mode" if error.errno == errno.EACCES else ""
            message = f"cannot connect to the daemon at {path}: {reason}{advice}"
            raise Unavailable(message) from error
        return True

    def begin_request(self) -> None:
        """Reset the state for a new request, of which nothing has been sent."""
        self.may_have_acted = self._replied = False

    def rest(self) -> None:
        """Close the placeholder descriptors and mark the connection as at rest."""
        if self._spares:
            fdpass.close_owned(self._spares)
        self.at_rest = True

    def wait_readable(self, seconds: float) -> bool:
        """Wait until the socket is readable; return False after the time-out."""
        if self._readable is None:
            return bool(select.select([self.socket], [], [], seconds)[0])
        return bool(self._readable.poll(min(seconds * 1000, _LONGEST_WAIT)))

    def wait_writable(self, seconds: float) -> None:
        """Wait until the socket is writable, or until the time-out."""
        if not _has_poll():
            select.select([], [self.socket], [], seconds)
            return
        writable = select.poll()
        writable.register(self.socket, select.POLLOUT)
        writable.poll(min(seconds * 1000, _LONGEST_WAIT))

    def make_room(self, count: int) -> int:
        """Carry out a `Room` step: reserve up to ``count`` descriptors; return the number.

        Raises DescriptorLimit, with the connection at rest, if there is no room for one.
        """
        room = self.reserve(count)
        if not room:
            self.at_rest = True
            raise DescriptorLimit(
                errno.EMFILE,
                "cannot receive another descriptor: this process has reached its limit on open "
                "files; the remaining requests were not sent; close files or raise the limit "
                "(ulimit -n)",
            )
        return room

    def reserve(self, count: int) -> int:
        """Reserve ``count`` descriptors until they are received; return the number that fit."""
        missing = count - len(self._spares)
        if missing >= _FEW and _is_room_for(missing + _SLACK):
            return count
        try:
            self._spares.extend(map(os.dup, repeat(self.socket.fileno(), missing)))
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
        return len(self._spares)

    def receive(self, buffer: memoryview) -> None:
        """Pass the result of one recvmsg(2), if it does not block, to the conversation.

        Raises HangupError at the end of the stream.
        """
        spares = len(self._spares) if self.conversation.due else 0
        if spares:
            fdpass.close_owned(self._spares)
        try:
            fdpass.receive_whole(self.socket, buffer, self._received)
        except (BlockingIOError, ConnectionError) as error:
            if not is_raised_by_call(error, fdpass.receive_whole):
                raise
            if isinstance(error, BlockingIOError):
                return
            if isinstance(error, ConnectionResetError):
                # The server closed the connection without reading all data that was sent.
                self.may_have_acted = self._replied
            raise HangupError from error
        received = self._received[-1]
        if received[1]:
            fdpass.move_descriptors(self._received, self.conversation.descriptors)
        else:
            self._received.clear()
        if spares > 1:
            self.reserve(self.conversation.due - len(self.conversation.descriptors))
        size = received[0]
        self.conversation.receive(bytes(buffer[:size]), truncated=fdpass.is_truncated(received))
        if not size:
            raise HangupError
        self._replied = True

    def send(self, data: bytes, descriptors: Sequence[int]) -> bytes:
        """Send as much as fits; return the rest. The descriptors go with the first byte."""
        # A signal handler may raise an exception after the data was sent.
        before, self.may_have_acted = self.may_have_acted, True
        try:
            sent = fdpass.send(self.socket, data, descriptors)
        except OSError as error:
            if not is_raised_by_call(error, fdpass.send):
                raise
            self.may_have_acted = before
            if isinstance(error, ConnectionError):
                raise HangupError from error
            raise
        return data[sent:]

    def shut_down(self) -> None:
        """Interrupt the request that waits on this connection, without closing the descriptor."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection and every descriptor that was not passed on."""
        self.at_rest = False
        self.socket.close()

        fdpass.close_owned(self._spares)
        fdpass.move_descriptors(self._received, self.conversation.descriptors)
        fdpass.close_owned(self.conversation.descriptors)


def send_courtesy(sock: _socket.socket, data: bytes) -> None:
    """Send data without waiting; shut the connection down if that fails."""
    try:
        sock.send(data, socket.MSG_NOSIGNAL)
    except OSError as error:
        if not is_raised_by_call(error):
            raise
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _has_poll() -> bool:
    """Return False under eventlet, which removes poll(2) and has a select(2) of its own."""
    return hasattr(select, "poll")


def _is_room_for(count: int) -> bool:
    """Return True if this process can certainly open ``count`` more descriptors.

    The size of /proc/self/fd is the number of open descriptors since Linux 6.2, and 0 before.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        is_open = Path("/proc/self/fd").stat().st_size
    except OSError:
        return False
    return 0 < is_open <= limit - count
