"""Histograms of the ages of connections when they left the cache, by close reason."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from scache.vocabulary import WAYS_OUT

BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Upper bounds in seconds, inclusive. Another bucket takes older connections."""

_TOGETHER = 64


class AgeHistogram:
    """The ages of the connections that left for one reason, since the start of the daemon."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0
        self._new: list[float] = []
        """Ages that are not counted yet: counting many together takes half the time."""

    def add(self, age: float) -> None:
        """Count a connection that left at this age, in seconds."""
        new = self._new
        new.append(age)
        if len(new) >= _TOGETHER:
            self._count()

    def report(self) -> dict[str, Any]:
        """Return the number of connections in each bucket, not cumulative, and the sum of ages."""
        self._count()
        return {"counts": [*self._counts], "sum": self._sum}

    def _count(self) -> None:
        ages, self._new = sorted(self._new), []
        self._sum += sum(ages)
        below = 0
        for bucket, bound in enumerate(BUCKETS):
            up_to = bisect_right(ages, bound, below)
            self._counts[bucket] += up_to - below
            below = up_to
            if below == len(ages):
                return
        self._counts[-1] += len(ages) - below


class ConnectionAges:
    """A histogram for each close reason that a running daemon can record."""

    def __init__(self) -> None:
        # Connections are lost between two runs, so a daemon never records "lost".
        self.of = {way_out: AgeHistogram() for way_out in WAYS_OUT if way_out != "lost"}

    def report(self) -> dict[str, Any]:
        """Return all histograms as one value for JSON; the last count is that above all bounds."""
        reasons = {reason: ages.report() for reason, ages in self.of.items()}
        return {"buckets": [*BUCKETS], "reasons": reasons}
