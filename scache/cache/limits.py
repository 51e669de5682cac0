"""How much the cache takes."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """What is cached at the most; 0 is no limit of that kind."""

    ttl: float
    """Seconds; a longer time to live is lowered to this."""
    connections: int = 0
    """At this many, the one nearest to its expiry gives way to another."""
    connections_per_endpoint: int = 0
    """More are refused."""
    bindings_per_destination: int = 0
    """More are refused."""
    bindings: int = 0
    """More are refused."""
