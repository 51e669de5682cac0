"""Tells whether a descriptor is a socket of the daemon itself, by the sockets and not by a pid.

SO_PEERCRED of a connection names the process that called listen(2). That may have executed the
daemon since and left the listening socket to a child, and another process may get its pid.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple

from scache.unix import sockopt

_UNIX = int(socket.AF_UNIX)
_DOMAIN = int(socket.SO_DOMAIN)

# Linux, include/uapi/linux: netlink.h, sock_diag.h and unix_diag.h.
_SOCK_DIAG = 4
_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_ANY_STATE = 0xFFFFFFFF
_SHOW = 2 | 4
_PLACE, _PEER = 1, 2
_NO_COOKIE = 2**64 - 1
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_ERROR = struct.Struct("=i")
_ANSWER = struct.Struct("=BBBBIII")
_ATTRIBUTE = struct.Struct("=HH")
_PLACE_VALUE = struct.Struct("=II")
_PEER_VALUE = struct.Struct("=I")
_ANSWER_SIZE = 4096


class OwnSockets:
    """The listening socket, those that it has accepted, and the client's end of each of these.

    The listening socket is bound to a place of its own, the inode of its file, which no other
    socket has while it is open. An accepted socket has the place of the one that accepted it.
    """

    def __init__(self, listening: socket.socket) -> None:
        """Recognize this socket, which is bound to a path, and what belongs to it."""
        self._address, _ = sockopt.addresses(listening.fileno())
        try:
            # The first question makes the kernel load its module, for which it waits.
            self._place = _diagnosis(listening.fileno()).place
        except OSError:
            self._place = None

    def include(self, descriptor: int) -> bool:
        """Return True if this is one of them.

        Each has the address of the listening socket at one end. Another socket may have the same
        address, so the kernel is asked for the place; if it has no answer, the address decides.
        """
        if sockopt.option(descriptor, _DOMAIN) != _UNIX:
            return False
        if self._address not in sockopt.addresses(descriptor):
            return False
        if self._place is None:
            return True
        try:
            place, peer = _diagnosis(descriptor)
            if place == self._place or peer == 0:
                return True
            return peer is not None and _diagnosis_of(peer).place == self._place
        except OSError:  # such as that of a socket of another network namespace
            return True


class _Diagnosis(NamedTuple):
    """What the kernel tells of a UNIX socket."""

    place: tuple[int, int] | None
    """Inode and device of the file that it is bound to; None if there is none."""
    peer: int | None
    """The inode of the socket that it is connected to, 0 if that is not accepted yet or closed.
    None if it is not connected."""


def _diagnosis(descriptor: int) -> _Diagnosis:
    cookie = sockopt.cookie(descriptor)
    return _diagnosis_of(os.fstat(descriptor).st_ino, _NO_COOKIE if cookie is None else cookie)


def _diagnosis_of(inode: int, cookie: int = _NO_COOKIE) -> _Diagnosis:
    """Ask for the socket with this inode, and this cookie if one is given.

    Raises OSError if the kernel has no answer.
    """
    high, low = divmod(cookie, 2**32)
    body = _REQUEST.pack(_UNIX, 0, 0, _ANY_STATE, inode, _SHOW, low, high)
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
    place: tuple[int, int] | None = None
    peer: int | None = None
    while at < size:
        length, attribute = _ATTRIBUTE.unpack_from(answer, at)
        value = at + _ATTRIBUTE.size
        if attribute == _PLACE:
            place = _PLACE_VALUE.unpack_from(answer, value)
        elif attribute == _PEER:
            (peer,) = _PEER_VALUE.unpack_from(answer, value)
        at += (length + 3) & ~3
    return _Diagnosis(place, peer)
