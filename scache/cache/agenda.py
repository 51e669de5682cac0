"""When which connection expires: what the sweeper has to do, in order of time."""

from __future__ import annotations

import heapq
import math

GRAIN = 0.02
"""Seconds by which a connection may be closed late; never early."""

_FEW = 64
"""Grains that are not worth being cleared out of the heap."""


class Agenda:
    """Connections by the moment of their expiry, a grain of time at a time.

    The same times stand in the table ``connection``, for people and for finds.
    To have the sweeper ask an index of that table would cost every save and
    every find more than both cost here (measured: a quarter of their SQL), and
    nothing would be closed in time while the database is locked.
    """

    def __init__(self) -> None:
        self._grains: dict[int, dict[int, bytes]] = {}
        self._order: list[int] = []
        """A heap of grains; those that are empty by now have no members any more."""

    def add(self, expires_at: float, row_id: int, endpoint: bytes) -> None:
        """Note a connection down."""
        grain = math.ceil(expires_at / GRAIN)
        members = self._grains.get(grain)
        if members is None:
            self._grains[grain] = {row_id: endpoint}
            heapq.heappush(self._order, grain)
        else:
            members[row_id] = endpoint

    def remove(self, expires_at: float, row_id: int) -> None:
        """Strike a connection out."""
        grain = math.ceil(expires_at / GRAIN)
        members = self._grains[grain]
        del members[row_id]
        if not members:
            del self._grains[grain]
            if len(self._order) > 2 * len(self._grains) + _FEW:
                self._order = sorted(self._grains)  # a sorted list is a heap

    def take_due(self, now: float, limit: int) -> list[tuple[int, bytes]]:
        """Return, and strike out, up to ``limit`` expired connections: id and endpoint."""
        due: list[tuple[int, bytes]] = []
        while len(due) < limit and self.next_due() <= now:
            members = self._grains[self._order[0]]
            while members and len(due) < limit:
                due.append(members.popitem())
            if not members:
                del self._grains[self._order[0]]
        return due

    def next_due(self) -> float:
        """Return when a connection is due next, in seconds since the epoch, or inf."""
        while self._order and self._order[0] not in self._grains:
            heapq.heappop(self._order)
        return self._order[0] * GRAIN if self._order else math.inf
