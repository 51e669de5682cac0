"""Steps of the wall clock. The stamps of live rows are shifted by a step in one transaction."""

from __future__ import annotations

import logging

from scache.clock import Clock
from scache.store.batch import Operation

MAX_STEPS = 1_000
"""Rows of ``clock_step`` that are kept."""

_MOVE = (
    "UPDATE connection SET saved_at = saved_at + ?1, expires_at = expires_at + ?1",
    "UPDATE binding SET saved_at = saved_at + ?1, expires_at = expires_at + ?1",
    "UPDATE client SET connected_at = connected_at + ?1 WHERE disconnected_at IS NULL",
    """
    UPDATE instance SET started_at = started_at + ?1, booted_at = booted_at + ?1
    WHERE id = (SELECT max(id) FROM instance) AND stopped_at IS NULL
    """,
)
LATEST_BOOT = "SELECT boot, booted_at FROM instance ORDER BY id DESC LIMIT 1"
"""Selects the boot id and the clock offset of the latest run. A run since the same boot continues
with this offset, so that the rows of the earlier run can be compared with its clock."""

_RECORD = "INSERT INTO clock_step (at, offset) VALUES (?, ?)"
_TRIM = f"""
    DELETE FROM clock_step WHERE rowid <= (SELECT max(rowid) FROM clock_step) - {MAX_STEPS}
"""

logger = logging.getLogger(__name__)


def following(clock: Clock) -> list[Operation]:
    """Adapt the clock's offset if the wall clock was set; return the operations that this needs.

    The clock's stamps use the new offset at once. Execute the operations in one transaction, before
    any later operation.
    """
    moved = clock.moved()
    if not moved:
        return []
    clock.offset += moved
    logger.warning(
        "the wall clock was set %s by %.3f s: the times of what is cached were moved with it",
        "forward" if moved > 0 else "backward",
        abs(moved),
    )
    moving: list[Operation] = [(sql, (moved,)) for sql in _MOVE]
    return [*moving, (_RECORD, (clock.stamp(), moved)), (_TRIM, ())]
