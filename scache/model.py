"""Value types that all layers share, named with the terms of scache(8)."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Status(IntEnum):
    """The outcome of a request, as it stands in a reply (scache(8))."""

    OK = 0
    BAD = 1
    """The request was malformed."""
    FAIL = 2
    """A miss, no descriptor received, a limit reached, or a database fault."""


class Peer(NamedTuple):
    """The process that connected to a client socket (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int
    program: bytes | None = None
    """The name of its program at that time (proc(5), comm); None if the process had ended."""


class Connection(NamedTuple):
    """A row of the table ``connection``, which describes one parked descriptor.

    Times are seconds of `Clock.now`. In the tables they are stamps: seconds since the epoch.
    """

    id: int
    """A unique id; no other row of any table ever has it."""
    endpoint: bytes
    properties: bytes
    saved_at: float
    expires_at: float
    client_id: int
    """The client that saved it."""


class Delivery(NamedTuple):
    """A connection that a find has taken out of the cache, on its way to the finder."""

    connection: Connection
    descriptor: int
    """The descriptor, which the cache still owns. Report it as delivered, or put it back."""
    client_id: int
    """The client that requested the connection."""
    found_at: float
    """The time of the find, in seconds of `Clock.now`."""
    destination: bytes | None = None
    """The requested destination; None for ``find_endp``."""
    destination_properties: bytes = b""
    """The properties of the binding that matched; empty for ``find_endp``."""
    binding_id: int | None = None
    """The binding that matched; None for ``find_endp``."""


class AuditEvent(NamedTuple):
    """A row of the table ``event``: a request with its outcome, or a close reason."""

    at: float
    """Seconds of `Clock.now`; in the table, seconds since the epoch."""
    kind: str
    """The name of a request, or ``unknown``; a close reason (found, expired, evicted, hung_up,
    purged or lost); or put_back."""
    status: Status | None = None
    """The outcome of a request; None for other events."""
    destination: bytes | None = None
    endpoint: bytes | None = None
    connection_id: int | None = None
    binding_id: int | None = None
    client_id: int | None = None
    """The client that made the request; None for an event without a request."""
    ttl: float | None = None
    """Granted time to live of a save, in seconds."""
    age: float | None = None
    """Seconds since the save of the connection or binding that was removed or put back."""
    detail: str | None = None


class SocketInfo(NamedTuple):
    """A row of the table ``descriptor`` without its id: kernel information about a descriptor."""

    fd: int
    kind: str
    local: str | None = None
    peer: str | None = None
    tcp_state: str | None = None
    rtt_us: int | None = None
    """Smoothed round-trip time in microseconds."""
    unread_bytes: int | None = None
    """Bytes received but not read yet."""
