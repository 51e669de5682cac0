"""The programs under measurement, each started for one scenario and stopped after it."""

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
from tests.support.postfix_scache import PostfixScache
from tests.support.wire import Wire

_TTL = 3600
"""Seconds; everything that is saved outlives its scenario."""

_STATUS_INTERVAL = 0.01
"""Seconds between two reads of the status that Postfix's scache(8) writes to its master. A blocking
reader would be woken by every request, which costs scache(8) a quarter of its time for a pair."""


class NotRun(Exception):
    """A measurement is not possible on this machine; the message is the reason."""


class Failed(Exception):
    """A program under measurement misbehaved; the message says how."""


class Server(NamedTuple):
    """A running server."""

    path: Path
    """Its socket."""
    pid: int
    started_in: float
    """Seconds from exec to the announcement."""
    inline: bool
    """True if it has inline mode."""

    def cpu_time(self) -> float:
        """Return the processor time used by all threads, in microseconds."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e3


Starter = Callable[[], AbstractContextManager[Server]]
"""A function that starts a program; raises NotRun if that is not possible on this machine."""


def ours(*options: str, file: bool = False) -> Starter:
    """Return the starter of this daemon with these options, on a database file or in memory."""

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


def postfix_scache(open_files: int | None = None) -> Starter:
    """Return the starter of Postfix's scache(8) with a limit of ``open_files``."""
    limit = {"connection_cache_ttl_limit": f"{_TTL}s"}

    @contextmanager
    def start() -> Iterator[Server]:
        program = PostfixScache(limit, open_files=open_files, status_interval=_STATUS_INTERVAL)
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
