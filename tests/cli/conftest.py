"""Fixtures for the tests of the command line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import scache.daemon
from scache import errors
from scache.client.sync import Client
from scache.settings.declarations import Settings
from tests.support.looking import FakeSleep, ReplaceDaemon, StubDaemon, fill
from tests.support.sample_database import filling


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit tables to 60 columns."""
    monkeypatch.setenv("COLUMNS", "60")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Make a database file without rows."""
    path = tmp_path / "cache.db"
    with filling(path):
        pass
    return path


@pytest.fixture
def filled(file: Path) -> Path:
    """Fill the database file with some rows of each kind."""
    with filling(file) as cached:
        fill(cached)
    return file


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> StubDaemon:
    """Replace every daemon by a stand-in."""
    daemon = StubDaemon()

    def snapshot(client: Client) -> int:
        return daemon.snapshot(client)

    monkeypatch.setattr(Client, "snapshot", snapshot)
    return daemon


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> FakeSleep:
    """Replace `time.sleep` by prepared actions."""
    return FakeSleep(monkeypatch)


@pytest.fixture(autouse=True)
def own_log_level(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the handlers of pytest in each test, and restore the log level after it."""
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    logger = logging.getLogger("scache")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def replace_daemon(monkeypatch: pytest.MonkeyPatch) -> ReplaceDaemon:
    """Return a function that replaces ``scache.daemon.run``."""

    def replace(run: Callable[[Settings], int]) -> None:
        monkeypatch.setattr(scache.daemon, "run", lambda settings, _: run(settings))

    return replace


@pytest.fixture
def served(replace_daemon: ReplaceDaemon) -> list[Settings]:
    """Collect the settings of each daemon that would have run."""
    seen: list[Settings] = []

    def run(settings: Settings) -> int:
        seen.append(settings)
        return errors.EXIT_OK

    replace_daemon(run)
    return seen
