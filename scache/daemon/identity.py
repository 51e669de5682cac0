"""Detection of the daemon's own sockets among descriptors, by socket identity instead of pid.

SO_PEERCRED is not enough: it names the process that called listen(2). That process can pass the
listening socket to another process and end, and its pid can be used again.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple

from scache.unix import sockopt
from scache.unix.paths import Identity

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
    """The listening socket, the sockets accepted from it, and the client's end of each.

    The "place" of a bound socket is the device and inode of its file. No other listening socket
    has the same place while this one is open. An accepted socket has the place of the listening
    socket.
    """

    def __init__(self, listening: socket.socket) -> None:
        """Use this listening socket, which must be bound to a path."""
        self._address, _ = sockopt.addresses(listening.fileno())
        self._places: set[tuple[int, int] | None] = set()
        self.add(listening)

    def add(self, listening: socket.socket) -> None:
        """Use another listening socket as well, which has the same address."""
        try:
            # The first query makes the kernel load unix_diag, which blocks: do it at startup.
            place = _diagnosis(listening.fileno()).place
        except OSError:
            place = None
        self._places.add(place)

    def include(self, descriptor: int) -> bool:
        """Return True if a descriptor is one of these sockets.

        Each of them has the address of the listening socket at one end. Another socket may have
        the same address, so the place is compared too. If the kernel does not report the place, the
        address decides.
        """
        if sockopt.option(descriptor, _DOMAIN) != _UNIX:
            return False
        if self._address not in sockopt.addresses(descriptor):
            return False
        if None in self._places:
            return True
        try:
            place, peer = _diagnosis(descriptor)
            if place in self._places or peer == 0:
                return True
            return peer is not None and _diagnosis_of(peer).place in self._places
        except OSError:  # for example, the socket belongs to another network namespace
            return True


def is_bound_to(listening: socket.socket, file: Identity) -> bool:
    """Return True if a listening socket is bound to this file, or if that is not known."""
    try:
        place = _diagnosis(listening.fileno()).place
    except OSError:
        return True
    # The kernel reports 32 bits of the inode, and the device in a form of its own.
    return place is None or place[0] == file[1] & 0xFFFFFFFF


class _Diagnosis(NamedTuple):
    """The attributes of a UNIX socket that sock_diag(7) reports."""

    place: tuple[int, int] | None
    """Inode and device of the file that it is bound to; None if there is none."""
    peer: int | None
    """Inode of the connected peer; 0 if the peer is not accepted yet or closed; None if not
    connected."""


def _diagnosis(descriptor: int) -> _Diagnosis:
    cookie = sockopt.cookie(descriptor)
    return _diagnosis_of(os.fstat(descriptor).st_ino, _NO_COOKIE if cookie is None else cookie)


def _diagnosis_of(inode: int, cookie: int = _NO_COOKIE) -> _Diagnosis:
    """Query the kernel for the socket with this inode, and with this cookie if one is given.

    Raises OSError if the kernel does not find the socket.
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
