"""Information from the kernel about an open descriptor; unavailable values are None."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
import termios
from contextlib import suppress
from pathlib import Path
from typing import Any

from scache.model import SocketInfo
from scache.unix.sockopt import TCP_STATES
from scache.unix.statx import type_of

_SOCKETS = {
    (socket.AF_INET, socket.SOCK_STREAM): "tcp",
    (socket.AF_INET6, socket.SOCK_STREAM): "tcp",
    (socket.AF_INET, socket.SOCK_DGRAM): "udp",
    (socket.AF_INET6, socket.SOCK_DGRAM): "udp",
    (socket.AF_UNIX, socket.SOCK_STREAM): "unix",
    (socket.AF_UNIX, socket.SOCK_DGRAM): "unix datagram",
    (socket.AF_UNIX, socket.SOCK_SEQPACKET): "unix seqpacket",
}

_FILES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFIFO: "pipe",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFSOCK: "socket",
}

_TCP_INFO_SIZE = 72
_TCP_RTT = 68
"""The offset of ``tcpi_rtt`` in struct tcp_info (Linux, include/uapi/linux/tcp.h)."""


def facts_of(descriptor: int) -> SocketInfo:
    """Return information about a descriptor, without reading from it or changing it.

    A file server is never asked, because it may not answer.
    """
    try:
        kind = stat.S_IFMT(type_of(descriptor)[0])
    except OSError:
        return SocketInfo(descriptor, "closed")
    if kind == stat.S_IFSOCK:
        with suppress(OSError):
            return _socket_facts(descriptor)
    unread = _unread(descriptor) if kind == stat.S_IFIFO else None
    return SocketInfo(descriptor, _FILES.get(kind) or _anonymous(descriptor), unread_bytes=unread)


def _anonymous(descriptor: int) -> str:
    """Return the name in /proc of a kernel object that is not a file, such as ``eventfd``."""
    with suppress(OSError):
        target = os.fspath(Path(f"/proc/self/fd/{descriptor}").readlink())
        return target.removeprefix("anon_inode:").strip("[]")
    return "unknown"


def _socket_facts(descriptor: int) -> SocketInfo:
    sock = socket.socket(fileno=descriptor)
    try:
        kind = _SOCKETS.get((sock.family, sock.type), "socket")
        local, peer = _address(sock.getsockname), _address(sock.getpeername)
        tcp_state = rtt = None
        if kind == "tcp":
            with suppress(OSError):
                info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
                tcp_state = TCP_STATES[info[0]] if info[0] < len(TCP_STATES) else None
                (rtt,) = struct.unpack_from("I", info, _TCP_RTT)
        return SocketInfo(descriptor, kind, local, peer, tcp_state, rtt, _unread(descriptor))
    finally:
        sock.detach()


def _unread(descriptor: int) -> int | None:
    try:
        answer = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
    except OSError:
        return None
    (unread,) = struct.unpack("i", answer)
    return int(unread)


def _address(ask: Any) -> str | None:  # noqa: ANN401 - a method of a socket
    try:
        address = ask()
    except OSError:
        return None
    match address:
        case (str(host), int(port)):
            return f"{host}:{port}"
        case (str(host), int(port), _, _):
            return f"[{host}]:{port}"
        case bytes():  # the abstract namespace (unix(7))
            return "@" + address.removeprefix(b"\0").decode(errors="backslashreplace")
        case "":  # a socket without a name
            return None
        case str():
            return address.encode(errors="surrogateescape").decode(errors="backslashreplace")
        case _:  # netlink, vsock, packet and so on, which have no common notation
            return None
