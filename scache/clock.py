"""The clocks; no other module reads the time of day."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

STEP = 1.0
"""Seconds. A larger change of the offset means that the wall clock was set."""

_READINGS = 5
"""Most attempts to read both clocks without being interrupted in between."""

_AT_ONCE = 0.0001
"""Seconds within which the readings of both clocks count as simultaneous."""


class Clock:
    """A monotonic clock for lifetimes and the wall time for stamps in the database.

    `now` is CLOCK_BOOTTIME in seconds. It cannot be set, and it continues while the machine
    sleeps. A stamp is wall time in seconds since the epoch, computed as `now` plus `offset`. The
    offset is constant until the stamps in the database are adjusted, so that all stamps are
    comparable.
    """

    def __init__(self) -> None:
        self.now: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
        """Return the seconds since the machine was started, the time base of all lifetimes."""
        self.offset = self.wall_offset()
        """The wall time when the machine was started, in seconds since the epoch."""
        self.boot = _boot()
        """An identifier of the boot that `now` counts from; empty if it is unknown."""

    def stamp(self) -> float:
        """Return the wall time."""
        return self.now() + self.offset

    def moved(self) -> float:
        """Return the seconds by which the wall clock was set since the offset was taken.

        Return 0 for a change of STEP or less. Small changes add up until they exceed STEP.
        """
        moved = self.wall_offset() - self.offset
        return moved if abs(moved) > STEP else 0.0

    def wall_offset(self) -> float:
        """Return CLOCK_REALTIME minus CLOCK_BOOTTIME, which does not change during sleep."""
        narrowest, offset = float("inf"), 0.0
        for _ in range(_READINGS):
            before, wall, after = self.now(), time.time(), self.now()
            if after - before < narrowest:
                narrowest, offset = after - before, wall - before
            if narrowest < _AT_ONCE:
                break
        return offset


def wall_time() -> float:
    """Return the wall time, in seconds since the epoch."""
    return time.time()


def _boot() -> str:
    """Return the boot id and the offset of CLOCK_BOOTTIME in this time_namespaces(7) namespace."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        boot += " " + "+".join(Path("/proc/self/timens_offsets").read_text().split()[-2:])
    return boot
