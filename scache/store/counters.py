"""The values of all counters, known without a query."""

from __future__ import annotations

from typing import NamedTuple

from scache.store.batch import Batch
from scache.vocabulary import COUNTERS


class Reading(NamedTuple):
    """The value of one counter."""

    total: int
    """The value in the table ``counter``, which a database file keeps across restarts."""
    since_start: int
    """The part of it that this process has counted."""


class Counters:
    """The counters of the table ``counter``, including what is not written yet."""

    def __init__(self, batch: Batch) -> None:
        """Read the values of earlier runs. Raises DatabaseFault if that fails."""
        self._batch = batch
        rows = batch.query("SELECT name, value FROM counter", ())
        self._before = {name.decode(errors="replace"): value for name, value in rows}

    def read(self) -> dict[str, Reading]:
        """Return the value of each counter of COUNTERS."""
        counts, counted, before = self._batch.counts, self._batch.counted, self._before
        readings = {}
        for name in COUNTERS:
            since_start = counted[name] + counts[name]
            readings[name] = Reading(before.get(name, 0) + since_start, since_start)
        return readings
