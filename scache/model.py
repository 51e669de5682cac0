"""Values that every layer speaks of. The words are those of scache(8)."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Status(IntEnum):
    """The outcome of a request, as it stands in a reply (scache(8))."""

    OK = 0
    BAD = 1
    """The request was malformed."""
    FAIL = 2
    """A miss, no descriptor received, or a limit or a fault said no."""


class Peer(NamedTuple):
    """Who is at the other end of a client socket (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int
    program: bytes | None = None
    """The name of its program then (proc(5), comm); None if it had gone already."""


class Connection(NamedTuple):
    """A row of the table ``connection``: all that is known of one parked descriptor.

    Times are seconds of `Clock.now`, which go on while the machine sleeps and cannot be set. In
    the tables they are stamps: seconds since the epoch.
    """

    id: int
    """Names this connection for ever; no other row of any table ever has it."""
    endpoint: bytes
    properties: bytes
    saved_at: float
    expires_at: float
    client_id: int
    """The client that saved it."""


class Delivery(NamedTuple):
    """A connection that a find has taken out of the cache, and that is on its way."""

    connection: Connection
    descriptor: int
    """Still the cache's own: to be reported as delivered, or put back."""
    client_id: int
    """The client that asked for it,"""
    found_at: float
    """and when: seconds of `Clock.now`."""
    destination: bytes | None = None
    """What it asked for; None for ``find_endp``."""
    destination_properties: bytes = b""
    """The properties of the binding that led here; empty for ``find_endp``."""
    binding_id: int | None = None
    """The binding that led here; None for ``find_endp``."""


class AuditEvent(NamedTuple):
    """A row of the table ``event``: a request with its outcome, or a way out."""

    at: float
    """Seconds of `Clock.now`; in the table, seconds since the epoch."""
    kind: str
    """A request: its name, or ``unknown``; a way out: found, expired, evicted, hung_up, purged,
    lost; or put_back."""
    status: Status | None = None
    """Of a request."""
    destination: bytes | None = None
    endpoint: bytes | None = None
    connection_id: int | None = None
    binding_id: int | None = None
    client_id: int | None = None
    """Who asked; None for what nobody asked for."""
    ttl: float | None = None
    """Seconds that a save was granted."""
    age: float | None = None
    """Seconds from the save of what was taken or has left."""
    detail: str | None = None


class SocketInfo(NamedTuple):
    """What the kernel knows of a descriptor: a row of the table ``descriptor``, but for its id."""

    fd: int
    kind: str
    local: str | None = None
    peer: str | None = None
    tcp_state: str | None = None
    rtt_us: int | None = None
    """Smoothed round trip time, microseconds."""
    unread_bytes: int | None = None
    """What has come and nobody has read."""
