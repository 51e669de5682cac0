"""The programs under measurement, each started for one row of the table and stopped after it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.daemon import Daemon
from tests.support.genuine import GenuineScache
from tests.support.wire import Wire

_TTL = 3600
"""Seconds: everything that is saved outlives its row."""

_STATUS_INTERVAL = 0.01
"""Seconds between two reads of what Postfix's scache(8) tells its master. A reader that waits has
to be woken at every request, which costs the writer a quarter of its time for a pair."""


class NotRun(Exception):
    """Something cannot be measured here; says why."""


class Failed(Exception):
    """A program under measurement did not do what it must; says what."""


class Server(NamedTuple):
    """A program that serves."""

    path: Path
    """Its socket."""
    pid: int
    started_in: float
    """Seconds from its exec to its announcement."""
    inline: bool
    """True if it has inline mode."""

    def cpu_time(self) -> float:
        """Return the processor time that it has used, all threads, in microseconds."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e3


Starter = Callable[[], AbstractContextManager[Server]]
"""Starts a program anew; raises NotRun if it cannot be had here."""


def ours(*options: str, file: bool = False) -> Starter:
    """Return what starts our daemon with these options, on a database file or in memory."""

    @contextmanager
    def start() -> Iterator[Server]:
        with tempfile.TemporaryDirectory(prefix="scache-bench-") as name:
            database = Path(name, "cache.db") if file else ":memory:"
            path = Path(name, "socket")
            began = time.monotonic()
            with Daemon(path, "--ttl-limit", str(_TTL), *options, database=database) as daemon:
                with Wire(path) as client:
                    client.announcement()
                yield Server(path, daemon.pid, time.monotonic() - began, inline=True)

    return start


def genuine(open_files: int | None = None) -> Starter:
    """Return what starts Postfix's scache(8), which may have ``open_files`` at the most."""
    limit = {"connection_cache_ttl_limit": f"{_TTL}s"}

    @contextmanager
    def start() -> Iterator[Server]:
        program = GenuineScache(limit, open_files=open_files, status_interval=_STATUS_INTERVAL)
        with ExitStack() as stack:
            try:
                stack.enter_context(program)
            except RuntimeError as error:
                raise NotRun(str(error)) from None
            yield Server(program.path, program.pid, program.started_in, inline=False)

    return start


def python_pass() -> float:
    """Return the seconds that an interpreter takes to start, do nothing and end."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.monotonic() - began
