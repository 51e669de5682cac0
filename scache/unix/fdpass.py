"""Bytes and descriptors over a UNIX socket: sendmsg(2) and recvmsg(2) with SCM_RIGHTS.

Every read of a socket that may carry descriptors must use `receive` or `receive_whole`, because a
plain recv(2) silently drops them.
"""

from __future__ import annotations

import _socket
import os
import socket
import struct
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain, repeat, starmap
from operator import itemgetter
from typing import TypeAlias

MAX_DESCRIPTORS = 253
"""Most descriptors of one message (SCM_MAX_FD, unix(7))."""

RECEIVE_SIZE = 65536
"""Most bytes that one `receive` returns."""

_INT_SIZE = struct.calcsize("i")
# Plain numbers, because arithmetic with the enumeration's members is as slow as a system call.
_TRUNCATED = int(socket.MSG_CTRUNC)
_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)
_NO_SIGNAL = int(socket.MSG_NOSIGNAL)
_CONTROL_SIZE = socket.CMSG_SPACE(MAX_DESCRIPTORS * _INT_SIZE)


def new_buffer() -> memoryview:
    """Return a buffer that can be reused for many calls of `receive`, one at a time."""
    return memoryview(bytearray(RECEIVE_SIZE))


def receive(
    sock: socket.socket, buffer: memoryview | None = None
) -> tuple[bytes, Sequence[int], bool]:
    """Read up to RECEIVE_SIZE bytes and the descriptors that came with them.

    Return the bytes, which are empty at the end of the stream; the descriptors in the order sent,
    close-on-exec, which the caller must close; and True if the kernel dropped descriptors because
    this process is at its limit (MSG_CTRUNC). The blocking mode and time-out of the socket apply.

    A reused ``buffer`` makes repeated calls cheaper and avoids memory fragmentation, because a new
    large buffer for each call mostly holds about a hundred bytes.
    """
    if buffer is None:
        buffer = new_buffer()
    size, control, flags, _ = sock.recvmsg_into([buffer], _CONTROL_SIZE, _CLOSE_ON_EXEC)
    data = bytes(buffer[:size])
    if not control:
        return data, (), bool(flags & _TRUNCATED)
    descriptors: Sequence[int] = ()
    for level, kind, payload in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors = (*descriptors, *struct.unpack(f"{len(payload) // _INT_SIZE}i", payload))
    return data, descriptors, bool(flags & _TRUNCATED)


Received: TypeAlias = tuple[int, list[tuple[int, int, bytes]], int, object]
"""The result of recvmsg_into: number of bytes, control messages, flags, address of the sender."""


def receive_whole(sock: _socket.socket, buffer: memoryview, received: list[Received]) -> None:
    """Append the result of one recvmsg(2) to a list, in a single step.

    A signal handler can raise an exception between any two Python instructions, but not inside
    `list.extend`. So the descriptors are either in the list or were never received.
    `move_descriptors` and `close_owned` work the same way, so each descriptor always has exactly
    one owner.
    """
    received.extend(map(sock.recvmsg_into, ([buffer],), (_CONTROL_SIZE,), (_CLOSE_ON_EXEC,)))


def move_descriptors(received: list[Received], descriptors: deque[int]) -> None:
    """Move the descriptors from a list that `receive_whole` has filled, in the order sent.

    The control messages must hold only descriptors. This is so unless a socket option requests
    others.
    """
    control = chain.from_iterable(map(_CONTROL, starmap(received.pop, repeat((0,), len(received)))))
    payloads = map(_PAYLOAD, control)
    descriptors.extend(chain.from_iterable(map(array, repeat("i"), payloads)))


def is_truncated(received: Received) -> bool:
    """Return True if the kernel dropped descriptors (MSG_CTRUNC)."""
    return bool(received[2] & _TRUNCATED)


def close_owned(descriptors: list[int] | deque[int]) -> None:
    """Remove each descriptor from the list and close it; ignore errors of close(2)."""
    while descriptors:
        try:
            _consume(map(os.close, starmap(descriptors.pop, repeat((), len(descriptors)))))
        except OSError:
            continue


_CONTROL, _PAYLOAD = itemgetter(1), itemgetter(2)
_consume = deque[None](maxlen=0).extend


def send(sock: _socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> int:
    """Send bytes, with descriptors attached to the first byte, in one sendmsg(2).

    The receiver gets duplicates; the caller still owns its descriptors. Return the number of bytes
    sent, which may be smaller than the size of the data. All descriptors were sent then.
    """
    if not descriptors:
        return sock.send(data, _NO_SIGNAL)
    packed = struct.pack(f"{len(descriptors)}i", *descriptors)
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)]
    return sock.sendmsg([data], control, _NO_SIGNAL)


def close(descriptors: Iterable[int]) -> None:
    """Close each descriptor, and ignore errors."""
    for descriptor in descriptors:
        try:
            os.close(descriptor)
        except OSError:
            continue
