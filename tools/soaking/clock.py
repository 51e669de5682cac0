"""Steps of the daemon's wall clock. The machine's is never touched: a preloaded library lies."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

SOURCE = Path(__file__).with_name("clock.c")
STEPS = (-86400 * 400, -3600, -30, 30, 3600, 86400 * 400)
"""Seconds by which the clock differs from the machine's."""


class Clock:
    """The wall clock of processes that are started `believing` it."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        self._file.write_bytes(struct.pack("q", 0))
        self._library = directory / "clock.so"
        self.steps = 0
        self.missing = self._build() or self._try()
        """Why it cannot be stepped; empty if it can."""

    def _build(self) -> str:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            return "there is no C compiler"
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(self._library), str(SOURCE)]
        result = subprocess.run([*command, "-ldl"], capture_output=True, text=True, check=False)
        return f"{SOURCE.name} does not compile: {result.stderr}" if result.returncode else ""

    def _try(self) -> str:
        """Look whether a Python believes it."""
        self._set(10**6)
        with self.believing():
            command = [sys.executable, "-c", "import time; print(time.time())"]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        self._set(0)
        believed = float(said) > time.time() + 10**6 - 60
        return "" if believed else "this Python does not ask through the library"

    @contextmanager
    def believing(self) -> Iterator[None]:
        """Let processes that are started meanwhile believe this clock."""
        os.environ |= {"LD_PRELOAD": str(self._library), "SOAK_CLOCK": str(self._file)}
        try:
            yield
        finally:
            del os.environ["LD_PRELOAD"], os.environ["SOAK_CLOCK"]

    def step(self, random: Random) -> None:
        """Step it, if that is possible."""
        if not self.missing:
            self._set(random.choice(STEPS))
            self.steps += 1

    def _set(self, seconds: int) -> None:
        with self._file.open("r+b") as file:
            file.write(struct.pack("q", seconds))
