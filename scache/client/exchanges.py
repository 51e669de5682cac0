"""What both clients do alike: arguments to exchanges, and outcomes to results."""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from scache import fdpass
from scache.client.found import Found
from scache.client.parkable import refuse_tls
from scache.errors import ProtocolError
from scache.model import Status
from scache.protocol.client import ClientConversation, Hit, Step
from scache.protocol.codec import LARGEST_ID, NUL
from scache.protocol.messages import (
    PURGE_SLICE,
    FindDest,
    FindEndp,
    PurgeDest,
    PurgeEndp,
    PurgeId,
    SaveDest,
    SaveEndp,
)

_LONGEST_TTL = 2**31 - 1
"""Seconds; what the wire can hold. Every server lowers it to its own limit."""

Text: TypeAlias = str | bytes
"""A label or properties: bytes, or text that is sent as UTF-8; no NUL."""


class HangupError(Exception):
    """The server closed the connection; no program ever sees this."""


class HasFileno(Protocol):
    """Anything with a descriptor, such as a socket."""

    def fileno(self) -> int:
        """Return the descriptor."""


class Purged(NamedTuple):
    """What a purge came to."""

    connections: int
    """How many were closed."""
    bindings: int
    """How many were removed."""


T = TypeVar("T")
Exchange: TypeAlias = Generator[Step, None, T]
Begin: TypeAlias = Callable[[ClientConversation], Exchange[T]]
"""Begins an exchange on the conversation of whatever connection there is."""


def save_endp(
    ttl: int, endpoint: Text, properties: Text, connection: HasFileno | int
) -> Begin[bool]:
    """Save one connection."""
    request = SaveEndp(_ttl(ttl), _bytes(endpoint), _bytes(properties))
    refuse_tls(connection)

    def exchange(conversation: ClientConversation) -> Exchange[bool]:
        return _accepted((yield from conversation.save_endp(request, _descriptor(connection))))

    return exchange


def save_dest(ttl: int, destination: Text, properties: Text, endpoint: Text) -> Begin[bool]:
    """Save one binding."""
    request = _save_dest(ttl, destination, properties, endpoint)

    def exchange(conversation: ClientConversation) -> Exchange[bool]:
        return _accepted((yield from conversation.save_dest(request)))

    return exchange


def find_endp(endpoint: Text) -> Begin[Found | None]:
    """Find one connection of an endpoint."""
    return _find(FindEndp(_bytes(endpoint)))


def find_dest(destination: Text) -> Begin[Found | None]:
    """Find one connection for a destination."""
    return _find(FindDest(_bytes(destination)))


def save_many(items: Iterable[tuple[int, Text, Text, HasFileno | int]]) -> Begin[list[bool]]:
    """Save many connections."""
    requests = []
    # Kept until all is done: a generator's socket that nobody else has would be closed before,
    # and its descriptor name something else.
    connections = []
    for ttl, endpoint, properties, connection in items:
        requests.append(SaveEndp(_ttl(ttl), _bytes(endpoint), _bytes(properties)))
        refuse_tls(connection)
        connections.append(connection)

    def exchange(conversation: ClientConversation) -> Exchange[list[bool]]:
        descriptors = [_descriptor(connection) for connection in connections]
        statuses = yield from conversation.save_many(requests, descriptors)
        return [_accepted(status) for status in statuses]

    return exchange


def save_dest_many(items: Iterable[tuple[int, Text, Text, Text]]) -> Begin[list[bool]]:
    """Save many bindings."""
    requests = [_save_dest(*item) for item in items]

    def exchange(conversation: ClientConversation) -> Exchange[list[bool]]:
        statuses = yield from conversation.save_many(requests, ())
        return [_accepted(status) for status in statuses]

    return exchange


def find_many(endpoints: Iterable[Text]) -> Begin[list[Found | None]]:
    """Find one connection of each endpoint."""
    return _find_many([FindEndp(_bytes(endpoint)) for endpoint in endpoints])


def find_dest_many(destinations: Iterable[Text]) -> Begin[list[Found | None]]:
    """Find one connection for each destination."""
    return _find_many([FindDest(_bytes(destination)) for destination in destinations])


def snapshot() -> Begin[int]:
    """Get an image of all that is cached."""
    return ClientConversation.snapshot


def purge(
    endpoints: Iterable[Text], destinations: Iterable[Text], ids: Iterable[int]
) -> Begin[Purged]:
    """Purge these connections, all of these endpoints, and all bindings of these destinations."""
    of_ids = [PurgeId(_id(number)) for number in ids]
    of_endpoints = [PurgeEndp(_bytes(endpoint)) for endpoint in endpoints]
    of_destinations = [PurgeDest(_bytes(destination)) for destination in destinations]

    begun = False

    def exchange(conversation: ClientConversation) -> Exchange[Purged]:
        nonlocal begun
        if begun and of_ids:
            # It may be another daemon by now. If its database is in memory, its ids began anew.
            raise HangupError
        begun = True
        # First, because it is these that an earlier server does not know.
        connections = yield from _purge(conversation, of_ids)
        connections += yield from _purge(conversation, of_endpoints)
        bindings = yield from _purge(conversation, of_destinations)
        return Purged(connections, bindings)

    return exchange


def _purge(
    conversation: ClientConversation, requests: Sequence[PurgeEndp | PurgeDest | PurgeId]
) -> Exchange[int]:
    """Purge until nothing is left; return how many it was."""
    total = 0
    while requests:
        counts = yield from conversation.purge_many(requests)
        total += sum(counts)
        answered = zip(requests, counts, strict=True)
        requests = [request for request, count in answered if count >= PURGE_SLICE]
    return total


def _find(request: FindEndp | FindDest) -> Begin[Found | None]:
    def exchange(conversation: ClientConversation) -> Exchange[Found | None]:
        return _found((yield from conversation.find(request)))

    return exchange


def _find_many(requests: list[FindEndp] | list[FindDest]) -> Begin[list[Found | None]]:
    def exchange(conversation: ClientConversation) -> Exchange[list[Found | None]]:
        outcomes: list[Hit | Status] = []
        try:
            yield from conversation.find_many(requests, outcomes)
            return [_found(outcome) for outcome in outcomes]
        except BaseException:
            # Nobody else will ever know of what was found before it went wrong.
            fdpass.close(outcome.descriptor for outcome in outcomes if isinstance(outcome, Hit))
            raise

    return exchange


def _save_dest(ttl: int, destination: Text, properties: Text, endpoint: Text) -> SaveDest:
    return SaveDest(_ttl(ttl), _bytes(destination), _bytes(properties), _bytes(endpoint))


def _ttl(ttl: int) -> int:
    return min(operator.index(ttl), _LONGEST_TTL)


def _id(number: int) -> int:
    value = operator.index(number)
    if not 0 <= value <= LARGEST_ID:
        raise ValueError(f"no connection has the id {value}: ids are from 1 to {LARGEST_ID}")
    return value


def _bytes(text: Text) -> bytes:
    data = text.encode() if isinstance(text, str) else bytes(text)
    if NUL in data:  # before anything is sent, be it one of many
        raise ValueError(f"a label or properties cannot hold a NUL: {text!r}")
    return data


def _descriptor(connection: HasFileno | int) -> int:
    return connection if isinstance(connection, int) else connection.fileno()


def _accepted(status: Status) -> bool:
    if status is Status.BAD:
        raise ProtocolError(
            "the server calls the request malformed: is the ttl at least 1, and no label too long?"
        )
    return status is Status.OK


def _found(outcome: Hit | Status) -> Found | None:
    if isinstance(outcome, Hit):
        return Found(outcome.descriptor, outcome.properties[-1], b"".join(outcome.properties[:-1]))
    if outcome is Status.BAD:
        raise ProtocolError("the server calls the request malformed: is the label too long?")
    return None
