"""Clocks that a test sets."""

from __future__ import annotations

import struct
import time
from pathlib import Path

from scache.clock import Clock


class HandClock(Clock):
    """A clock that a test sets. The machine was started at the epoch."""

    def __init__(self, time: float) -> None:
        self.time = time
        """The time that `now` returns."""
        self.set_by = 0.0
        """Seconds by which the wall clock was set since the machine was started."""
        self.now = lambda: self.time
        self.offset = 0.0
        self.boot = "boot"

    def wall_offset(self) -> float:
        """Return the seconds by which the wall clock was set."""
        return self.set_by


SITECUSTOMIZE = """
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
"""A sitecustomize module that reads the offset of the clocks from a file."""


class MovedClocks:
    """The clocks of other processes, which a test sets or lets sleep."""

    def __init__(self, directory: Path) -> None:
        """Use this directory for the files of the clocks."""
        self._directory = directory
        self._file = directory / "clocks"
        self._set_by = self._slept = 0.0
        self._write()
        (directory / "sitecustomize.py").write_text(SITECUSTOMIZE)

    @property
    def environment(self) -> dict[str, str]:
        """Environment that makes a Python process use these clocks."""
        return {"PYTHONPATH": str(self._directory), "MOVED_CLOCKS": str(self._file)}

    def set_wall(self, seconds: float) -> None:
        """Step the wall clock by ``seconds``."""
        self._set_by += seconds
        self._write()

    def sleep(self, seconds: float) -> None:
        """Let the machine sleep: all clocks go on but CLOCK_MONOTONIC."""
        self._slept += seconds
        self._write()

    def wall_time(self) -> float:
        """Return the time of the wall clock."""
        return time.time() + self._set_by + self._slept

    def _write(self) -> None:
        # The file is mapped, so it must not be truncated.
        data = struct.pack("dd", self._set_by, self._slept)
        if self._file.exists():
            with self._file.open("r+b") as file:
                file.write(data)
        else:
            self._file.write_bytes(data)
