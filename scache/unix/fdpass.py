"""Bytes and descriptors over a UNIX socket: sendmsg(2) and recvmsg(2) with SCM_RIGHTS.

Every read of a socket that may carry descriptors must go through `receive`:
a plain recv(2) drops them without a word.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain, repeat, starmap
from operator import itemgetter
from typing import TypeAlias

from scache.model import Peer

MAX_DESCRIPTORS = 253
"""What the kernel takes with one message (SCM_MAX_FD, unix(7))."""

RECEIVE_SIZE = 65536
"""Bytes asked for by one `receive`."""

_INT_SIZE = struct.calcsize("i")
_SO_PEERGROUPS = 59
"""Which Python's socket module lacks (Linux, include/uapi/asm-generic/socket.h)."""
_SO_PEERPIDFD = 77
"""The same; since Linux 6.5."""
_NO_PROCESS = (errno.ESRCH, errno.ENODATA, errno.EINVAL)
"""What kernels say of a process that has ended and was waited for."""
_MAX_GROUPS = 256
"""As many as Python's getsockopt has room for; who has more is as good as in none."""
_MAX_PROGRAM_SIZE = 64
"""Bytes that the name of a program may have: the kernel keeps 15, and of its own threads more."""
_UCRED = struct.Struct("3i")
# Plain numbers: arithmetic with the enumeration's members costs as much as a system call.
_TRUNCATED = int(socket.MSG_CTRUNC)
_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)
_NO_SIGNAL = int(socket.MSG_NOSIGNAL)
_SOL_SOCKET, _SO_PEERCRED = int(socket.SOL_SOCKET), int(socket.SO_PEERCRED)
_CONTROL_SIZE = socket.CMSG_SPACE(MAX_DESCRIPTORS * _INT_SIZE)


def new_buffer() -> memoryview:
    """Return a buffer for many calls of `receive`, one at a time."""
    return memoryview(bytearray(RECEIVE_SIZE))


def receive(
    sock: socket.socket, buffer: memoryview | None = None
) -> tuple[bytes, Sequence[int], bool]:
    """Read up to RECEIVE_SIZE bytes and the descriptors that came with them.

    A buffer of the caller's own makes many calls cheaper, and keeps them from leaving the
    process's memory in pieces: a fresh one, of which mostly a hundred bytes are used, is the
    largest of all that is allocated again and again.

    Return the bytes, none at the end of the stream; the descriptors in the
    order sent, close-on-exec and the caller's to close; and whether the kernel
    had to drop some because this process is at its limit (MSG_CTRUNC). The
    socket's own blocking mode and timeout apply.
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
"""The result of recvmsg_into: a number of bytes, control messages, flags, the sender's address."""


def receive_whole(sock: socket.socket, buffer: memoryview, received: list[Received]) -> None:
    """Add the result of one recvmsg(2) to a list.

    An exception from a signal handler can come between any two instructions of Python, but not
    inside of `list.extend`: the descriptors are in the list, or were never received. So it is with
    `move_descriptors` and `close_owned`. Each descriptor has one owner at any moment.
    """
    received.extend(map(sock.recvmsg_into, ([buffer],), (_CONTROL_SIZE,), (_CLOSE_ON_EXEC,)))


def move_descriptors(received: list[Received], descriptors: deque[int]) -> None:
    """Empty a list that `receive_whole` has filled; append its descriptors in the order sent.

    The control messages must be descriptors alone, as they are unless the socket asks for others.
    """
    control = chain.from_iterable(map(_CONTROL, starmap(received.pop, repeat((0,), len(received)))))
    payloads = map(_PAYLOAD, control)
    descriptors.extend(chain.from_iterable(map(array, repeat("i"), payloads)))


def is_truncated(received: Received) -> bool:
    """Return whether the kernel had to drop descriptors (MSG_CTRUNC)."""
    return bool(received[2] & _TRUNCATED)


def close_owned(descriptors: list[int] | deque[int]) -> None:
    """Take each descriptor out and close it, whatever the kernel says of it."""
    while descriptors:
        try:
            _consume(map(os.close, starmap(descriptors.pop, repeat((), len(descriptors)))))
        except OSError:
            continue


_CONTROL, _PAYLOAD = itemgetter(1), itemgetter(2)
_consume = deque[None](maxlen=0).extend


def send(sock: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> int:
    """Send bytes, with descriptors attached to the first of them, in one sendmsg(2).

    The receiver gets duplicates: the caller's own stay open and the caller's.
    Returns the number of bytes sent, which may be fewer than given; the
    descriptors have gone with the first byte.
    """
    if not descriptors:
        return sock.send(data, _NO_SIGNAL)
    packed = struct.pack(f"{len(descriptors)}i", *descriptors)
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)]
    return sock.sendmsg([data], control, _NO_SIGNAL)


def close(descriptors: Iterable[int]) -> None:
    """Close each of them, whatever the kernel says of the one before."""
    for descriptor in descriptors:
        try:
            os.close(descriptor)
        except OSError:
            continue


def peer(sock: socket.socket) -> Peer:
    """Return who connected, as the kernel recorded it then (SO_PEERCRED, unix(7))."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(_SOL_SOCKET, _SO_PEERCRED, _UCRED.size))
    program = _program(pid)
    if program is not None and _has_ended(sock):
        program = None  # another process may have had the number
    return Peer(pid, uid, gid, program)


def peer_groups(sock: socket.socket) -> list[int]:
    """Return the supplementary groups of who connected, when it did (SO_PEERGROUPS, Linux 4.13)."""
    try:
        packed = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS * _INT_SIZE)
    except OSError:
        return []
    return list(struct.unpack(f"{len(packed) // _INT_SIZE}I", packed))


def _program(pid: int) -> bytes | None:
    # Without a file object, which would be the dearest part of connecting.
    try:
        descriptor = os.open(f"/proc/{pid}/comm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(descriptor, _MAX_PROGRAM_SIZE).removesuffix(b"\n")
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _has_ended(sock: socket.socket) -> bool:
    """Return True if the process that connected is no more; False before Linux 6.5."""
    try:
        pidfd = sock.getsockopt(_SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        return error.errno in _NO_PROCESS
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except OSError as error:
        return error.errno in _NO_PROCESS
    finally:
        os.close(pidfd)
    return False
