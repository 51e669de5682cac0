"""The requests and replies of scache(8), as values and as bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from scache.model import Status
from scache.protocol.codec import NUL, decode_id, decode_ttl, encode
from scache.version import __version__

ANNOUNCEMENT = encode([(b"protocol", b"connection_cache_protocol")])
"""What the server says first (Postfix 3.6 and later expect it)."""

DUMMY = encode([(b"dummy", b"")])
"""Says "go on", in both directions, around the passing of a descriptor."""

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
    """Ask for inline mode, our extension; Postfix's scache(8) calls it malformed."""

    features: frozenset[bytes] | None = None
    """What the client understands in replies; None if it does not know features."""


class Snapshot(NamedTuple):
    """Ask for an image of all that is known: a sealed memfd that holds a SQLite database."""


class PurgeEndp(NamedTuple):
    """Close the connections of an endpoint, the oldest first, PURGE_SLICE at the most."""

    endpoint: bytes


class PurgeDest(NamedTuple):
    """Remove the bindings of a destination, PURGE_SLICE at the most."""

    destination: bytes


class PurgeId(NamedTuple):
    """Close one connection."""

    id: int
    """Of its row, as the table ``connection`` has it."""


Admin = Snapshot | PurgeEndp | PurgeDest | PurgeId
"""What administrators ask for, in inline mode alone."""

Request = SaveEndp | FindEndp | SaveDest | FindDest | Hello | Admin

PURGE_SLICE = 64
"""What one request purges, so that nobody else waits for long; whoever gets so many asks again."""


class Grammar(NamedTuple):
    """How one kind of request stands on the wire."""

    kind: type[Request]
    names: tuple[bytes, ...]
    """The attributes after ``request``, in this order, which is that of the fields of `kind`."""
    reply_properties: int
    """How many ``property`` attributes follow the ``status`` of the reply."""

    number: Callable[[bytes], int | None] | None = None
    """Reads the first of the attributes, if that is a number; returns None if it is none."""


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
}
"""Every request, by its name on the wire."""

NAMES: dict[type[Request], bytes] = {grammar.kind: name for name, grammar in GRAMMAR.items()}
"""The name on the wire of each kind of request."""


def encode_request(request: Request) -> bytes:
    """Return the message that makes this request; ValueError if a string has a NUL byte."""
    name = NAMES[type(request)]
    if isinstance(request, Hello):
        words = None if request.features is None else b" ".join(sorted(request.features))
        return encode([(b"request", name), *(() if words is None else ((b"features", words),))])
    values = [value if isinstance(value, bytes) else b"%d" % value for value in request]
    return encode([(b"request", name), *zip(GRAMMAR[name].names, values, strict=True)])


_STATUS = tuple(b"status\0%d\0" % status for status in Status)


def encode_reply(status: Status, *properties: bytes) -> bytes:
    """Return the reply with this status and these properties (none of which has a NUL byte)."""
    head = _STATUS[status]
    for value in properties:
        head += b"property\0%b\0" % value
    return head + b"\0"


STATUS_REPLY = tuple(encode_reply(status) for status in Status)
"""The reply to a save, and to a request that nobody knows, by status."""

_HIT = re.compile(_STATUS[Status.OK] + rb"((?:property\0[^\0]*\0){1,2})\0")


def without_hits(replies: bytes) -> bytes:
    """Return replies with a miss in place of each hit of a find."""

    def miss(hit: re.Match[bytes]) -> bytes:
        return encode_reply(Status.FAIL, *[b""] * (hit[1].count(NUL) // 2))

    return _HIT.sub(miss, replies)


INLINE_VERSION = b"1"

PURGE_ID = NAMES[PurgeId]
"""The feature of a server that knows this request."""

FEATURES = (PURGE_ID,)
"""The words for the extensions that this version understands, as a client and as a server. A client
lists what it understands in replies, a server which requests and attributes it understands. Neither
sends anything that the other side has not listed."""

_FEATURES = (b"features", b" ".join(FEATURES))

HELLO = encode_request(Hello(frozenset(FEATURES)))
"""Asks for inline mode, and for the server's list of features. Postfix's scache(8) and daemons that
do not know features read no further than ``hello``."""


def read_features(attributes: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes] | None:
    """Return the words of the list of features among these attributes; None if there is no list.

    Several lists are one. Words have blanks between them; their order and number mean nothing.
    """
    lists = [value for name, value in attributes if name == b"features"]
    return frozenset(b" ".join(lists).split()) if lists else None


PURGED_NAMES = (b"status", b"count")
"""The attributes of the reply to a purge that was done."""

REFUSAL_NAMES = (b"status", b"reason")
"""The attributes of the reply to an administrator's request that was not granted."""

_GRANTED = (
    (b"status", b"0"),
    (b"version", INLINE_VERSION),
    (b"server", f"scache {__version__}".encode()),
)

HELLO_REPLY = encode(_GRANTED)
"""Grants inline mode to a client that does not know features, and takes no further attribute."""

HELLO_REPLY_WITH_FEATURES = encode([*_GRANTED, _FEATURES])
"""Grants inline mode to a client that knows features."""

EMPTY_REPLY = {
    grammar.kind: tuple(
        encode_reply(status, *[b""] * grammar.reply_properties) for status in Status
    )
    for grammar in GRAMMAR.values()
}
"""The reply to each kind of request when there is nothing to tell but the status."""
