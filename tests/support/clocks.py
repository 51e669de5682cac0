"""Clocks that a test moves."""

from __future__ import annotations

import struct
import time
from pathlib import Path

from scache.clock import Clock


class HandClock(Clock):
    """A clock that a test moves. The machine was started at the epoch."""

    def __init__(self, time: float) -> None:
        self.time = time
        """What `now` says."""
        self.set_by = 0.0
        """Seconds by which the wall clock was set since the machine was started."""
        self.now = lambda: self.time
        self.offset = 0.0
        self.boot = "boot"

    def wall_offset(self) -> float:
        """Return where the wall clock was set to."""
        return self.set_by


LYING = """
import mmap, os, struct, time
_file = open(os.environ["MOVED_CLOCKS"], "rb")
_moved = mmap.mmap(_file.fileno(), 0, access=mmap.ACCESS_READ)
_time, _clock_gettime = time.time, time.clock_gettime
_set = lambda: struct.unpack("dd", _moved)
time.time = lambda: _time() + sum(_set())
time.clock_gettime = lambda clock: _clock_gettime(clock) + (
    {time.CLOCK_REALTIME: sum(_set()), time.CLOCK_BOOTTIME: _set()[1]}.get(clock, 0)
)
"""
"""A sitecustomize for processes whose clocks are as a file says."""


class MovedClocks:
    """The clocks of the processes that are started within: set by hand, and after a sleep."""

    def __init__(self, directory: Path) -> None:
        """Keep what they need in this directory."""
        self._directory = directory
        self._file = directory / "clocks"
        self._set_by = self._slept = 0.0
        self._write()
        (directory / "sitecustomize.py").write_text(LYING)

    @property
    def environment(self) -> dict[str, str]:
        """What makes a Python believe these clocks."""
        return {"PYTHONPATH": str(self._directory), "MOVED_CLOCKS": str(self._file)}

    def set_wall(self, seconds: float) -> None:
        """Set the wall clock, by so much further than it is."""
        self._set_by += seconds
        self._write()

    def sleep(self, seconds: float) -> None:
        """Let the machine sleep: CLOCK_MONOTONIC stands still, the others go on."""
        self._slept += seconds
        self._write()

    def wall_time(self) -> float:
        """Return what the wall clock says."""
        return time.time() + self._set_by + self._slept

    def _write(self) -> None:
        # Not truncated, for it is mapped; each value is written whole.
        data = struct.pack("dd", self._set_by, self._slept)
        if self._file.exists():
            with self._file.open("r+b") as file:
                file.write(data)
        else:
            self._file.write_bytes(data)
