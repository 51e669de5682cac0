"""What a find gives."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """A connection taken out of the cache: it is yours alone now, and yours to close."""

    descriptor: int
    """Close-on-exec; its O_NONBLOCK flag is as its last user left it."""
    endpoint_properties: bytes
    """The properties that it was saved with, exact."""
    destination_properties: bytes = b""
    """The properties of the binding that led here; empty for ``find_endp``."""

    def socket(self) -> socket.socket:
        """Return a socket object that owns the descriptor from now on: call this once.

        It has the default time-out of new sockets (`socket.setdefaulttimeout`): without one it
        blocks, even if the last user of the connection left it non-blocking. Raises OSError, and
        leaves the descriptor with you, if it is no socket.
        """
        connection = socket.socket(fileno=self.descriptor)
        # The flag O_NONBLOCK belongs to the connection, not to the last user's socket object.
        connection.settimeout(connection.gettimeout())
        return connection

    def close(self) -> None:
        """Close the descriptor, if you did not want it after all."""
        os.close(self.descriptor)
