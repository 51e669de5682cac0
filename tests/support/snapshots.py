"""Looking into a daemon, with the snapshots that it gives."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from scache import Client
from scache.store.serialized import load, read


@contextmanager
def opened(descriptor: int) -> Iterator[sqlite3.Connection]:
    """Open a snapshot, and close its descriptor."""
    with closing(load(read(descriptor))) as connection:
        yield connection


def snapshot(client: Client, sql: str) -> list[tuple[Any, ...]]:
    """Return what a query gives in a snapshot."""
    with opened(client.snapshot()) as connection:
        return connection.execute(sql).fetchall()
