"""What a find gives."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """A connection taken out of the cache: it is yours alone now, and yours to close."""

    descriptor: int
    """Close-on-exec; in the mode, blocking or not, in which its last user left it."""
    endpoint_properties: bytes
    """The properties that it was saved with, exact."""
    destination_properties: bytes = b""
    """The properties of the binding that led here; empty for ``find_endp``."""

    def socket(self) -> socket.socket:
        """Return a socket object that owns the descriptor from now on: call this once.

        Raises OSError, and leaves the descriptor with you, if it is no socket.
        """
        return socket.socket(fileno=self.descriptor)

    def close(self) -> None:
        """Close the descriptor, if you did not want it after all."""
        os.close(self.descriptor)
