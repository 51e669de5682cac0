"""The only place that asks what time it is."""

from __future__ import annotations

import time


class Clock:
    """Seconds since the epoch that never jump.

    Wall time when the clock was made, plus monotonic time since then: a
    stepped system clock makes nothing expire early or late.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """Return the time, in seconds since the epoch."""
        return self._offset + time.monotonic()
