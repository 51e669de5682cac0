"""Temporary."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self


class Daemon:
    """A daemon in a process of its own."""

    def __init__(self, database: str | Path, *options: str) -> None:
        self._dir = tempfile.TemporaryDirectory()
        self.path = Path(self._dir.name, "s")
        self._log = Path(self._dir.name, "log")
        self._command = [
            sys.executable, "-m", "scache", "serve",
            "--socket", str(self.path), "--database", str(database), *options,
        ]

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stderr=log)
        self.pid = self.process.pid
        deadline = time.monotonic() + 10
        while "listening on" not in self.log():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._dir.cleanup()

    def log(self) -> str:
        return self._log.read_text()

    def terminate(self) -> int:
        self.process.terminate()
        return self.process.wait(10)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
