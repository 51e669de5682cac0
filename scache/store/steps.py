"""Steps of the wall clock: the stamps of what is live move with it, in one transaction."""

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
"""A run goes on with the scale of the one before, if the machine was not started since: what that
one left behind can be compared with the clock of today."""

_RECORD = "INSERT INTO clock_step (at, offset) VALUES (?, ?)"
_TRIM = f"""
    DELETE FROM clock_step WHERE rowid <= (SELECT max(rowid) FROM clock_step) - {MAX_STEPS}
"""

logger = logging.getLogger(__name__)


def following(clock: Clock) -> list[Operation]:
    """Follow the wall clock, if it was set; return what must be done in the database then.

    Stamps that the clock gives from now on are of the new scale: the operations have to be done,
    in one transaction, before any later one.
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
