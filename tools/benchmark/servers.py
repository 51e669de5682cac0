"""The programs under measurement, each started for one row of the table and stopped after it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmark.errors import Failed, NotRun

TTL = 3600
"""Seconds: everything that is saved outlives its row."""

_START_TIMEOUT = 10.0
_POLL = 0.0005
_DRAIN_PAUSE = 0.01


class Server(NamedTuple):
    """A program that serves."""

    path: Path
    """Its socket."""
    pid: int
    started_in: float
    """Seconds from its exec to its announcement."""

    def cpu_time(self) -> float:
        """Return the processor time that it has used, all threads, in microseconds."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e3

    def resident(self) -> float:
        """Return the memory that it has in RAM, in KiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return float(line.split()[1])

    def descriptors(self) -> int:
        """Return how many it has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


Starter = Callable[[], AbstractContextManager[Server]]
"""Starts a program anew; raises NotRun if it cannot be had here."""


def announced(path: Path, process: subprocess.Popen[bytes], since: float) -> float:
    """Wait for the announcement of a server; return the seconds from ``since`` until then."""
    while time.monotonic() < since + _START_TIMEOUT:
        if process.poll() is not None:
            raise Failed(f"{process.args!r} ended with {process.returncode}")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_START_TIMEOUT)
            try:
                client.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(_POLL)
                continue
            if client.recv(100):
                return time.monotonic() - since
    raise Failed(f"{process.args!r} announced nothing within {_START_TIMEOUT:.0f} s")


def ours(*, file: bool = False, audit: bool = True) -> Starter:
    """Return what starts our daemon: its defaults, or with a file, or without audit trail."""

    @contextmanager
    def start() -> Iterator[Server]:
        with tempfile.TemporaryDirectory(prefix="scache-bench-") as directory:
            path = Path(directory, "socket")
            options = ["--socket", str(path), "--ttl-limit", str(TTL)]
            if file:
                options += ["--database", str(Path(directory, "cache.db"))]
            if not audit:
                options += ["--audit-rows", "0"]
            began = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-m", "scache", "serve", *options],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            with _ended(process):
                yield Server(path, process.pid, announced(path, process, began))

    return start


def genuine(open_files: int | None = None) -> Starter:
    """Return what starts Postfix's scache, under the least stand-in for master(8).

    If ``open_files`` is given, it may have no more than these.
    """

    @contextmanager
    def start() -> Iterator[Server]:
        program = _installed()
        with tempfile.TemporaryDirectory(prefix="scache-bench-") as name:
            directory = Path(name)
            _configure(directory)
            path = directory / "socket"
            with socket.socket(socket.AF_UNIX) as listener, ExitStack() as pipes:
                flow, status = os.pipe(), os.pipe()
                for descriptor in (*flow, status[1]):
                    pipes.callback(os.close, descriptor)
                threading.Thread(target=_drain, args=[status[0]], daemon=True).start()
                listener.bind(str(path))
                listener.listen(100)
                listener.setblocking(False)
                began = time.monotonic()
                descriptors = (*flow, status[1], listener.fileno())
                process = _spawn(program, directory, descriptors, open_files)
                with _ended(process):
                    yield Server(path, process.pid, announced(path, process, began))

    return start


def _installed() -> Path:
    postconf = shutil.which("postconf", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if postconf is None:
        raise NotRun("Postfix is not installed")
    if os.geteuid() != 0:
        raise NotRun("Postfix's own scache must be started as root")
    where = subprocess.run(
        [postconf, "-dh", "daemon_directory"], capture_output=True, text=True, check=True
    )
    return Path(where.stdout.strip(), "scache")


def _configure(directory: Path) -> None:
    directory.chmod(0o755)
    (directory / "pid").mkdir()
    settings = directory / "main.cf"
    settings.write_text(
        "compatibility_level = 3.6\n"
        "myhostname = localhost.localdomain\n"  # looks nothing up
        f"queue_directory = {directory}\n"
        f"data_directory = {directory}\n"
        f"connection_cache_ttl_limit = {TTL}s\n"
    )
    os.utime(settings, (0, 0))  # Postfix waits until a file that has just been written settles


def _spawn(
    program: Path, directory: Path, descriptors: Sequence[int], open_files: int | None
) -> subprocess.Popen[bytes]:
    """Start it with these as its descriptors 3 to 6; first out of the way, as they overlap."""
    away = " ".join(f"{place}<&{source}" for place, source in enumerate(descriptors, 103))
    home = " ".join(f"{place}<&{place + 100} {place + 100}<&-" for place in range(3, 7))
    limit = "" if open_files is None else f"ulimit -n {open_files};"
    return subprocess.Popen(
        ["bash", "-c", f'exec {away}; {limit} exec "$0" -l -n scache -t unix -u {home}', program],
        cwd=directory,
        env={"MAIL_CONFIG": str(directory), "MAIL_LOGTAG": "postfix", "GENERATION": "0"},
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _drain(status: int) -> None:
    """Read what the genuine program tells its master, until it has ended.

    Only now and then: a reader that waits has to be woken at every request,
    which costs the writer a quarter of its time for a pair.
    """
    with open(status, "rb", buffering=0) as pipe:
        while pipe.read(65536):
            time.sleep(_DRAIN_PAUSE)


def python_pass() -> float:
    """Return the seconds that an interpreter takes to start, do nothing and end."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "pass"], env=_environment(), check=True)
    return time.monotonic() - began


def _environment() -> dict[str, str]:
    """Return the environment without what would change the interpreter or the settings."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SCACHE_", "PYTHON"))
    }


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    with process:
        try:
            yield
        finally:
            process.kill()
