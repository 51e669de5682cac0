"""Checks of the arguments of both clients, before anything is sent.

An argument of the wrong type raises TypeError, and a value that no server can take raises
ValueError. The message begins with the name of the argument. An argument that holds several
requests is checked as a whole, so either all of them are sent or none; the message then begins
with the place of the wrong one, such as ``items[3]: ttl``.
"""

from __future__ import annotations

import errno
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, SupportsIndex, TypeAlias, TypeGuard, TypeVar, cast

from scache.client.parkable import refuse_tls
from scache.client.raised import is_raised_by_call
from scache.protocol.codec import LARGEST_ID, MAX_MESSAGE_SIZE, NUL
from scache.protocol.messages import (
    FindDest,
    FindEndp,
    PurgeDest,
    PurgeEndp,
    PurgeId,
    Request,
    SaveDest,
    SaveEndp,
    encode_request,
)

Text: TypeAlias = str | bytes
"""A label or properties: bytes, or text that is sent as UTF-8; no NUL."""


class HasFileno(Protocol):
    """Anything with a descriptor, such as a socket."""

    def fileno(self) -> int:
        """Return the descriptor."""


_LONGEST_TTL = 2**31 - 1
"""Seconds; the largest ttl in the protocol. Every server lowers it to its own limit."""

_LONGEST_TIMEOUT = 1_000_000_000
"""Seconds, about thirty years; the daemon has the same limit for its settings."""

_SURELY_FITS = MAX_MESSAGE_SIZE - 200
"""Bytes of values with which a request is below MAX_MESSAGE_SIZE: its names take less than 200."""

R = TypeVar("R", bound=Request)


# Arguments of a client


def socket_path(path: object) -> str:
    """Return the path of the daemon's socket."""
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"path must be a path, not {_type(path)}")
    name = os.fsdecode(path)
    if not name:
        raise ValueError("path must not be empty")
    return name


def seconds(timeout: object) -> float:
    """Return the time-out of a client."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be a number of seconds, not {_type(timeout)}")
    if not 0 < timeout <= _LONGEST_TIMEOUT:  # nan is refused too: comparisons with it are false
        raise ValueError(
            f"timeout must be a number of seconds above 0 and at most {_LONGEST_TIMEOUT}, "
            f"not {timeout!r}"
        )
    return float(timeout)


# Requests


def save_endp(ttl: object, endpoint: object, properties: object, place: str = "") -> SaveEndp:
    """Return the request of these arguments."""
    request = SaveEndp(
        _ttl(ttl, place),
        _bytes(endpoint, place, "endpoint"),
        _bytes(properties, place, "properties"),
    )
    return _fitting(request, place)


def save_dest(
    ttl: object, destination: object, properties: object, endpoint: object, place: str = ""
) -> SaveDest:
    """Return the request of these arguments."""
    request = SaveDest(
        _ttl(ttl, place),
        _bytes(destination, place, "destination"),
        _bytes(properties, place, "properties"),
        _bytes(endpoint, place, "endpoint"),
    )
    return _fitting(request, place)


def find_endp(endpoint: object, place: str = "") -> FindEndp:
    """Return the request of this argument."""
    return _fitting(FindEndp(_bytes(endpoint, place, "endpoint")), place)


def find_dest(destination: object, place: str = "") -> FindDest:
    """Return the request of this argument."""
    return _fitting(FindDest(_bytes(destination, place, "destination")), place)


def save_endps(items: object) -> tuple[list[SaveEndp], list[HasFileno | int]]:
    """Return the requests of these items, and their connections."""
    requests = []
    # Keep references: a socket that only the generator holds would be closed before it is sent,
    # and its descriptor number could name another file.
    connections = []
    names = "(ttl, endpoint, properties, connection)"
    for place, (ttl, endpoint, properties, connection) in _rows(items, names):
        requests.append(save_endp(ttl, endpoint, properties, place))
        connections.append(parkable(connection, place))
    return requests, connections


def save_dests(items: object) -> list[SaveDest]:
    """Return the requests of these items."""
    rows = _rows(items, "(ttl, destination, properties, endpoint)")
    return [
        save_dest(ttl, destination, properties, endpoint, place)
        for place, (ttl, destination, properties, endpoint) in rows
    ]


def find_endps(endpoints: object) -> list[FindEndp]:
    """Return the requests for one connection of each endpoint."""
    return [find_endp(endpoint, place) for place, endpoint in _each(endpoints, "endpoints")]


def find_dests(destinations: object) -> list[FindDest]:
    """Return the requests for one connection to each destination."""
    labels = _each(destinations, "destinations")
    return [find_dest(destination, place) for place, destination in labels]


def purge_endps(endpoints: object) -> list[PurgeEndp]:
    """Return the requests that purge these endpoints."""
    return [
        _fitting(PurgeEndp(_bytes(endpoint, place, "endpoint")), place)
        for place, endpoint in _each(endpoints, "endpoints")
    ]


def purge_dests(destinations: object) -> list[PurgeDest]:
    """Return the requests that purge these destinations."""
    return [
        _fitting(PurgeDest(_bytes(destination, place, "destination")), place)
        for place, destination in _each(destinations, "destinations")
    ]


def purge_ids(ids: object) -> list[PurgeId]:
    """Return the requests that purge the connections with these ids."""
    return [PurgeId(_id(number, place)) for place, number in _each(ids, "ids")]


# Connections


def parkable(connection: object, place: str = "") -> HasFileno | int:
    """Return a connection that has an open descriptor and can be saved.

    Raises OSError if the descriptor is not open, and NotParkable for a TLS socket.
    """
    refuse_tls(connection)
    number = descriptor(connection, place)
    try:
        os.get_inheritable(number)  # fcntl(2), which never waits for a file server
    except (OSError, OverflowError) as error:
        if not is_raised_by_call(error):
            raise
        text = f"{place}connection must be an open descriptor: {number} is not open"
        raise OSError(errno.EBADF, text) from None
    return cast(HasFileno | int, connection)


def descriptor(connection: object, place: str = "") -> int:
    """Return the descriptor of a connection; -1 for a closed socket."""
    fileno = getattr(connection, "fileno", None)
    number = fileno() if callable(fileno) else connection
    if _is_integer(number):
        return operator.index(number)
    given = "fileno() returns " if callable(fileno) else ""
    raise TypeError(
        f"{place}connection must be a socket, another object with fileno(), or a descriptor, "
        f"not {given}{_type(number)}"
    )


# Values


def _ttl(ttl: object, place: str) -> int:
    if not _is_integer(ttl):
        raise TypeError(f"{place}ttl must be a whole number of seconds, not {_type(ttl)}")
    value = operator.index(ttl)
    if value < 1:
        raise ValueError(f"{place}ttl must be at least 1 second, not {value}")
    return min(value, _LONGEST_TTL)


def _id(number: object, place: str) -> int:
    if not _is_integer(number):
        raise TypeError(f"{place}an id must be a whole number, not {_type(number)}")
    value = operator.index(number)
    if not 0 <= value <= LARGEST_ID:
        raise ValueError(f"{place}no connection has the id {value}: ids are from 1 to {LARGEST_ID}")
    return value


def _is_integer(value: object) -> TypeGuard[SupportsIndex]:
    """Return True for an integer of any type but bool."""
    return isinstance(value, int | SupportsIndex) and not isinstance(value, bool)


def _bytes(text: object, place: str, name: str) -> bytes:
    if isinstance(text, str):
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{place}{name} cannot be sent as UTF-8: {error}") from None
    elif isinstance(text, bytes | bytearray | memoryview):
        data = bytes(text)
    else:
        raise TypeError(f"{place}{name} must be str or bytes, not {_type(text)}")
    if NUL in data:
        raise ValueError(f"{place}{name} must not contain a NUL byte: {data[:100]!r}")
    return data


def _fitting(request: R, place: str) -> R:
    """Return a request; raise ValueError if it is too large for a server with the defaults."""
    if sum([len(value) for value in request if isinstance(value, bytes)]) <= _SURELY_FITS:
        return request
    size = len(encode_request(request))
    if size <= MAX_MESSAGE_SIZE:
        return request
    values = zip(request._fields, request, strict=True)
    sizes = {name: len(value) for name, value in values if isinstance(value, bytes)}
    longest = max(sizes, key=sizes.__getitem__)
    raise ValueError(
        f"{place}{longest} is too long ({sizes[longest]} bytes): the request would have {size} "
        f"bytes, and at most {MAX_MESSAGE_SIZE} are possible"
    )


# Arguments that hold several


def _rows(items: object, names: str) -> Iterator[tuple[str, Sequence[object]]]:
    """Yield each tuple of four, and its place."""
    for place, item in _each(items, "items"):
        if not isinstance(item, tuple | list) or len(item) != names.count(",") + 1:
            raise TypeError(f"{place}must be a tuple {names}, not {item!r:.100}")
        yield place, item


def _each(values: object, name: str) -> Iterator[tuple[str, object]]:
    """Yield each value of an iterable, and its place."""
    if isinstance(values, str | bytes | bytearray | memoryview):
        raise TypeError(f"{name} must be an iterable, such as a list, not one {_type(values)}")
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be an iterable, such as a list, not {_type(values)}")
    for at, value in enumerate(values):
        yield f"{name}[{at}]: ", value


def _type(value: object) -> str:
    return type(value).__name__ if value is not None else "None"
