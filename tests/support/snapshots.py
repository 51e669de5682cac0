"""Queries in a snapshot of a daemon."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from scache import Client
from scache.store.serialized import load, read


@contextmanager
def opened(descriptor: int) -> Iterator[sqlite3.Connection]:
    """Open a snapshot as a database, and close its descriptor."""
    with closing(load(read(descriptor))) as connection:
        yield connection


def snapshot(client: Client, sql: str) -> list[tuple[Any, ...]]:
    """Take a snapshot and return the rows of a query in it."""
    with opened(client.snapshot()) as connection:
        return connection.execute(sql).fetchall()
