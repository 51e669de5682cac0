"""A database of the store in the process of the tests, opened and closed by plain functions."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from scache.store import Database, Start, open_database
from tests.support.clocks import HandClock

T = TypeVar("T")

NOW = 1_700_000_000.0
"""Seconds since the epoch: when runs start, unless a test says otherwise."""


class Opened:
    """A run of the daemon as far as its database is concerned."""

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
        """What tells the time to the database."""
        self._runner = asyncio.Runner()
        settings = {"ttl_limit": str(ttl_limit)}
        start = Start(self.clock, "1.2.3", ttl_limit, audit_rows, settings, set_aside)
        self._context = open_database(str(path), start)
        self.database: Database
        """The database, from entering to leaving."""

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
        """Let the control plane do something; leaving without `Database.stop` is a crash."""
        return self._runner.run(control)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Return what the data plane's own connection sees: the batch under way included."""
        return self.database.batch.query(sql, ())


def read(path: Path | str, sql: str) -> list[tuple[Any, ...]]:
    """Return what somebody else sees in a file: whole batches; labels come as bytes."""
    with closing(sqlite3.connect(path)) as other:
        other.text_factory = bytes
        return other.execute(sql).fetchall()


@contextmanager
def locked(path: Path | str) -> Iterator[None]:
    """Be another program in the middle of writing to a file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def no_space() -> Iterator[None]:
    """Let no file of this process grow: a commit then fails on its way to the disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
