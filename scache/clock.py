"""The only place that asks what time it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

STEP = 1.0
"""Seconds. The wall clock was set if it is further away from where it was; less is left alone."""

_READINGS = 5
"""Attempts to read both clocks before the process is scheduled away in between."""

_AT_ONCE = 0.0001
"""Seconds between the first and the last of three readings that pass for one moment."""


class Clock:
    """Two times: lifetimes run on one, the stamps in the database are the other.

    `now` is CLOCK_BOOTTIME, in seconds: it cannot be set, and goes on while the machine sleeps. A
    stamp is wall time in seconds since the epoch, which is `now` plus `offset`. The offset stays
    as it is until `follow`, so that all stamps are of one scale.
    """

    def __init__(self) -> None:
        self.now: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
        """Return the time that lifetimes run on; seconds since the machine was started."""
        self.offset = self.wall_offset()
        """The wall time when the machine was started, by the clock as it is set."""
        self.boot = _boot()
        """Names the start of the machine that `now` counts from; empty if that is unknown."""

    def stamp(self) -> float:
        """Return the wall time."""
        return self.now() + self.offset

    def moved(self) -> float:
        """Return by how many seconds the wall clock was set since the offset was taken.

        A change of STEP or less is 0: the next one adds to it.
        """
        moved = self.wall_offset() - self.offset
        return moved if abs(moved) > STEP else 0.0

    def wall_offset(self) -> float:
        """Return CLOCK_REALTIME minus CLOCK_BOOTTIME as of now; sleep does not change it."""
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
    """Return the boot id, and how CLOCK_BOOTTIME differs in this namespace (time_namespaces(7))."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        boot += " " + "+".join(Path("/proc/self/timens_offsets").read_text().split()[-2:])
    return boot
