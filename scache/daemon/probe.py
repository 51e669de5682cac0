"""A test send of a descriptor, made before the daemon promises it to a client."""

from __future__ import annotations

import errno
import socket

from scache.errors import reason_of
from scache.unix import fdpass

SHORTAGES = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
"""Errors of sendmsg(2) with descriptors that the receiver did not cause.

ETOOMANYREFS: without CAP_SYS_RESOURCE or CAP_SYS_ADMIN, the descriptors in flight of one user are
limited to RLIMIT_NOFILE (unix(7)).
"""


def shortage_message(error: OSError) -> str:
    """Return the log message for one of the errors in SHORTAGES."""
    why = "the kernel is short of memory"
    if error.errno == errno.ETOOMANYREFS:
        why = "the user of this daemon has too many on their way: raise the limit on open files"
        why += " (ulimit -n)"
    return f"no descriptor can be sent to a client now ({reason_of(error)}): {why}"


class Probe:
    """A socket for test sends of descriptors.

    Its peer is shut down for reading, so sendmsg(2) fails with EPIPE after the kernel has checked
    the limit and allocated the memory. This takes half the time of a real send and receive (5 us
    instead of 10 us).
    """

    def __init__(self) -> None:
        """Create the socket and its peer. Raises OSError if that fails."""
        self._socket, self._peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._peer.shutdown(socket.SHUT_RD)

    def shortage(self, descriptor: int) -> OSError | None:
        """Return the error if a descriptor cannot be sent to any client now, else None."""
        try:
            fdpass.send(self._socket, b".", (descriptor,))
        except BrokenPipeError:
            return None
        except OSError as error:
            return error
        return None

    def close(self) -> None:
        """Close the socket and its peer."""
        self._socket.close()
        self._peer.close()
