"""Commands run in the process of the test, and stand-ins for a daemon and for time."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scache import errors
from scache.cli.main import execute
from scache.client.sync import Client
from scache.settings.declarations import Settings
from tests.support.sample_database import NOW, ODD, Cached

Capture = pytest.CaptureFixture[str]

ReplaceDaemon = Callable[[Callable[[Settings], int]], None]
"""Replaces ``scache.daemon.run`` by a function."""


def fill(cached: Cached) -> None:
    """Fill a database with a small cache and its history."""
    cached.instance()
    cached.client(1, program=b"smtp")
    cached.client(2, pid=7, program=b"lmtp", disconnected_at=NOW + 5)
    for number, label in enumerate(ODD.values(), 10):
        cached.connection(number, label)
        cached.binding(number + 50, label, label)
    for number in range(1, 11):
        kind, status = ("find_dest", 2) if number % 2 else ("save_endp", 0)
        cached.event(
            kind,
            status,
            id=number,
            at=NOW + number * 60,
            destination=b"d%d.org" % number if number % 2 else None,
            endpoint=None if number % 2 else b"e%d.org:25" % number,
            client_id=1 + number % 2,
            connection_id=None if number % 2 else number,
        )
    cached.event("expired", id=11, at=NOW + 700, endpoint=b"e2.org:25", connection_id=2, age=1.5)
    cached.count(save_endp_ok=40, find_dest_ok=9, find_dest_fail=1, connections_found=9)
    cached.setting(audit_rows="100", ttl_limit="300", database="/var/cache.db", announce="true")


def run(capsys: Capture, *arguments: str | Path) -> str:
    """Run a command that succeeds; return its output."""
    assert execute(list(map(str, arguments))) == errors.EXIT_OK
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def failure(capsys: Capture, *arguments: str | Path) -> tuple[int, str]:
    """Run a command that fails; return its exit code and its message."""
    code = execute(list(map(str, arguments)))
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("scache: ")
    assert output.err.count("\n") == 1
    return code, output.err.removeprefix("scache: ").rstrip()


class StubDaemon:
    """A stand-in for a running daemon, which answers snapshots from a file."""

    def __init__(self) -> None:
        self.file: Path | None = None
        self.error: Exception | None = None
        """Raised instead of an answer, if it is set."""
        self.asked: list[str] = []
        """The sockets of the requests."""

    def snapshot(self, client: Client) -> int:
        """Return a sealed memfd, whose offset is not at its begin, or raise the error."""
        self.asked.append(repr(client).split()[1])
        if self.error is not None:
            raise self.error
        assert self.file is not None
        descriptor = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(descriptor, self.file.read_bytes())
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        return descriptor


class FakeSleep:
    """A stand-in for `time.sleep`, each call of which runs the next prepared action."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._actions: list[Callable[[], None]] = []
        self.seconds: list[float] = []
        """The arguments of the calls."""
        monkeypatch.setattr(time, "sleep", self._sleep)

    def then(self, action: Callable[[], None]) -> None:
        """Prepare an action; the call after the last one raises KeyboardInterrupt."""
        self._actions.append(action)

    def _sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if not self._actions:
            raise KeyboardInterrupt
        self._actions.pop(0)()
