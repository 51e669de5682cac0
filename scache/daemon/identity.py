"""Tells whether a descriptor is a socket of the daemon itself, by the sockets and not by a pid.

SO_PEERCRED of a connection names the process that called listen(2). That may have executed the
daemon since and left the listening socket to a child, and another process may get its pid.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterable

from scache import sockopt

_UNIX = int(socket.AF_UNIX)
_DOMAIN = int(socket.SO_DOMAIN)

# Linux, include/uapi/linux: netlink.h, sock_diag.h and unix_diag.h.
_SOCK_DIAG = 4
_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_ANY_STATE = 0xFFFFFFFF
_SHOW_PEER = 4
_PEER = 2
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_ERROR = struct.Struct("=i")
_ANSWER = struct.Struct("=BBBBIII")
_ATTRIBUTE = struct.Struct("=HH")
_INODE = struct.Struct("=I")
_ANSWER_SIZE = 4096


class OwnSockets:
    """The listening socket, and those of the clients that it has accepted."""

    def __init__(self, listening: socket.socket, clients: Callable[[], Iterable[int]]) -> None:
        """Recognize this socket, and the descriptors that ``clients`` returns at any time."""
        self._address, _ = sockopt.addresses(listening.fileno())
        self._listening = _inode(listening.fileno())
        self._clients = clients
        try:
            # The first question makes the kernel load its module, for which it waits.
            _peer_inode(listening.fileno())
            self._has_diagnosis = True
        except OSError:
            self._has_diagnosis = False

    def include(self, descriptor: int) -> bool:
        """Return True if this is one of them, or a client's end of a connection to the daemon.

        Both have the address of the listening socket at one end. Another socket may have the same
        address, so the kernel is asked for the socket at the other end; if it has no answer, the
        address decides.
        """
        if sockopt.option(descriptor, _DOMAIN) != _UNIX:
            return False
        if self._address not in sockopt.addresses(descriptor):
            return False
        ours = {self._listening, *map(_inode, self._clients())}
        if _inode(descriptor) in ours:
            return True
        if not self._has_diagnosis:
            return True
        try:
            peer = _peer_inode(descriptor)
        except OSError:  # such as that of a socket of another network namespace
            return True
        return peer in ours or peer == 0


def _inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


def _peer_inode(descriptor: int) -> int | None:
    """Return the inode number of the socket that a UNIX socket is connected to.

    It is 0 if that is not accepted yet or closed; None if the socket is not connected. Raises
    OSError if the kernel has no answer.
    """
    high, low = divmod(sockopt.cookie(descriptor) or 0, 2**32)
    body = _REQUEST.pack(_UNIX, 0, 0, _ANY_STATE, _inode(descriptor), _SHOW_PEER, low, high)
    header = _HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _SOCK_DIAG
    ) as ask:
        ask.sendto(header + body, (0, 0))
        answer = ask.recv(_ANSWER_SIZE)
    size, kind, *_ = _HEADER.unpack_from(answer)
    at = _HEADER.size
    if kind == _NLMSG_ERROR:
        (number,) = _ERROR.unpack_from(answer, at)
        raise OSError(-number, os.strerror(-number))
    at += _ANSWER.size
    while at < size:
        length, attribute = _ATTRIBUTE.unpack_from(answer, at)
        if attribute == _PEER:
            (inode,) = _INODE.unpack_from(answer, at + _ATTRIBUTE.size)
            return int(inode)
        at += (length + 3) & ~3
    return None
