"""A daemon with one client, and what the client reads in its snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scache import Client
from tests.support.daemon import Daemon
from tests.support.snapshots import snapshot


@contextmanager
def served(path: Path, *options: str, database: str = ":memory:") -> Iterator[Client]:
    """Run a daemon with these options, and connect one client."""
    with Daemon(path, *options, database=database) as daemon, Client(daemon.path) as client:
        yield client


def count(client: Client, name: str) -> int:
    """Return the value of a counter."""
    rows = snapshot(client, f"SELECT value FROM counter WHERE name = '{name}'")
    return rows[0][0] if rows else 0


def pid_of(client: Client) -> int:
    """Return the daemon's process id."""
    return int(snapshot(client, "SELECT pid FROM instance")[0][0])


def refusals(client: Client) -> list[tuple[str, str]]:
    """Return the kind and the detail of each request that was refused or malformed."""
    return snapshot(
        client,
        "SELECT DISTINCT kind, detail FROM event WHERE status > 0 AND detail NOTNULL "
        "AND id NOT IN (SELECT id FROM find_miss) ORDER BY id",
    )
