"""What observers get: the figures of ``stats``, and the events of ``follow``.

The message of an event has an attribute for each column of the table ``event`` that is not NULL,
except ``id``, and the columns of the client that made the request: ``pid``, ``uid``, ``gid`` and
``program``. The attribute ``at`` comes first. Numbers are decimal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, NotRequired, TypedDict

from scache.errors import ProtocolError
from scache.model import AuditEvent, Peer
from scache.protocol.codec import Attributes, encode

AT = b"at"
MISSED = b"missed"


class Event(NamedTuple):
    """A row of the audit log, with the client that made the request."""

    at: float
    """Seconds since the epoch."""
    kind: str
    """The name of a request, or ``unknown``; a close reason (found, expired, evicted, hung_up,
    purged or lost); or put_back."""
    status: int | None = None
    """The outcome of a request: 0 done, 1 malformed, 2 failed; None for other events."""
    destination: bytes | None = None
    endpoint: bytes | None = None
    connection_id: int | None = None
    binding_id: int | None = None
    client_id: int | None = None
    """The client that made the request; None for an event without a request."""
    pid: int | None = None
    """The process of the client; None if there is no client, or it is not known."""
    uid: int | None = None
    gid: int | None = None
    program: bytes | None = None
    """The name of the client's program."""
    ttl: float | None = None
    """Granted time to live of a save, in seconds."""
    age: float | None = None
    """Seconds since the save of the connection or binding."""
    detail: str | None = None


class Missed(NamedTuple):
    """Events that were not sent, because the reader was too slow; later ones follow."""

    events: int
    """Their number."""


class Count(TypedDict):
    """The value of a counter."""

    total: int
    """The value in the database, which a file keeps across restarts."""
    since_start: int
    """The part of it since the daemon's process was started."""


class Use(TypedDict):
    """A limit, and what is used of it."""

    limit: int | None
    """None if there is no limit."""
    used: int


class Histogram(TypedDict):
    """Durations in seconds, counted in buckets, by reason."""

    buckets: list[float]
    """The upper bound of each bucket but the last, which has none."""
    reasons: dict[str, Any]
    """For each reason ``counts``, one for each bucket, and the ``sum`` of all durations."""


class DatabaseState(TypedDict):
    """The state of the database."""

    files: dict[str, int]
    """Bytes of the files ``database`` and ``log``; empty for a database in memory."""
    fault: str | None
    """The fault in words; None if there is none."""


class ProcessState(TypedDict):
    """What the daemon's process uses."""

    cpu_seconds: float
    resident_bytes: int | None
    """None if it is unknown, because there is no /proc."""
    open_descriptors: int
    start_time: float
    """Seconds since the epoch."""


class Stats(TypedDict):
    """The figures of a running daemon. Later versions may add keys."""

    version: str
    pid: int
    started_at: float
    """Seconds since the epoch."""
    now: float
    """Seconds since the epoch."""
    uptime: float
    """Seconds."""
    counters: dict[str, Count]
    """Every counter (``scache help sql``), also those that are 0."""
    gauges: dict[str, int]
    limits: dict[str, Use]
    histograms: dict[str, Histogram]
    classes: NotRequired[dict[str, Any]]
    """Counters by class of endpoints, if the daemon has classes."""
    database: DatabaseState
    process: ProcessState


def encode_event(event: AuditEvent, client: bytes) -> bytes:
    """Return the message of an event; ``client`` is the result of `encode_client`, or empty.

    The time of the event is a stamp, in seconds since the epoch.
    """
    at, kind, status, destination, endpoint, connection_id, binding_id, _, ttl, age, detail = event
    message = b"at\0%r\0kind\0%b\0" % (at, kind.encode())
    if status is not None:
        message += b"status\0%d\0" % status
    if destination is not None:
        message += b"destination\0%b\0" % destination
    if endpoint is not None:
        message += b"endpoint\0%b\0" % endpoint
    if connection_id is not None:
        message += b"connection_id\0%d\0" % connection_id
    if binding_id is not None:
        message += b"binding_id\0%d\0" % binding_id
    message += client
    if ttl is not None:
        message += b"ttl\0%r\0" % ttl
    if age is not None:
        message += b"age\0%r\0" % age
    if detail is not None:
        message += b"detail\0%b\0" % detail.replace("\0", "").encode(errors="replace")
    return message + b"\0"


def encode_client(client_id: int, peer: Peer | None) -> bytes:
    """Return the attributes of a client for `encode_event`; the peer is None if it is unknown."""
    attributes = b"client_id\0%d\0" % client_id
    if peer is None:
        return attributes
    attributes += b"pid\0%d\0uid\0%d\0gid\0%d\0" % peer[:3]
    return attributes if peer.program is None else b"%bprogram\0%b\0" % (attributes, peer.program)


def encode_missed(count: int) -> bytes:
    """Return the message that tells how many events were not sent."""
    return encode([(MISSED, b"%d" % count)])


def decode_observation(attributes: Attributes) -> Event | Missed:
    """Return the event, or the number of missed ones, of a message; ignore unknown attributes.

    Raises ProtocolError if the message is neither.
    """
    values: Mapping[bytes, bytes] = dict(attributes)
    try:
        if MISSED in values:
            return Missed(int(values[MISSED]))
        return Event(
            _finite(values[AT]),
            values[b"kind"].decode(),
            _as(int, values, b"status"),
            values.get(b"destination"),
            values.get(b"endpoint"),
            _as(int, values, b"connection_id"),
            _as(int, values, b"binding_id"),
            _as(int, values, b"client_id"),
            _as(int, values, b"pid"),
            _as(int, values, b"uid"),
            _as(int, values, b"gid"),
            values.get(b"program"),
            _as(_finite, values, b"ttl"),
            _as(_finite, values, b"age"),
            _as(bytes.decode, values, b"detail"),
        )
    except (KeyError, ValueError) as error:
        raise ProtocolError(f"the server sent an invalid event: {attributes!r}") from error


def _as(kind: Any, values: Mapping[bytes, bytes], name: bytes) -> Any:  # noqa: ANN401 - a decoder
    value = values.get(name)
    return None if value is None else kind(value)


def _finite(value: bytes) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number
