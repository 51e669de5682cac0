"""Detection of hang-ups of the peers of parked connections.

No function here makes a system call that may wait for another program. For example, poll(2) and
fstat(2) of a file would block the daemon while its file server does not answer.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import stat
from enum import Enum, auto
from pathlib import Path

from scache.unix import sockopt
from scache.unix.statx import type_of

_TYPE, _LISTENS = int(socket.SO_TYPE), int(socket.SO_ACCEPTCONN)
_CONNECTED_TYPES = frozenset({int(socket.SOCK_STREAM), int(socket.SOCK_SEQPACKET)})
_ESTABLISHED = 1
_CONNECTED = frozenset({1, 4, 5, 6, 8, 9, 11})
"""Numbers of ESTABLISHED and of the states that follow it when one side has been shut down."""
_NEVER_CONNECTED = select.EPOLLHUP | select.EPOLLRDHUP | select.EPOLLERR | select.EPOLLIN
_TERMINAL_MAJORS = frozenset({4, 5, *range(136, 144)})
"""Terminals, ptmx and pseudo-terminals (Linux, Documentation/admin-guide/devices.txt)."""


class Kind(Enum):
    """The kind of a descriptor. It decides which events mean a hang-up."""

    ESTABLISHED = auto()
    """A connected TCP socket. It is dead when its state is no longer ESTABLISHED."""
    LISTENING = auto()
    """A listening stream or seqpacket socket. A connection that waits for accept(2) is not data."""
    STREAM = auto()
    """Another stream or seqpacket socket. POLLHUP without POLLRDHUP means that it never had a
    peer."""
    DATAGRAM = auto()
    """A datagram or raw socket. POLLERR alone reports an undelivered packet (ICMP); the peer may
    answer the next one."""
    POLLABLE = auto()
    """A pipe, a terminal or a kernel object such as an eventfd. POLLHUP and POLLERR mean a
    hang-up."""
    OPAQUE = auto()
    """A file, directory, epoll descriptor or device. It has no peer and is never polled."""


def kind_of(descriptor: int) -> Kind:
    """Return the kind of a descriptor without waiting for another program."""
    # Most connections are TCP, and one system call is enough to know them.
    if sockopt.tcp_state(descriptor) in _CONNECTED:
        return Kind.ESTABLISHED
    socket_type = sockopt.option(descriptor, _TYPE)
    if socket_type is None:
        return Kind.POLLABLE if _is_pollable(descriptor) else Kind.OPAQUE
    if socket_type not in _CONNECTED_TYPES:
        return Kind.DATAGRAM
    return Kind.LISTENING if sockopt.option(descriptor, _LISTENS) else Kind.STREAM


def has_ended(kind: Kind, events: int) -> bool:
    """Return True if these events, which must not be 0, mean a hang-up."""
    if kind in (Kind.ESTABLISHED, Kind.DATAGRAM):
        # The end of a connection also sets other events. EPOLLERR alone means a message in the
        # error queue, such as a transmit time stamp (MSG_ERRQUEUE, recvmsg(2)), or an error of one
        # datagram.
        return events != select.EPOLLERR
    if kind in (Kind.STREAM, Kind.LISTENING):
        return events & _NEVER_CONNECTED != select.EPOLLHUP
    return True


def lost_state(kind: Kind, descriptor: int) -> str | None:
    """Return the state of a TCP connection that is no longer ESTABLISHED, otherwise None.

    A shutdown(2) of our side through a duplicate of the descriptor sets no event.
    """
    if kind is not Kind.ESTABLISHED:
        return None
    state = sockopt.tcp_state(descriptor)
    if state == _ESTABLISHED:
        return None
    return sockopt.TCP_STATES[state] if state and state < len(sockopt.TCP_STATES) else "CLOSE"


def _is_pollable(descriptor: int) -> bool:
    """Return True if poll(2) of this descriptor, not a socket, cannot wait for a program."""
    try:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_PATH:
            return False
        mode, major = type_of(descriptor)
        if stat.S_ISFIFO(mode):
            return True
        if stat.S_ISCHR(mode):
            return major in _TERMINAL_MAJORS
        name = os.fspath(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        return False
    if name.startswith("anon_inode:"):
        return "eventpoll" not in name and "io_uring" not in name
    return name.startswith("pidfd:")
