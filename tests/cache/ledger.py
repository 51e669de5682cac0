"""A ledger of a cache: the rows, events and counters that its database must have."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from scache.model import Connection, Peer
from scache.store.live_rows import Binding


class Entry(NamedTuple):
    """The expected columns of an event, without its id."""

    at: float
    kind: str
    status: int | None = None
    destination: bytes | None = None
    endpoint: bytes | None = None
    connection_id: int | None = None
    binding_id: int | None = None
    client_id: int | None = None
    ttl: float | None = None
    age: float | None = None
    detailed: bool = False
    """True if the column ``detail`` is not NULL."""


Kept = tuple[int, Entry]
"""A row of the table ``event``: its id, and the other columns."""


@dataclass
class Ledger:
    """The expected state of the database; a crash restores the one of the last commit."""

    live: dict[int, Connection] = field(default_factory=dict)
    in_delivery: dict[int, Connection] = field(default_factory=dict)
    bindings: dict[int, Binding] = field(default_factory=dict)
    clients: dict[int, Peer] = field(default_factory=dict)
    """Clients with a row in the table ``client``."""
    left: dict[int, float] = field(default_factory=dict)
    """Times at which recorded clients have disconnected."""
    counters: Counter[str] = field(default_factory=Counter)
    saved: int = 0
    kept: list[Kept] = field(default_factory=list)
    """The audit log at the last commit."""
    pending: list[Entry] = field(default_factory=list)
    """Events that the next commit must add."""
    trimmed: int = 0
    """Number of events that were trimmed."""

    @property
    def size(self) -> int:
        """The bytes of the labels and properties of all live connections and bindings."""
        texts = [row.endpoint + row.properties for row in self.live.values()]
        texts += [row.destination + row.endpoint + row.properties for row in self.bindings.values()]
        return sum(map(len, texts))
