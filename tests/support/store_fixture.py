"""A database of the store in the process of the tests, without async in the tests."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from scache.model import Connection
from scache.store.database import Database, open_database
from scache.store.live_rows import Binding
from scache.store.recovery import Start
from tests.support.clocks import HandClock

T = TypeVar("T")

NOW = 1_700_000_000.0
"""Seconds since the epoch; the default start of a run."""


class Opened:
    """The database of one run of the daemon."""

    def __init__(
        self,
        path: Path | str,
        now: float | HandClock = NOW,
        ttl_limit: float = 300,
        audit_rows: int = 1000,
        *,
        set_aside: bool = True,
    ) -> None:
        self.clock = HandClock(now) if isinstance(now, float | int) else now
        """The clock of the database."""
        self._runner = asyncio.Runner()
        settings = {"ttl_limit": str(ttl_limit)}
        start = Start(self.clock, "1.2.3", ttl_limit, audit_rows, settings, set_aside)
        self._context = open_database(str(path), start)
        self.database: Database
        """The open database."""

    def __enter__(self) -> Self:
        try:
            self.database = self._runner.run(self._context.__aenter__())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._context.__aexit__(None, None, None))
        self._runner.close()

    def run(self, control: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the database; leaving without `Database.stop` is a crash."""
        return self._runner.run(control)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query, the open batch included."""
        return self.database.batch.query(sql, ())


def read(path: Path | str, sql: str) -> list[tuple[Any, ...]]:
    """Return the rows that another program sees in a file: committed batches, text as bytes."""
    with closing(sqlite3.connect(path)) as other:
        other.text_factory = bytes
        return other.execute(sql).fetchall()


@contextmanager
def locked(path: Path | str) -> Iterator[None]:
    """Hold the write lock of a file, as another program."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def no_space() -> Iterator[None]:
    """Let no file of this process grow, so that a commit fails in write(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def connection(row_id: int, endpoint: bytes = b"e", ttl: float = 60) -> Connection:
    """Return a row that was saved now."""
    return Connection(row_id, endpoint, b"p%d" % row_id, NOW, NOW + ttl, 1)


def binding(
    row_id: int, destination: bytes = b"d", endpoint: bytes = b"e", ttl: float = 60
) -> Binding:
    """Return a row that was saved now."""
    return Binding(row_id, destination, endpoint, b"q", NOW, NOW + ttl, 1)


def fault_of(opened: Database) -> str | None:
    """Return the current fault; mypy assumes that the attribute does not change."""
    return opened.fault
