"""The credentials of the process at the other end of a UNIX socket."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct

from scache.model import Peer

_SO_PEERGROUPS = 59
"""Missing in Python's socket module (Linux, include/uapi/asm-generic/socket.h)."""
_SO_PEERPIDFD = 77
"""Missing in Python's socket module; since Linux 6.5 (include/uapi/asm-generic/socket.h)."""
_NO_PROCESS = (errno.ESRCH, errno.ENODATA, errno.EINVAL)
"""Errors of different kernels for a process that has ended and was waited for."""
_MAX_GROUPS = 256
"""The limit of Python's getsockopt; a process in more groups is treated as if it had none."""
_MAX_PROGRAM_SIZE = 64
"""Most bytes of a program name. The kernel keeps 15, and more for its own threads."""
_UCRED = struct.Struct("3i")
_GROUP_SIZE = struct.calcsize("I")
# Plain numbers, because arithmetic with the enumeration's members is as slow as a system call.
_SOL_SOCKET, _SO_PEERCRED = int(socket.SOL_SOCKET), int(socket.SO_PEERCRED)


def peer(sock: socket.socket) -> Peer:
    """Return the credentials of the peer at the time it connected (SO_PEERCRED, unix(7))."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(_SOL_SOCKET, _SO_PEERCRED, _UCRED.size))
    program = _program(pid)
    if program is not None and _has_ended(sock):
        program = None  # another process may have reused the pid
    return Peer(pid, uid, gid, program)


def peer_groups(sock: socket.socket) -> list[int]:
    """Return the supplementary groups of the peer when it connected (SO_PEERGROUPS, Linux 4.13)."""
    try:
        packed = sock.getsockopt(_SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS * _GROUP_SIZE)
    except OSError:
        return []
    return list(struct.unpack(f"{len(packed) // _GROUP_SIZE}I", packed))


def _program(pid: int) -> bytes | None:
    # Do not use a file object: creating it would take most of the time of accepting a client.
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
    """Return True if the process that connected has ended; always False before Linux 6.5."""
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
