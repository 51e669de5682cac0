"""Refusal of TLS connections, whose keys are in the process and not in the kernel."""

from __future__ import annotations

import io
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress

from scache.errors import NotParkable

_DEPTH = 4
_MOST_OBJECTS = 200
"""The most objects that the search for a wrapped TLS socket examines."""

_WRAPPED = ("raw", "buffer")
"""Attributes of files of the module io that hold the wrapped file but are not in __dict__."""


def refuse_tls(connection: object) -> None:
    """Raise NotParkable if an object is a Python TLS socket or wraps one."""
    ssl = sys.modules.get("ssl")  # if it is not imported, no TLS socket exists
    if ssl is None or isinstance(connection, int) or type(connection) is socket.socket:
        return
    descriptor = _fileno(connection)
    if any(
        isinstance(each, ssl.SSLSocket) and (each is connection or _fileno(each) == descriptor)
        for each in _inside(connection)
    ) or isinstance(_ssl_object_of(connection), ssl.SSLObject):
        raise NotParkable(
            "cannot save a TLS connection: its keys are in the process, so the finder could not "
            "decrypt it; save a connection to a TLS proxy instead"
        )


def _fileno(value: object) -> int | None:
    with suppress(Exception):  # saving the connection will raise the same error
        return int(value.fileno())  # type: ignore[attr-defined]
    return None


def _ssl_object_of(connection: object) -> object:
    """Return the TLS engine of an asyncio stream; None if it has none."""
    with suppress(Exception):
        return connection.get_extra_info("ssl_object")  # type: ignore[attr-defined]
    return None


def _inside(connection: object) -> Iterator[object]:
    """Yield an object and the objects that its attributes lead to."""
    seen = {id(connection)}
    found = [connection]
    for _ in range(_DEPTH):
        level, found = found, []
        for each in level:
            yield each
            for inner in _attributes(each):
                if id(inner) not in seen and len(seen) < _MOST_OBJECTS:
                    seen.add(id(inner))
                    found.append(inner)


def _attributes(value: object) -> Iterator[object]:
    if isinstance(value, str | bytes | bytearray | int | float | type | None):
        return
    with suppress(TypeError):
        yield from list(vars(value).values())
    names = [*_WRAPPED] if isinstance(value, io.IOBase) else []
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else list(slots)
    for name in names:
        with suppress(AttributeError, ValueError):
            yield getattr(value, name)
