"""The schema that the migrations create, and the triggers and unique indexes added to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from functools import cache
from typing import Final, NamedTuple

from scache.store.migrations import migrations, pending_script

ADDITIONS: Final = """
    SELECT type, CAST(name AS BLOB), CAST(tbl_name AS BLOB), CAST(sql AS BLOB) FROM sqlite_schema
    WHERE type = 'trigger' OR type = 'index' AND sql LIKE 'CREATE UNIQUE%'
"""
"""Selects all triggers and unique indexes; `additions` takes the rows."""

SCHEMA: Final = (
    "SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite!_%' ESCAPE '!'"
)
"""Selects kind, name and SQL of all tables, indexes, triggers and views, also of added ones."""


TABLES: Final = "SELECT CAST(name AS BLOB) FROM sqlite_schema WHERE type = 'table'"
"""Selects the names of all tables; `mismatch` takes the rows."""


class Addition(NamedTuple):
    """A trigger or a unique index that no migration has made."""

    kind: str
    name: str
    table: str
    sql: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} on {self.table}"

    def may_say(self, message: str) -> bool:
        """Return True if this error message of SQLite may be due to this trigger or index."""
        if self.kind == "trigger":
            return message in self.sql or f"trigger {self.name}" in message
        return f"{self.table}." in message or f"index '{self.name}'" in message


@cache
def ours() -> dict[tuple[str, str], str]:
    """Return the SQL of each table, index and view that the migrations make, by kind and name."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        fresh.executescript(pending_script(0, migrations()))
        return {(kind, name): sql for kind, name, sql in fresh.execute(SCHEMA)}


@cache
def _tables(version: int) -> frozenset[str]:
    """Return the names of the tables of a version of the schema."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        fresh.executescript(pending_script(0, [m for m in migrations() if m.version <= version]))
        return frozenset(_text(name) for (name,) in fresh.execute(TABLES))


def mismatch(version: int, rows: Iterable[sqlite3.Row | tuple[object, ...]]) -> str | None:
    """Return how a database lacks the tables of its version, or has those of a later one.

    ``rows`` are of `TABLES`. Return None if the tables are those of the version; others may exist.
    """
    found = {_text(name) for (name,) in rows}
    expected = _tables(version)
    if absent := sorted(expected - found):
        return f"has not its tables ({', '.join(absent)})"
    if early := sorted(found & _tables(migrations()[-1].version) - expected):
        return f"has tables of a later version ({', '.join(early)})"
    return None


def additions(rows: Iterable[sqlite3.Row | tuple[object, ...]]) -> list[Addition]:
    """Return the triggers and unique indexes that no migration makes, of rows of `ADDITIONS`."""
    found = [Addition(*(_text(value) for value in row)) for row in rows]
    return [each for each in found if (each.kind, each.name) not in ours()]


def blamed(found: list[Addition], message: str = "") -> str:
    """Return a comma-separated list of the additions that may have caused an error of SQLite.

    Only those that fit its message are listed; all of them if none fits. Empty without additions.
    """
    culprits = [each for each in found if message and each.may_say(message)]
    return ", ".join(map(str, culprits or found))


def _text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
