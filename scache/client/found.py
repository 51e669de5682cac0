"""What a find returns."""

from __future__ import annotations

import os
import socket
import warnings
from types import TracebackType
from typing import Self

_CLOSED = -1


class Found:
    """A connection taken out of the cache, with sole ownership of its descriptor.

    The descriptor is closed by `close`, at the end of a ``with`` block, or, with a ResourceWarning,
    when the object is dropped. `socket` and `detach` give it away. Do not pass `descriptor` to
    os.close: use `close`, or `detach` first.
    """

    __slots__ = ("_descriptor", "destination_properties", "endpoint_properties")

    def __init__(
        self, descriptor: int, endpoint_properties: bytes, destination_properties: bytes = b""
    ) -> None:
        """Take ownership of a descriptor."""
        self._descriptor = descriptor
        self.endpoint_properties = endpoint_properties
        """The properties that it was saved with, exact."""
        self.destination_properties = destination_properties
        """The properties of the binding that led here; empty for ``find_endp``."""

    @property
    def descriptor(self) -> int:
        """The open descriptor; -1 once it is closed or given away.

        It is close-on-exec. Its flag O_NONBLOCK is as its last user left it.
        """
        return self._descriptor

    def socket(self) -> socket.socket:
        """Return a socket object that owns the descriptor from now on.

        It has the default time-out of new sockets (`socket.setdefaulttimeout`): without one it
        blocks, even if the last user of the connection left it non-blocking. Raises ValueError if
        the descriptor is closed or given away, and OSError, keeping it, if it is no socket.
        """
        connection = socket.socket(fileno=self._owned())
        self._descriptor = _CLOSED
        # The flag O_NONBLOCK belongs to the connection, not to the last user's socket object.
        connection.settimeout(connection.gettimeout())
        return connection

    def detach(self) -> int:
        """Return the descriptor, which is the caller's to close from now on.

        Raises ValueError if it is closed or given away.
        """
        descriptor = self._owned()
        self._descriptor = _CLOSED
        return descriptor

    def close(self) -> None:
        """Close the descriptor, unless it is closed or given away."""
        descriptor, self._descriptor = self._descriptor, _CLOSED
        if descriptor != _CLOSED:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self, _warn: type = ResourceWarning) -> None:
        if getattr(self, "_descriptor", _CLOSED) != _CLOSED:
            warnings.warn(f"unclosed {self!r}", _warn, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        return (
            f"Found(descriptor={self._descriptor}, "
            f"endpoint_properties={self.endpoint_properties!r}, "
            f"destination_properties={self.destination_properties!r})"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Found) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((self.endpoint_properties, self.destination_properties))

    def _values(self) -> tuple[int, bytes, bytes]:
        return self._descriptor, self.endpoint_properties, self.destination_properties

    def _owned(self) -> int:
        if self._descriptor == _CLOSED:
            raise ValueError("the descriptor of this connection is closed or given away already")
        return self._descriptor
