"""A database with the schema of a daemon, and rows that a test inserts."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scache.store.files import APPLICATION_ID
from scache.store.migrations import migrations, pending_script

NOW = 1_700_000_000.0
"""2023-11-14T22:13:20Z: the default time of everything."""

ODD = {
    "escape": b"\x1b[2J\x1b]0;title\x07",
    "newlines": b"two\nlines\r\n",
    "no UTF-8": b"\xff\xfe\x80",
    "bidi": "\u202egnp.exe\u2066".encode(),
    "markup": b"[bold red]x[/] :smiley:",
    "wide": "漢字かな e\u0301".encode(),
    "quotes": b"a \"b\" 'c', ; \\",
    "long": bytes(range(1, 256)) * 12,
    "empty": b"",
}
"""Labels that are difficult to show in a table, a terminal, JSON or CSV."""


class Cached:
    """A database to insert rows into; columns that a test omits have default values."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def insert(self, table: str, **columns: object) -> None:
        """Insert a row; bytes become text."""
        values = ", ".join(
            f"CAST(:{name} AS TEXT)" if isinstance(value, bytes) else f":{name}"
            for name, value in columns.items()
        )
        self._connection.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})", columns
        )

    def instance(self, row_id: int = 1, **columns: object) -> None:
        """Insert a run of the daemon."""
        row = {"started_at": NOW, "version": "1.2.3", "pid": 42, "last_id": 1_000_000} | columns
        self.insert("instance", id=row_id, **row)

    def client(self, row_id: int, **columns: object) -> None:
        """Insert a client."""
        row: dict[str, object] = {"pid": 1000 + row_id, "uid": 89, "gid": 90, "connected_at": NOW}
        self.insert("client", id=row_id, **row | columns)

    def connection(self, row_id: int, endpoint: bytes = b"e", **columns: object) -> None:
        """Insert a connection."""
        row: dict[str, object] = {"properties": b"p", "saved_at": NOW, "expires_at": NOW + 60}
        self.insert("connection", id=row_id, endpoint=endpoint, **row | {"client_id": 1} | columns)

    def binding(self, row_id: int, destination: bytes, endpoint: bytes, **columns: object) -> None:
        """Insert a binding."""
        row: dict[str, object] = {"properties": b"q", "saved_at": NOW, "expires_at": NOW + 60}
        self.insert(
            "binding",
            id=row_id,
            destination=destination,
            endpoint=endpoint,
            **row | {"client_id": 1} | columns,
        )

    def descriptor(self, connection_id: int, fd: int, **columns: object) -> None:
        """Insert a descriptor."""
        self.insert("descriptor", connection_id=connection_id, fd=fd, **{"kind": "tcp"} | columns)

    def run(self, sql: str) -> None:
        """Execute a statement."""
        self._connection.execute(sql)

    def event(self, kind: str, status: int | None = None, **columns: object) -> None:
        """Insert an event."""
        self.insert("event", **{"at": NOW, "kind": kind, "status": status} | columns)

    def count(self, **counters: int) -> None:
        """Set counters."""
        for name, value in counters.items():
            self._connection.execute("INSERT OR REPLACE INTO counter VALUES (?, ?)", (name, value))

    def setting(self, **settings: str) -> None:
        """Insert settings."""
        for name, value in settings.items():
            self.insert("setting", name=name, value=value)


@contextmanager
def filling(path: Path | str, journal: str = "WAL", newest: int | None = None) -> Iterator[Cached]:
    """Make or open a database file, and migrate it up to the version ``newest``.

    Closing it at the end removes its log.
    """
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        ((version,),) = connection.execute("PRAGMA user_version")
        connection.executescript(pending_script(version, migrations()[:newest]))
        connection.execute("BEGIN")
        yield Cached(connection)
        connection.execute("COMMIT")
    finally:
        connection.close()
