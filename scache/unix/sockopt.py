"""Queries about a descriptor that do not block; `tcp_state` and `addresses` are exceptions.

Another process can hold the lock of a shared TCP socket indefinitely, because recvmsg(2) keeps the
lock while it reads a page of the receiver's buffer from a slow file system. getsockname(2),
TCP_INFO, FIONREAD and MSG_PEEK wait for that lock, and Python's socket objects call getsockname(2)
when they are created. fstat(2) of a file may wait for a file server. The other functions here wait
for neither. Only one thread may use this module. Its calls do not release the interpreter lock,
except that of `poll`.
"""

from __future__ import annotations

import ctypes
import select
import socket
from collections.abc import Callable

_SOL_SOCKET = int(socket.SOL_SOCKET)
_TCP, _TCP_INFO = int(socket.IPPROTO_TCP), int(socket.TCP_INFO)
_COOKIE = 57
"""SO_COOKIE, missing in Python's socket module (Linux, include/uapi/asm-generic/socket.h)."""

TCP_STATES = (
    *("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT"),
    *("CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV"),
)
"""The name of each TCP state, by number (Linux, include/net/tcp_states.h)."""


# Looked up and allocated once, so a query costs only half a microsecond more than its system call.
_libc = ctypes.PyDLL(None)
_getsockopt = ctypes.PYFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p
)(("getsockopt", _libc))
_ASK_NAME = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_getsockname = _ASK_NAME(("getsockname", _libc))
_getpeername = _ASK_NAME(("getpeername", _libc))
_FAMILY_SIZE = 2
_MAX_ADDRESS_SIZE = 128
_name = ctypes.create_string_buffer(_MAX_ADDRESS_SIZE)
_name_at = ctypes.addressof(_name)
_answer = (ctypes.c_int * 3)()
_answer_at = ctypes.addressof(_answer)
_number = ctypes.c_int.from_buffer(_answer)
_size = ctypes.c_uint(ctypes.sizeof(_answer))
_size_at = ctypes.addressof(_size)
_cookie = ctypes.c_uint64()
_cookie_size = ctypes.c_uint(ctypes.sizeof(_cookie))


def option(descriptor: int, name: int) -> int | None:
    """Return the first number of a socket option (SOL_SOCKET); None if this is not a socket."""
    _size.value = 12
    if _getsockopt(descriptor, _SOL_SOCKET, name, _answer_at, _size_at):
        return None
    return _number.value


def addresses(descriptor: int) -> tuple[bytes, bytes]:
    """Return the addresses of a UNIX socket and of its peer (struct sockaddr_un).

    An address is empty if the socket has no name or no peer. Use this for UNIX sockets only,
    because getsockname(2) of other sockets may wait.
    """
    return _address(_getsockname, descriptor), _address(_getpeername, descriptor)


def _address(ask: Callable[[int, int, int], int], descriptor: int) -> bytes:
    _size.value = _MAX_ADDRESS_SIZE
    if ask(descriptor, _name_at, _size_at) or _size.value <= _FAMILY_SIZE:
        return b""
    return ctypes.string_at(_name_at, _size.value)


def cookie(descriptor: int) -> int | None:
    """Return the unique number of a socket until the next boot; None if this is not a socket."""
    _cookie_size.value = 8
    at, size_at = ctypes.addressof(_cookie), ctypes.addressof(_cookie_size)
    if _getsockopt(descriptor, _SOL_SOCKET, _COOKIE, at, size_at):
        return None
    return _cookie.value


def poll(descriptor: int, events: int) -> int:
    """Return the pending events of a descriptor: these, hang-ups and errors; 0 for none."""
    look = select.poll()
    look.register(descriptor, events)
    ready = look.poll(0)
    return ready[0][1] if ready else 0


def is_quiet(descriptor: int) -> bool:
    """Return True if a UNIX socket has nothing to read or accept and its peer has not hung up."""
    return not poll(descriptor, select.POLLIN)


def tcp_state(descriptor: int) -> int | None:
    """Return the state of a TCP socket (TCP_INFO, tcp(7)); None if this is not a TCP socket.

    This query takes the socket's lock, because no other one shows that our side was shut down.
    """
    _size.value = 12
    if _getsockopt(descriptor, _TCP, _TCP_INFO, _answer_at, _size_at):
        return None
    return _number.value & 0xFF
