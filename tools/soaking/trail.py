"""The books: what a snapshot, or a database file, says of every connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

from scache.store.snapshot import load, read

WAYS_OUT = ("found", "expired", "evicted", "hung_up", "purged", "lost")

LATE = 2.0
"""Seconds after its end by which a connection must have expired, on however busy a machine."""

_OUT = f"kind IN ({', '.join(repr(way) for way in WAYS_OUT)}) AND connection_id IS NOT NULL"

CHECKS = {
    "two ways out": f"""
        SELECT connection_id, group_concat(kind) FROM event WHERE {_OUT}
        GROUP BY connection_id HAVING count(*) > 1""",
    "live, and out": f"""
        SELECT connection_id FROM event WHERE {_OUT}
        AND connection_id IN (SELECT id FROM connection)""",
    "saved, and neither live nor out": f"""
        SELECT connection_id FROM event WHERE kind = 'save_endp' AND status = 0
        AND connection_id NOT IN (SELECT id FROM connection)
        AND connection_id NOT IN (SELECT connection_id FROM event WHERE {_OUT})""",
    "live, without a descriptor": """
        SELECT id FROM connection WHERE id NOT IN (SELECT connection_id FROM descriptor)""",
    "a descriptor, and not live": """
        SELECT connection_id FROM descriptor WHERE connection_id NOT IN
        (SELECT id FROM connection)""",
    "out at another endpoint than saved": f"""
        SELECT o.connection_id FROM (SELECT * FROM event WHERE {_OUT}) AS o
        JOIN event AS s USING (connection_id)
        WHERE s.kind = 'save_endp' AND o.endpoint <> s.endpoint""",
    "expired too early": """
        SELECT s.connection_id, o.age, s.ttl FROM event AS o JOIN event AS s USING (connection_id)
        WHERE o.kind = 'expired' AND s.kind = 'save_endp' AND o.age < s.ttl - 0.001""",
    "found when it had expired": """
        SELECT s.connection_id, o.age, s.ttl FROM event AS o JOIN event AS s USING (connection_id)
        WHERE o.kind IN ('find_endp', 'find_dest') AND s.kind = 'save_endp'
        AND o.age > s.ttl + 0.001""",
    "expired too late": f"""
        SELECT s.connection_id, o.age, s.ttl FROM event AS o JOIN event AS s USING (connection_id)
        WHERE o.kind = 'expired' AND s.kind = 'save_endp' AND o.age > s.ttl + {LATE}""",
}
"""What must not be: no query has a row."""


class Books(NamedTuple):
    """What they say."""

    wrong: list[str]
    saved: int
    live: int
    bindings: int
    events: int
    ways_out: dict[str, int]


@contextmanager
def opened(descriptor: int) -> Iterator[sqlite3.Connection]:
    """Open a snapshot, whose text is bytes, and close its descriptor."""
    with closing(load(read(descriptor))) as connection:
        connection.text_factory = bytes
        yield connection


def check(connection: sqlite3.Connection) -> Books:
    """Look whether everything agrees in a snapshot, of whose trail the oldest may be gone."""
    wrong = []
    if connection.execute("PRAGMA integrity_check").fetchall() != [(b"ok",)]:
        wrong.append("the database is corrupt")
    # It is an image of our own.
    connection.execute("CREATE INDEX by_connection ON event (connection_id, kind)")
    for name, sql in CHECKS.items():
        rows = connection.execute(sql).fetchmany(5)
        if rows:
            wrong.append(f"{name}: {rows}")
    counters = {
        name.decode(): value
        for name, value in connection.execute("SELECT name, value FROM counter")
    }
    ways_out = {way: counters.get(f"connections_{way}", 0) for way in WAYS_OUT}
    saved = counters.get("save_endp_ok", 0)
    cached = _count(connection, "connection")
    if saved != sum(ways_out.values()) + cached:
        wrong.append(f"counters: saved {saved}, out {ways_out}, live {cached}")
    if counters.get("events_dropped"):
        wrong.append(f"{counters['events_dropped']} events dropped")
    return Books(
        wrong, saved, cached, _count(connection, "binding"), _count(connection, "event"), ways_out
    )


def labels(connection: sqlite3.Connection) -> tuple[list[bytes], list[bytes]]:
    """Return the endpoints and the destinations of all that is cached."""
    endpoints = connection.execute("SELECT DISTINCT endpoint FROM connection")
    destinations = connection.execute("SELECT DISTINCT destination FROM binding")
    return [row[0] for row in endpoints], [row[0] for row in destinations]


def _count(connection: sqlite3.Connection, table: str) -> int:
    (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(count)
