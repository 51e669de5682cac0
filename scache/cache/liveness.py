"""Tells when the peer of a parked connection counts as hung up.

A descriptor is only asked what its kind answers without waiting for another program: a regular
file of a file server that does not answer would stop the daemon in poll(2) or fstat(2).
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

_DOMAIN, _TYPE = int(socket.SO_DOMAIN), int(socket.SO_TYPE)
_LISTENS = int(socket.SO_ACCEPTCONN)
_INTERNET = frozenset({int(socket.AF_INET), int(socket.AF_INET6)})
_CONNECTED_TYPES = frozenset({int(socket.SOCK_STREAM), int(socket.SOCK_SEQPACKET)})
_ESTABLISHED = 1
_CONNECTED = frozenset({1, 4, 5, 6, 8, 9, 11})
"""Numbers of ESTABLISHED and of the states that follow it when one side has been shut down."""
_NEVER_CONNECTED = select.EPOLLHUP | select.EPOLLRDHUP | select.EPOLLERR | select.EPOLLIN
_TERMINAL_MAJORS = frozenset({4, 5, *range(136, 144)})
"""Terminals, ptmx and pseudo-terminals (Linux, Documentation/admin-guide/devices.txt)."""


class Kind(Enum):
    """What a descriptor can be asked."""

    ESTABLISHED = auto()
    """A TCP connection that was ESTABLISHED when it was saved, and has hung up when it is not."""
    LISTENING = auto()
    """A stream or seqpacket socket that listens: a client that waits to be accepted is no data."""
    STREAM = auto()
    """Another stream or seqpacket socket: POLLHUP without POLLRDHUP means that it never had a
    peer."""
    DATAGRAM = auto()
    """A datagram or raw socket: POLLERR tells of a packet that was not delivered (ICMP), and the
    peer may answer the next one."""
    POLLABLE = auto()
    """A pipe, a terminal or an object of the kernel such as an eventfd: POLLHUP and POLLERR are a
    hang-up."""
    OPAQUE = auto()
    """A file, a directory, an epoll descriptor or a device: it has no peer, and is never polled."""


def kind_of(descriptor: int) -> Kind:
    """Return the kind of a descriptor, asking nothing that may wait for another program."""
    domain = sockopt.option(descriptor, _DOMAIN)
    if domain is None:
        return Kind.POLLABLE if _is_pollable(descriptor) else Kind.OPAQUE
    if sockopt.option(descriptor, _TYPE) not in _CONNECTED_TYPES:
        return Kind.DATAGRAM
    if domain in _INTERNET and sockopt.tcp_state(descriptor) in _CONNECTED:
        return Kind.ESTABLISHED
    return Kind.LISTENING if sockopt.option(descriptor, _LISTENS) else Kind.STREAM


def has_ended(kind: Kind, events: int) -> bool:
    """Return True if these events of a descriptor, of which there are some, tell of a hang-up."""
    if kind in (Kind.ESTABLISHED, Kind.DATAGRAM):
        # The end of a connection shows in others as well. Alone, EPOLLERR tells of a message in the
        # error queue, such as a time stamp of what was sent (MSG_ERRQUEUE, recvmsg(2)), or of an
        # error of one datagram.
        return events != select.EPOLLERR
    if kind in (Kind.STREAM, Kind.LISTENING):
        return events & _NEVER_CONNECTED != select.EPOLLHUP
    return True


def lost_state(kind: Kind, descriptor: int) -> str | None:
    """Return the state of a TCP connection that is no longer ESTABLISHED; else None.

    shutdown(2) through a duplicate of our own descriptor shows in no event.
    """
    if kind is not Kind.ESTABLISHED:
        return None
    state = sockopt.tcp_state(descriptor)
    if state == _ESTABLISHED:
        return None
    return sockopt.TCP_STATES[state] if state and state < len(sockopt.TCP_STATES) else "CLOSE"


def _is_pollable(descriptor: int) -> bool:
    """Return True if poll(2) of something that is no socket asks the kernel alone."""
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


def poll(descriptor: int, events: int) -> int:
    """Return which of these events a descriptor has now, and hang-ups and errors; 0 for none."""
    look = select.poll()
    look.register(descriptor, events)
    ready = look.poll(0)
    return ready[0][1] if ready else 0
