"""Row ids that are never used again, not even after a crash."""

from __future__ import annotations

from scache.store.batch import Batch

ID_RESERVE = 1_000_000
"""Ids reserved at a time. Ids of rows that a crash loses are not used again."""

_RESERVE = "UPDATE instance SET last_id = ? WHERE id = ?"


class Ids:
    """The common sequence of the ids of connections, bindings and clients."""

    def __init__(self, batch: Batch, instance_id: int, first: int) -> None:
        self._batch = batch
        self.instance_id = instance_id
        """This run's row of the table ``instance``."""
        self.last = first - 1
        """The last id given out."""
        self._renew_at = first + ID_RESERVE // 2

    def take(self) -> int:
        """Return an id that was never used before."""
        self.last += 1
        if self.last == self._renew_at:
            # This is committed within COMMIT_INTERVAL, long before the other half is used up.
            self._batch.execute_eventually(_RESERVE, (self.last + ID_RESERVE, self.instance_id))
            self._renew_at += ID_RESERVE // 2
        return self.last
