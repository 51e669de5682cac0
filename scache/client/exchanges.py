"""Conversion of arguments to exchanges and of outcomes to results, shared by both clients."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

from scache.client import arguments
from scache.client.arguments import HasFileno, Text
from scache.client.found import Found
from scache.errors import DescriptorLimit, ProtocolError
from scache.model import Status
from scache.protocol.batches import MAX_BATCH
from scache.protocol.client import ClientConversation, Hit, Outcome, Step
from scache.protocol.messages import (
    PURGE_SLICE,
    FindDest,
    FindEndp,
    PurgeDest,
    PurgeEndp,
    PurgeId,
)
from scache.protocol.observation import Stats


class HangupError(Exception):
    """The server closed the connection. Internal: callers get `Unavailable` instead."""


class LateError(Exception):
    """A request has timed out. Internal: callers get `Unavailable` instead."""


class Room(NamedTuple):
    """A step: reserve room for descriptors to be received; send back the number that fit.

    It comes between two requests. If there is no room for any, the exchange must not go on.
    """

    descriptors: int


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
    request = arguments.save_endp(ttl, endpoint, properties)
    arguments.parkable(connection)

    def exchange(conversation: ClientConversation) -> Exchange[bool]:
        descriptor = arguments.descriptor(connection)
        return _accepted((yield from conversation.save_endp(request, descriptor)))

    return exchange


def save_dest(ttl: int, destination: Text, properties: Text, endpoint: Text) -> Begin[bool]:
    """Save one binding."""
    request = arguments.save_dest(ttl, destination, properties, endpoint)

    def exchange(conversation: ClientConversation) -> Exchange[bool]:
        return _accepted((yield from conversation.save_dest(request)))

    return exchange


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
            raise ProtocolError(
                "the server rejected a find as malformed; its max_message_size may be too low"
            )

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
    requests, connections = arguments.save_endps(items)

    def exchange(conversation: ClientConversation) -> Exchange[list[bool]]:
        descriptors = [arguments.descriptor(connection) for connection in connections]
        statuses = yield from conversation.save_many(requests, descriptors)
        return [_accepted(status) for status in statuses]

    return exchange


def save_dest_many(items: Iterable[tuple[int, Text, Text, Text]]) -> Begin[list[bool]]:
    """Save many bindings."""
    requests = arguments.save_dests(items)

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


def stats() -> Begin[Stats]:
    """Request the figures of the server. Raises TooOld if it does not know this request."""

    def exchange(conversation: ClientConversation) -> Exchange[Stats]:
        figures = yield from conversation.stats()
        try:
            return cast(Stats, json.loads(figures))
        except ValueError as error:
            raise ProtocolError(f"the server sent invalid figures: {figures[:40]!r}") from error

    return exchange


def ping() -> Begin[None]:
    """Check that the server answers, and that a descriptor passes to it and back.

    A server that does not know ``ping`` gets a request that changes nothing: a second ``hello`` in
    inline mode, else a find of a label that no client can have saved.
    """
    unused = [FindEndp(b"scache ping " + os.urandom(16).hex().encode())]

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
    of_ids = arguments.purge_ids(ids)
    of_endpoints = arguments.purge_endps(endpoints)
    of_destinations = arguments.purge_dests(destinations)
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


def _accepted(status: Status) -> bool:
    if status is Status.BAD:
        raise ProtocolError(
            "the server rejected the request as malformed; its max_message_size may be too low"
        )
    return status is Status.OK


def _found(outcome: Outcome, conversation: ClientConversation) -> Found | None:
    if isinstance(outcome, Hit):
        *of_binding, of_endpoint = outcome.properties
        return Found.take(conversation.descriptors, of_endpoint, b"".join(of_binding))
    return None
