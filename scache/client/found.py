"""A connection that was found, and the ownership of its descriptor."""

from __future__ import annotations

import os
import socket
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NoReturn, Self

_CLOSED = -1


class Found:
    """A connection taken out of the cache, with sole ownership of its descriptor.

    The descriptor is closed by `close`, at the end of a ``with`` block, or, with a ResourceWarning,
    when the object is dropped. `socket` and `detach` pass it to the caller. Do not pass
    `descriptor` to os.close: use `close`, or `detach` first. If the number was closed nevertheless
    and now belongs to another file, that file is not closed.
    """

    __slots__ = (
        "__weakref__",
        "_closing",
        "_guard",
        "_identity",
        "_numbers",
        "destination_properties",
        "endpoint_properties",
        "warns",
    )

    def __init__(
        self, descriptor: int, endpoint_properties: bytes, destination_properties: bytes = b""
    ) -> None:
        """Take ownership of a descriptor; -1 means none."""
        self._numbers: list[int] = []
        """The descriptor while it is owned."""
        # One step of this iterator closes the descriptor. No bytecode lies within the step, so a
        # signal handler cannot interrupt it with an exception. The weak reference takes the step
        # when the object is gone, so the descriptor is closed even if an exception ends `__del__`.
        self._closing = map(os.close, self._numbers)
        self._guard = weakref.ref(self, partial(next, self._closing))
        self._identity: tuple[int, int] | None = None
        self.warns = True
        """True if dropping the object with an open descriptor causes a ResourceWarning."""
        self.endpoint_properties = endpoint_properties
        """The exact properties that the connection was saved with."""
        self.destination_properties = destination_properties
        """The properties of the binding that matched; empty for ``find_endp``."""
        if descriptor != _CLOSED:
            self._numbers.append(descriptor)

    @classmethod
    def take(
        cls,
        descriptors: deque[int],
        endpoint_properties: bytes,
        destination_properties: bytes = b"",
    ) -> Self:
        """Remove the first of these descriptors and take ownership of it, in one step.

        Until `warns` is set, the object is closed without a warning, because the caller does not
        have it yet.
        """
        found = cls(_CLOSED, endpoint_properties, destination_properties)
        found.warns = False
        found._numbers.extend(map(deque[int].popleft, (descriptors,)))
        return found

    @property
    def descriptor(self) -> int:
        """The open descriptor; -1 after it was closed or passed to the caller.

        It is close-on-exec. Its flag O_NONBLOCK is as the last user of the connection left it.
        """
        number = self._number()
        if self._identity is None and number != _CLOSED:
            self._identity = _identity(number)
        return number

    def socket(self) -> socket.socket:
        """Return a socket object that owns the descriptor from now on.

        It has the default time-out of new sockets (`socket.setdefaulttimeout`): without one it
        blocks, even if the last user of the connection left it non-blocking. Raises ValueError if
        the descriptor was closed or passed on. Raises OSError, and keeps the descriptor, if it is
        not a socket.
        """
        number = self._owned()
        connection = socket.socket.__new__(socket.socket)
        try:
            socket.socket.__init__(connection, fileno=number)
            # The flag O_NONBLOCK belongs to the connection, not to the last user's socket object.
            connection.settimeout(connection.gettimeout())
            self._numbers.clear()
        except BaseException:
            if self._numbers:
                connection.detach()  # this object still owns the descriptor
            raise
        return connection

    def detach(self) -> int:
        """Return the descriptor as a number, which the caller must close.

        It is close-on-exec, and its flag O_NONBLOCK is as the last user of the connection left it.
        The object keeps only the properties. Raises ValueError if the descriptor was closed or
        passed on.
        """
        number = self._owned()
        self._numbers.clear()
        return number

    def close(self) -> None:
        """Close the descriptor, unless it was closed or passed on."""
        if self._is_ours(self._number()):
            next(self._closing, None)
        self._numbers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(
        self,
        _warn: Callable[..., None] = warnings.warn,
        _finalizing: Callable[[], bool] = sys.is_finalizing,
    ) -> None:
        if not getattr(self, "_numbers", None):
            return
        warns = self.warns and self._is_ours(self._number()) and not _finalizing()
        text = f"unclosed {self!r}" if warns else ""
        with suppress(OSError):
            self.close()
        if warns:
            _warn(text, ResourceWarning, stacklevel=2, source=self)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "Found cannot be pickled or copied: its descriptor has one owner; save the connection "
            "again to pass it to another process"
        )

    def __repr__(self) -> str:
        return (
            f"Found(descriptor={self._number()}, "
            f"endpoint_properties={self.endpoint_properties!r}, "
            f"destination_properties={self.destination_properties!r})"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Found) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((self.endpoint_properties, self.destination_properties))

    def _values(self) -> tuple[int, bytes, bytes]:
        return self._number(), self.endpoint_properties, self.destination_properties

    def _number(self) -> int:
        return self._numbers[0] if self._numbers else _CLOSED

    def _is_ours(self, number: int) -> bool:
        """Return False if the caller has closed the number that it read from `descriptor`."""
        return self._identity is None or self._identity == _identity(number)

    def _owned(self) -> int:
        number = self._number()
        if number == _CLOSED:
            raise ValueError("the descriptor of this connection was closed or passed to the caller")
        return number


def _identity(descriptor: int) -> tuple[int, int] | None:
    """Return the device and inode of an open file; None if the descriptor is not open."""
    try:
        facts = os.fstat(descriptor)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino
