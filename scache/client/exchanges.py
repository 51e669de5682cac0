"""Conversion of arguments to exchanges and of outcomes to results, shared by both clients."""

from __future__ import annotations

import errno
import operator
import os
import socket
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from scache.client.found import Found
from scache.client.parkable import refuse_tls
from scache.errors import DescriptorLimit, ProtocolError
from scache.model import Status
from scache.protocol.client import MAX_BATCH, ClientConversation, Hit, Outcome, Step
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
"""Seconds; the largest ttl in the protocol. Every server lowers it to its own limit."""

Text: TypeAlias = str | bytes
"""A label or properties: bytes, or text that is sent as UTF-8; no NUL."""


class HangupError(Exception):
    """The server closed the connection. Internal: callers get `Unavailable` instead."""


class LateError(Exception):
    """A request has timed out. Internal: callers get `Unavailable` instead."""


class Room(NamedTuple):
    """A step: reserve room for descriptors to be received; send back the number that fit.

    It comes between two requests. If there is no room for any, the exchange must not go on.
    """

    descriptors: int


class HasFileno(Protocol):
    """Anything with a descriptor, such as a socket."""

    def fileno(self) -> int:
        """Return the descriptor."""


class Purged(NamedTuple):
    """The result of a purge."""

    connections: int
    """Connections that were closed."""
    bindings: int
    """Bindings that were removed."""


T = TypeVar("T")
Exchange: TypeAlias = Generator[Step | Room, Any, T]
Finds: TypeAlias = Sequence[FindEndp] | Sequence[FindDest]
Begin: TypeAlias = Callable[[ClientConversation], Exchange[T]]
"""Begins an exchange on the conversation of the current connection."""


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


def of_endpoints(endpoints: Iterable[Text]) -> Finds:
    """Return the requests for one connection of each endpoint."""
    return [FindEndp(_bytes(endpoint)) for endpoint in endpoints]


def of_destinations(destinations: Iterable[Text]) -> Finds:
    """Return the requests for one connection for each destination."""
    return [FindDest(_bytes(destination)) for destination in destinations]


def find(requests: Finds, found: list[Found | None]) -> Begin[None]:
    """Find one connection for each request; append each result to ``found`` as it arrives.

    The exchange never requests more connections than this process has room for.
    """

    def exchange(conversation: ClientConversation) -> Exchange[None]:
        malformed = False

        def take(outcome: Outcome) -> None:
            nonlocal malformed
            malformed = malformed or outcome is Status.BAD
            found.append(_found(outcome, conversation))

        at = 0
        while at < len(requests):
            most = MAX_BATCH if conversation.inline else 1
            room = yield Room(min(most, len(requests) - at))
            assert room
            yield from conversation.find(requests[at : at + room], take)
            at += room
        if malformed:
            raise ProtocolError("the server rejected a malformed request: a label may be too long")

    return exchange


def hand_out(found: list[Found | None]) -> list[Found | None]:
    """Return the found connections to the caller, and enable their ResourceWarning."""
    for each in found:
        if each is not None:
            each.warns = True
    return found


def hand_over(found: list[Found | None], error: BaseException) -> None:
    """Attach the found connections to a DescriptorLimit; close them on any other error."""
    if isinstance(error, DescriptorLimit):
        error.found = found
        return
    for each in found:
        if each is not None:
            each.close()


def save_many(items: Iterable[tuple[int, Text, Text, HasFileno | int]]) -> Begin[list[bool]]:
    """Save many connections."""
    requests = []
    # Keep references: a socket that only the generator holds would be closed before it is sent,
    # and its descriptor number could name another file.
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


def snapshot() -> Begin[Found]:
    """Request a snapshot: a `Found` without properties that owns a sealed memfd.

    The memfd holds a SQLite database with the contents of the cache.
    """

    def exchange(conversation: ClientConversation) -> Exchange[Found]:
        yield Room(1)
        yield from conversation.snapshot()
        return Found.take(conversation.descriptors, b"")

    return exchange


def ping() -> Begin[None]:
    """Check that the server answers, and that a descriptor passes to it and back.

    A server that does not know ``ping`` gets a request that changes nothing: a second ``hello`` in
    inline mode, else a find of a label that no client can have saved.
    """
    unused = of_endpoints([b"scache ping " + os.urandom(16).hex().encode()])

    def exchange(conversation: ClientConversation) -> Exchange[None]:
        if conversation.supports_ping():
            yield Room(1)
            with _token() as token:
                yield from conversation.ping(token.fileno())
                with Found.take(conversation.descriptors, b"") as returned:
                    if not os.path.sameopenfile(returned.descriptor, token.fileno()):
                        raise ProtocolError("the daemon sent back another descriptor than it got")
        elif conversation.inline:
            yield from conversation.hello()
        else:
            yield from find(unused, [])(conversation)

    return exchange


def _token() -> socket.socket:
    """Return a new socket, whose inode number no other open file has."""
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise DescriptorLimit(
            error.errno,
            "cannot open a descriptor to send: the limit on open files is reached; close files or "
            "raise the limit (ulimit -n)",
        ) from error


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
            # Do not repeat on a new connection: a restarted daemon may reuse ids.
            raise HangupError
        begun = True
        # Ids come first: an earlier server refuses them, so nothing else was purged then.
        connections = yield from _purge(conversation, of_ids)
        connections += yield from _purge(conversation, of_endpoints)
        bindings = yield from _purge(conversation, of_destinations)
        return Purged(connections, bindings)

    return exchange


def _purge(
    conversation: ClientConversation, requests: Sequence[PurgeEndp | PurgeDest | PurgeId]
) -> Exchange[int]:
    """Repeat the purges until nothing is left; return the number of purged rows."""
    total = 0
    while requests:
        counts = yield from conversation.purge_many(requests)
        total += sum(counts)
        answered = zip(requests, counts, strict=True)
        requests = [request for request, count in answered if count >= PURGE_SLICE]
    return total


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
    if NUL in data:  # checked before anything is sent, so a batch fails as a whole
        raise ValueError(f"a label or properties cannot contain a NUL byte: {text!r}")
    return data


def _descriptor(connection: HasFileno | int) -> int:
    return connection if isinstance(connection, int) else connection.fileno()


def _accepted(status: Status) -> bool:
    if status is Status.BAD:
        raise ProtocolError(
            "the server rejected a malformed request: the ttl may be below 1, or a label too long"
        )
    return status is Status.OK


def _found(outcome: Outcome, conversation: ClientConversation) -> Found | None:
    if isinstance(outcome, Hit):
        *of_binding, of_endpoint = outcome.properties
        return Found.take(conversation.descriptors, of_endpoint, b"".join(of_binding))
    return None
