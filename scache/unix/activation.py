"""Socket activation: the listening socket that systemd or another supervisor has opened.

The rules are those of sd_listen_fds(3): LISTEN_PID names this process, LISTEN_FDS is the number of
descriptors from 3 on, and LISTEN_FDNAMES has a name for each, separated by colons.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress

from scache.errors import SocketError, reason_of

FIRST_DESCRIPTOR = 3
"""The descriptor of the first socket (sd_listen_fds(3), SD_LISTEN_FDS_START)."""

SOCKET_NAME = "scache"
"""The FileDescriptorName= of the socket to serve, if the supervisor passes several."""

_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def activated_socket(environment: MutableMapping[str, str]) -> socket.socket | None:
    """Return the listening socket that the supervisor passed; None if it passed none.

    The variables are removed, because they are not meant for child processes. Raises SocketError
    if the descriptors cannot be used.
    """
    given = {name: environment.pop(name, "") for name in _VARIABLES}
    if given["LISTEN_PID"] != str(os.getpid()):
        return None
    count = int(given["LISTEN_FDS"]) if given["LISTEN_FDS"].isdecimal() else 0
    descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + count)
    for descriptor in descriptors:
        with suppress(OSError):
            os.set_inheritable(descriptor, False)
    if not descriptors:
        return None
    names = given["LISTEN_FDNAMES"].split(":")
    chosen = [each for each, name in zip(descriptors, names, strict=False) if name == SOCKET_NAME]
    if not chosen and len(descriptors) == 1:
        chosen = list(descriptors)
    if len(chosen) != 1:
        raise SocketError(
            f"the supervisor passed {count} sockets: pass one, or name one of them {SOCKET_NAME} "
            "(FileDescriptorName= in a socket unit)"
        )
    return inherited_socket(chosen[0])


def inherited_socket(descriptor: int) -> socket.socket:
    """Take over the descriptor of a listening UNIX stream socket.

    Raises SocketError if it is not one.
    """
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise SocketError(
            f"descriptor {descriptor}, which should be the listening socket, cannot be used: "
            f"{reason_of(error)}"
        ) from error
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or not _listens(sock):
        sock.close()
        raise SocketError(
            f"descriptor {descriptor} is not a listening UNIX stream socket: use "
            "ListenStream= with a path in the socket unit, and Accept=no"
        )
    if not isinstance(sock.getsockname(), str):
        sock.close()
        raise SocketError(
            f"descriptor {descriptor} is an abstract socket, which has no file mode, so any user "
            "could take connections from it: use ListenStream= with a path in the socket unit"
        )
    os.set_inheritable(descriptor, False)
    sock.setblocking(False)
    # SO_PEERCRED of a client names the process that called listen(2) last (unix(7)): without this
    # call it would name the supervisor.
    sock.listen(socket.SOMAXCONN)
    return sock


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
