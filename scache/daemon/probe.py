"""Tells whether a descriptor can be sent, before a client is told that it will be."""

from __future__ import annotations

import errno
import socket

from scache import fdpass

SHORTAGES = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
"""Errors of a sendmsg(2) with descriptors that are no fault of the receiver.

ETOOMANYREFS: without CAP_SYS_RESOURCE, no more descriptors of a user may be on their way than one
process may open (unix(7)).
"""


def shortage_message(error: OSError) -> str:
    """Return what to log of one of these errors."""
    why = "the kernel is short of memory"
    if error.errno == errno.ETOOMANYREFS:
        why = "the user of this daemon has too many on their way: raise the limit on open files"
        why += " (ulimit -n)"
    return f"no descriptor can be sent to a client now ({error.strerror}): {why}"


class Probe:
    """A socket pair through which a descriptor is sent on trial."""

    def __init__(self) -> None:
        """Make the pair. Raises OSError if that is not possible."""
        self._in, self._out = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._in.setblocking(False)
        self._out.setblocking(False)

    def shortage(self, descriptor: int) -> OSError | None:
        """Return why a descriptor cannot be sent to any client now; None if it can."""
        try:
            fdpass.send(self._in, b".", (descriptor,))
        except OSError as error:
            return error
        self._out.recv(1)  # and drop the copy
        return None

    def close(self) -> None:
        """Close the pair."""
        self._in.close()
        self._out.close()
