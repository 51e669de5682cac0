"""The requests and replies of scache(8), and their encoding."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from scache.model import Status
from scache.protocol.codec import NUL, decode_id, decode_ttl, encode
from scache.version import __version__

ANNOUNCEMENT = encode([(b"protocol", b"connection_cache_protocol")])
"""The first message of the server, which Postfix 3.6 and later expect."""

DUMMY = encode([(b"dummy", b"")])
"""An acknowledgement in both directions, sent before and after a descriptor."""

DESCRIPTOR_BYTE = b"\0"
"""The byte that carries a descriptor."""


class SaveEndp(NamedTuple):
    """Park a connection under an endpoint."""

    ttl: int
    """Seconds."""
    endpoint: bytes
    properties: bytes


class FindEndp(NamedTuple):
    """Take the oldest connection of an endpoint."""

    endpoint: bytes


class SaveDest(NamedTuple):
    """Bind a destination to an endpoint."""

    ttl: int
    """Seconds."""
    destination: bytes
    properties: bytes
    endpoint: bytes


class FindDest(NamedTuple):
    """Take the oldest connection of the first bound endpoint that has one."""

    destination: bytes


class Hello(NamedTuple):
    """Request inline mode, our extension. For Postfix's scache(8) it is malformed."""

    features: frozenset[bytes] | None = None
    """The extensions that the client understands in replies; None if it sends no list."""


class Snapshot(NamedTuple):
    """Request a snapshot of the cache: a sealed memfd that holds a SQLite database."""


class PurgeEndp(NamedTuple):
    """Close up to PURGE_SLICE connections of an endpoint, oldest first."""

    endpoint: bytes


class PurgeDest(NamedTuple):
    """Remove up to PURGE_SLICE bindings of a destination."""

    destination: bytes


class PurgeId(NamedTuple):
    """Close one connection."""

    id: int
    """The id of its row in the table ``connection``."""


class Ping(NamedTuple):
    """Send a descriptor to the server and get it back; the cache is not involved."""


class Stats(NamedTuple):
    """Request the figures of the server, as JSON."""


class Follow(NamedTuple):
    """Request a message for each event from now on; the client makes no further request.

    Each field restricts the events; an empty one does not.
    """

    kind: bytes
    """A value of the column ``kind`` of the table ``event``."""
    status: bytes
    """A status in decimal. Events that are no requests have none."""
    endpoint: bytes
    """A pattern of SQLite's GLOB for the endpoint."""
    destination: bytes
    """A pattern of SQLite's GLOB for the destination."""


Observation = Stats | Follow
"""A request of an observer, which counts as no client."""

Admin = Snapshot | PurgeEndp | PurgeDest | PurgeId | Observation
"""An administrator's request, which is available in inline mode only."""

Request = SaveEndp | FindEndp | SaveDest | FindDest | Hello | Admin | Ping

PURGE_SLICE = 64
"""Most rows that one request purges, so that other clients do not wait for long. A client that
gets this count repeats the request."""


class Grammar(NamedTuple):
    """The encoding of one kind of request."""

    kind: type[Request]
    names: tuple[bytes, ...]
    """The attributes after ``request``, in the order of the fields of `kind`."""
    reply_properties: int
    """The number of ``property`` attributes after the ``status`` of the reply."""

    number: Callable[[bytes], int | None] | None = None
    """The decoder of the first attribute if it is a number; returns None for an invalid one."""


GRAMMAR: dict[bytes, Grammar] = {
    b"save_endp": Grammar(SaveEndp, (b"ttl", b"label", b"property"), 0, decode_ttl),
    b"find_endp": Grammar(FindEndp, (b"label",), 1),
    b"save_dest": Grammar(SaveDest, (b"ttl", b"label", b"property", b"label"), 0, decode_ttl),
    b"find_dest": Grammar(FindDest, (b"label",), 2),
    b"hello": Grammar(Hello, (), 0),
    b"snapshot": Grammar(Snapshot, (), 0),
    b"purge_endp": Grammar(PurgeEndp, (b"label",), 0),
    b"purge_dest": Grammar(PurgeDest, (b"label",), 0),
    b"purge_id": Grammar(PurgeId, (b"id",), 0, decode_id),
    b"ping": Grammar(Ping, (), 0),
    b"stats": Grammar(Stats, (), 0),
    b"follow": Grammar(Follow, (b"kind", b"status", b"endpoint", b"destination"), 0),
}
"""Every request, by its name on the wire."""

NAMES: dict[type[Request], bytes] = {grammar.kind: name for name, grammar in GRAMMAR.items()}
"""The name on the wire of each kind of request."""


def encode_request(request: Request) -> bytes:
    """Return the message of a request; raise ValueError if a value has a NUL byte."""
    name = NAMES[type(request)]
    if isinstance(request, Hello):
        words = None if request.features is None else b" ".join(sorted(request.features))
        return encode([(b"request", name), *(() if words is None else ((b"features", words),))])
    values = [value if isinstance(value, bytes) else b"%d" % value for value in request]
    return encode([(b"request", name), *zip(GRAMMAR[name].names, values, strict=True)])


_STATUS = tuple(b"status\0%d\0" % status for status in Status)


def encode_reply(status: Status, *properties: bytes) -> bytes:
    """Return the reply with this status and these properties, which must not have a NUL byte."""
    head = _STATUS[status]
    for value in properties:
        head += b"property\0%b\0" % value
    return head + b"\0"


STATUS_REPLY = tuple(encode_reply(status) for status in Status)
"""The reply to a save or to an unknown request, by status."""

_HIT = re.compile(_STATUS[Status.OK] + rb"((?:property\0[^\0]*\0){1,2})\0")


def without_hits(replies: bytes) -> bytes:
    """Return these replies with each hit of a find replaced by a miss."""

    def miss(hit: re.Match[bytes]) -> bytes:
        return encode_reply(Status.FAIL, *[b""] * (hit[1].count(NUL) // 2))

    return _HIT.sub(miss, replies)


INLINE_VERSION = b"1"

CARRIERS = frozenset({NAMES[SaveEndp], NAMES[Ping]})
"""The requests that carry a descriptor in inline mode."""

PING = NAMES[Ping]
"""The feature of a server that supports ``ping``."""

PURGE_ID = NAMES[PurgeId]
"""The feature of a server that supports ``purge_id``."""

STATS = NAMES[Stats]
"""The feature of a server that supports ``stats``."""

FOLLOW = NAMES[Follow]
"""The feature of a server that supports ``follow``."""

SHORTAGE = b"shortage"
"""The feature of a client that accepts the attribute ``shortage`` in a refusal, and the reason
why its ``hello`` is refused."""

FEATURES = (PING, PURGE_ID, SHORTAGE, STATS, FOLLOW)
"""The extensions that this version supports, as a client and as a server. A client lists the
extensions that it understands in replies. A server lists those that it understands in requests.
Neither side uses an extension that the other has not listed."""

_FEATURES = (b"features", b" ".join(FEATURES))

HELLO = encode_request(Hello(frozenset(FEATURES)))
"""The request for inline mode and for the server's list of features. Postfix's scache(8) and
daemons without features ignore the attributes after ``hello``."""


def read_features(attributes: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes] | None:
    """Return the features that these attributes list; None if there is no list.

    Several lists are joined. Features are separated by blanks; order and repetition do not matter.
    """
    lists = [value for name, value in attributes if name == b"features"]
    return frozenset(b" ".join(lists).split()) if lists else None


PURGED_NAMES = (b"status", b"count")
"""The attributes of the reply to a successful purge."""

STATS_NAMES = (b"status", b"stats")
"""The attributes of the reply to ``stats``; the second one is JSON."""

REFUSAL_NAMES = (b"status", b"reason")
"""The attributes of a refusal of an administrator's request, a ``ping`` or a ``hello``."""

SHORTAGE_NAMES = (*REFUSAL_NAMES, SHORTAGE)
"""The attributes of a refusal because the server is out of resources or time."""

_GRANTED = (
    (b"status", b"0"),
    (b"version", INLINE_VERSION),
    (b"server", f"scache {__version__}".encode()),
)

HELLO_REPLY = encode(_GRANTED)
"""Grants inline mode to a client that sent no features and accepts no further attribute."""

HELLO_REPLY_WITH_FEATURES = encode([*_GRANTED, _FEATURES])
"""Grants inline mode to a client that sent a list of features."""

EMPTY_REPLY = {
    grammar.kind: tuple(
        encode_reply(status, *[b""] * grammar.reply_properties) for status in Status
    )
    for grammar in GRAMMAR.values()
}
"""The reply with empty properties to each kind of request, by status."""
