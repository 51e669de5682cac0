"""Images of a whole database, in SQLite's file format."""

from __future__ import annotations

import mmap
import os
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Final

from scache.model import Connection, SocketInfo

FORMAT_VERSIONS = slice(18, 20)
"""The write and read versions in the header of a file (SQLite docs, "Database File Format")."""
ROLLBACK_JOURNAL = b"\1\1"

FAULT: Final = "database_fault"
"""The setting in the image of a live daemon that describes the fault of its database."""

CLIENTS_SERVED: Final = "clients_served"
"""The setting in the image of a live daemon with the number of clients that it serves. Connected
clients refused because of `max_clients`, `allow_uids` or `allow_gids` are not counted."""

LOG_BYTES: Final = "log_bytes"
"""The setting in the image of a live daemon with the size of its write-ahead log."""

CLASSES: Final = "class_counts"
"""The setting in the image of a live daemon with its counts by class, as JSON."""

# The row of a connection that was found while the database refused writes still exists.
_ADD_CONNECTION = """
    INSERT OR IGNORE INTO connection (id, endpoint, properties, saved_at, expires_at, client_id)
    VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?)
"""
_ADD_DESCRIPTOR = """
    INSERT OR IGNORE INTO descriptor
        (connection_id, fd, kind, local, peer, tcp_state, rtt_us, unread_bytes)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_ADD_SETTING = "INSERT OR REPLACE INTO setting (name, value) VALUES (?, CAST(? AS TEXT))"
_TRIGGERS = "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"

MAX_DISCONNECTED_CLIENTS = 10_000
"""Rows of ``client`` kept for disconnected clients; the oldest are deleted first."""


def read(descriptor: int) -> bytes:
    """Return the image in a descriptor of `scache.Client.snapshot`, and close the descriptor."""
    try:
        # Map the file, because reading would move the offset, which is shared with the daemon.
        # Map it privately, because Linux before 6.7 refuses a shared mapping of a sealed memfd.
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY) as data:
            return data[:]
    finally:
        os.close(descriptor)


def load(image: bytes) -> sqlite3.Connection:
    """Return a database in memory with the content of the image. Raises sqlite3.Error."""
    if image[FORMAT_VERSIONS] != ROLLBACK_JOURNAL:  # in memory there is no write-ahead log
        image = image[: FORMAT_VERSIONS.start] + ROLLBACK_JOURNAL + image[FORMAT_VERSIONS.stop :]
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.deserialize(image)
    except BaseException:
        connection.close()
        raise
    return connection


def complete(
    copy: sqlite3.Connection,
    on_their_way: Iterable[Connection],
    descriptors: Iterable[tuple[int, SocketInfo]],
    settings: Mapping[str, str],
) -> bytes:
    """Add the daemon's own state to a copy of its database; return an image of the copy.

    The state consists of connections that were found and are not sent yet (their times are stamps),
    the facts of each connection's descriptor, by the connection's id, and rows of ``setting``.
    Triggers that an administrator has added stay in the image, but do not act on these rows.
    """
    copy.execute("BEGIN")
    triggers = copy.execute(_TRIGGERS).fetchall()
    for name, _ in triggers:
        copy.execute('DROP TRIGGER "{}"'.format(name.replace('"', '""')))
    copy.executemany(_ADD_CONNECTION, on_their_way)
    copy.executemany(_ADD_DESCRIPTOR, ((row_id, *facts) for row_id, facts in descriptors))
    copy.executemany(_ADD_SETTING, ((name, os.fsencode(value)) for name, value in settings.items()))
    for _, sql in triggers:
        copy.execute(sql)
    copy.execute("COMMIT")
    return copy.serialize()
