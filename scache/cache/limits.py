"""The limits of the cache."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Limits on lifetimes and numbers of rows; a number of 0 means no limit."""

    ttl: float
    """Seconds; a longer time to live is lowered to this."""
    connections: int = 0
    """Connections in total; at the limit, a save evicts the connection that expires first."""
    connections_per_endpoint: int = 0
    """Connections of one endpoint; further ones are refused."""
    bindings_per_destination: int = 0
    """Bindings of one destination; further ones are refused."""
    bindings: int = 0
    """Bindings in total; further ones are refused."""
    size: int = 0
    """Bytes of all labels and properties; at the limit, a save evicts what expires first."""
