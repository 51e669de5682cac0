"""A connection to the daemon: its socket, its conversation and the descriptors that came on it."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import repeat
from pathlib import Path

from scache.client.exchanges import HangupError
from scache.errors import DescriptorLimit, Unavailable
from scache.protocol.client import ClientConversation
from scache.unix import fdpass

_LONGEST_WAIT = 2**31 - 1
"""Milliseconds; the most that poll(2) takes."""

_FEW = 8
"""Descriptors for which it is cheaper to reserve each than to ask how many are open."""

_SLACK = 256
"""Descriptors that other threads may open between a request and its reply."""


class Connection:
    """A connection to the daemon, and every descriptor that came on it and was not passed on.

    At whatever bytecode a signal handler raises an exception, each descriptor has an owner: a list
    here, or the object that was given it. A connection that is not at rest is to be closed then.
    """

    def __init__(self) -> None:
        """Make the socket, which does not block; DescriptorLimit if there is no room for it."""
        self.at_rest = False
        """True between two requests, if the server answered all that it was asked."""
        self.told = False
        """True if the server may have acted on what it was sent of the request under way."""
        self.conversation = ClientConversation()
        self._heard = False
        self._received: list[fdpass.Received] = []
        self._spares: list[int] = []
        """Descriptors that keep room for those to come."""
        try:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            whose = "this process" if error.errno == errno.EMFILE else "the machine"
            raise DescriptorLimit(
                error.errno,
                f"there is no room for a connection to the daemon: raise the limit on open files "
                f"of {whose}",
            ) from error
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
            reason = error.strerror or error
            raise Unavailable(f"no daemon answers at {path}: {reason}") from error
        return True

    def begin_request(self) -> None:
        """Account for a new request, of which nothing was sent."""
        self.told = self._heard = False

    def rest(self) -> None:
        """Account for the end of an exchange."""
        if self._spares:
            fdpass.close_owned(self._spares)
        self.at_rest = True

    def wait_readable(self, seconds: float) -> bool:
        """Wait until there is something to receive; return False if the time is over."""
        return bool(self._readable.poll(min(seconds * 1000, _LONGEST_WAIT)))

    def wait_writable(self, seconds: float) -> None:
        """Wait until there is room to send, or the time is over."""
        writable = select.poll()
        writable.register(self.socket, select.POLLOUT)
        writable.poll(min(seconds * 1000, _LONGEST_WAIT))

    def make_room(self, count: int) -> int:
        """Do what `Room` asks for; DescriptorLimit, with the connection at rest, if none fits."""
        room = self.reserve(count)
        if not room:
            self.at_rest = True
            raise DescriptorLimit(
                errno.EMFILE,
                "this process has no room for another connection, so it was not asked for and "
                "stays in the cache: close some files or raise the limit on open files (ulimit -n)",
            )
        return room

    def reserve(self, count: int) -> int:
        """Keep room for so many descriptors until they are received; return how many fit."""
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
        """Give the conversation what one recvmsg(2) brings, if there is something to receive.

        HangupError at the end of the stream.
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
                # It closed without having read what it was sent.
                self.told = self._heard
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
        self._heard = True

    def send(self, data: bytes, descriptors: Sequence[int]) -> bytes:
        """Send as much as there is room for; return the rest. The descriptors go with the first."""
        # An exception from a signal handler may come when all has been sent.
        before, self.told = self.told, True
        try:
            sent = fdpass.send(self.socket, data, descriptors)
        except OSError as error:
            if not is_raised_by_call(error, fdpass.send):
                raise
            self.told = before
            if isinstance(error, ConnectionError):
                raise HangupError from error
            raise
        return data[sent:]

    def shut_down(self) -> None:
        """End the request that waits on this connection, whose descriptor must stay open for it."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up, and close every descriptor that was not passed on."""
        self.at_rest = False
        self.socket.close()

        fdpass.close_owned(self._spares)
        fdpass.move_descriptors(self._received, self.conversation.descriptors)
        fdpass.close_owned(self.conversation.descriptors)


def is_raised_by_call(error: BaseException, function: Callable[..., object] | None = None) -> bool:
    """Return True if what the catching function called, in C, raised the error itself.

    With a ``function`` in Python: if it was called, and what it called in C raised the error. False
    if a signal handler raised it, such as a TimeoutError, or another function in Python.
    """
    place = error.__traceback__
    if place is not None and function is not None:
        place = place.tb_next
        if place is None or place.tb_frame.f_code is not getattr(function, "__code__", None):
            return False
    return place is not None and place.tb_next is None


def send_courtesy(sock: socket.socket, data: bytes) -> None:
    """Send this now or never: without it the connection is of no more use, and is shut down."""
    try:
        sock.send(data, socket.MSG_NOSIGNAL)
    except OSError as error:
        if not is_raised_by_call(error):
            raise
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _is_room_for(count: int) -> bool:
    """Return True if this process can surely open so many descriptors.

    Linux 6.2 and later tell by the size of /proc/self/fd how many are open; before, it is 0.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        is_open = Path("/proc/self/fd").stat().st_size
    except OSError:
        return False
    return 0 < is_open <= limit - count
