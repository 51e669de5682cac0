"""The values of all counters, known without a query."""

from __future__ import annotations

from scache.store.batch import Batch
from scache.vocabulary import COUNTERS


class Counters:
    """The counters of the table ``counter``, including what is not written yet."""

    def __init__(self, batch: Batch) -> None:
        """Read the values of earlier runs. Raises DatabaseFault if that fails."""
        self._batch = batch
        rows = batch.query("SELECT name, value FROM counter", ())
        self._before = {name.decode(errors="replace"): value for name, value in rows}

    def read(self) -> dict[str, tuple[int, int]]:
        """Return each counter of COUNTERS: its value in the table, and the part since the start."""
        # A Counter finds a missing key slowly.
        counts, counted, before = self._batch.counts.get, self._batch.counted.get, self._before.get
        return {
            name: (before(name, 0) + (since := counted(name, 0) + counts(name, 0)), since)
            for name in COUNTERS
        }
