"""When which connection expires: what the sweeper has to do, in order of time."""

from __future__ import annotations

import heapq
import math
from itertools import islice

from scache.cache.descriptors import Parked

GRAIN = 0.02
"""Seconds by which a connection may be closed late; never early."""

_FEW = 64
"""Grains that are not worth being cleared out of the heap."""


class ExpiryQueue:
    """Connections by the moment of their expiry, a grain of time at a time.

    The same times stand in the table ``connection``, as stamps, for people and for finds. Those
    here are of CLOCK_BOOTTIME: they stay what they are when the wall clock is set.
    To have the sweeper ask an index of that table would cost every save and
    every find more than both cost here (measured: a quarter of their SQL), and
    nothing would be closed in time while the database is locked.
    """

    def __init__(self) -> None:
        self._grains: dict[int, dict[int, Parked]] = {}
        self._order: list[int] = []
        """A heap of grains; those that are empty by now have no members any more."""

    def add(self, parked: Parked) -> None:
        """Note a connection down."""
        grain = math.ceil(parked.expires_at / GRAIN)
        members = self._grains.get(grain)
        if members is None:
            self._grains[grain] = {parked.id: parked}
            heapq.heappush(self._order, grain)
        else:
            members[parked.id] = parked

    def remove(self, expires_at: float, row_id: int) -> None:
        """Strike a connection out."""
        grain = math.ceil(expires_at / GRAIN)
        members = self._grains[grain]
        del members[row_id]
        if not members:
            del self._grains[grain]
            if len(self._order) > 2 * len(self._grains) + _FEW:
                self._order = sorted(self._grains)  # a sorted list is a heap

    def due(self, now: float, limit: int) -> list[Parked]:
        """Return up to ``limit`` connections that have expired, those of one grain at a time."""
        if self.next_due() > now:
            return []
        members = self._grains[self._order[0]]
        return list(islice(members.values(), limit))

    def nearest(self) -> Parked | None:
        """Return a connection to whose expiry no other is nearer, give or take a grain."""
        if self.next_due() == math.inf:
            return None
        return next(iter(self._grains[self._order[0]].values()))

    def next_due(self) -> float:
        """Return when a connection is due next, as `Clock.now` will have it, or inf."""
        while self._order and self._order[0] not in self._grains:
            heapq.heappop(self._order)
        return self._order[0] * GRAIN if self._order else math.inf
