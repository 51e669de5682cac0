"""Histograms of the ages of connections when they left the cache, by close reason."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from scache.vocabulary import WAYS_OUT

BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Upper bounds in seconds, inclusive. Another bucket takes older connections."""


class AgeHistogram:
    """The ages of the connections that left for one reason, since the start of the daemon."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        """The number of connections in each bucket, not cumulative."""
        self.sum = 0.0
        """The sum of all ages, in seconds."""

    def add(self, age: float) -> None:
        """Count a connection that left at this age, in seconds."""
        self.counts[bisect_left(BUCKETS, age)] += 1
        self.sum += age


class ConnectionAges:
    """A histogram for each close reason that a running daemon can record."""

    def __init__(self) -> None:
        # Connections are lost between two runs, so a daemon never records "lost".
        self.of = {way_out: AgeHistogram() for way_out in WAYS_OUT if way_out != "lost"}

    def report(self) -> dict[str, Any]:
        """Return all histograms as one value for JSON; the last count is that above all bounds."""
        reasons = {
            reason: {"counts": [*ages.counts], "sum": ages.sum} for reason, ages in self.of.items()
        }
        return {"buckets": [*BUCKETS], "reasons": reasons}
