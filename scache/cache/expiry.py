"""The expiry of connections and bindings: the next deadline, and the queue of connections.

Nothing is closed here: `Connections.expire` closes what is due, and `Bindings.expire` removes it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import islice

from scache.cache.descriptors import Parked

GRAIN = 0.02
"""Seconds by which a connection may be closed late; never early."""

_FEW = 64
"""Empty grains that the heap may always hold before it is rebuilt."""


class Deadline:
    """The time at which expired connections and bindings are to be removed next."""

    def __init__(self) -> None:
        self.at = math.inf
        """A time of `Clock.now`. If a saved row expires before it, call `bring_forward`."""
        self.on_earlier: Callable[[], None] = lambda: None
        """Called when the deadline is brought forward."""

    def bring_forward(self, at: float) -> None:
        """Set an earlier time."""
        self.at = at
        self.on_earlier()


class ExpiryQueue:
    """Connections grouped by expiry time, in grains of GRAIN seconds.

    The times are of CLOCK_BOOTTIME, so they stay valid when the wall clock is set. The table
    ``connection`` has the same times as wall time, for queries and finds. An index on that table
    would cost each save and find more than this queue does (measured: a quarter of their SQL
    time), and no connection would be closed in time while the database is locked.
    """

    def __init__(self) -> None:
        self._grains: dict[int, dict[int, Parked]] = {}
        self._order: list[int] = []
        """A heap of grains. A grain that has become empty is no longer in `_grains`."""

    def add(self, parked: Parked) -> None:
        """Add a connection."""
        grain = math.ceil(parked.expires_at / GRAIN)
        members = self._grains.get(grain)
        if members is None:
            self._grains[grain] = {parked.id: parked}
            heapq.heappush(self._order, grain)
        else:
            members[parked.id] = parked

    def remove(self, expires_at: float, row_id: int) -> None:
        """Remove a connection."""
        grain = math.ceil(expires_at / GRAIN)
        members = self._grains[grain]
        del members[row_id]
        if not members:
            del self._grains[grain]
            if len(self._order) > 2 * len(self._grains) + _FEW:
                self._order = sorted(self._grains)  # a sorted list is a heap

    def drop(self, expires_at: float, row_id: int) -> None:
        """Remove a connection that may have been added in part."""
        grain = math.ceil(expires_at / GRAIN)
        members = self._grains.get(grain, {})
        members.pop(row_id, None)
        if not members:
            self._grains.pop(grain, None)

    def due(self, now: float, limit: int) -> list[Parked]:
        """Return up to ``limit`` expired connections, all of the same grain."""
        if self.next_due() > now:
            return []
        members = self._grains[self._order[0]]
        return list(islice(members.values(), limit))

    def nearest(self) -> Parked | None:
        """Return a connection that expires first, within one grain; None if there is none."""
        if self.next_due() == math.inf:
            return None
        return next(iter(self._grains[self._order[0]].values()))

    def next_due(self) -> float:
        """Return the time of `Clock.now` when the next connection expires, or inf."""
        while self._order and self._order[0] not in self._grains:
            heapq.heappop(self._order)
        return self._order[0] * GRAIN if self._order else math.inf
