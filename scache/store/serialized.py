"""Images of a whole database, in the form in which SQLite would write it to a file."""

from __future__ import annotations

import mmap
import os
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Final

from scache.model import Connection, SocketInfo

FORMAT_VERSIONS = slice(18, 20)
"""In the header: how the file is to be written and read (SQLite docs, "Database File Format")."""
ROLLBACK_JOURNAL = b"\1\1"

FAULT: Final = "database_fault"
"""The setting under which the image of a live daemon says what is wrong with its database."""

CLIENTS_SERVED: Final = "clients_served"
"""The setting under which the image of a live daemon says how many clients it serves: without those
that are connected and refused, for `max_clients` or for `allow_uids` and `allow_gids`."""

# One that was found while the database could not be written is still there.
_ADD_CONNECTION = """
    INSERT OR IGNORE INTO connection (id, endpoint, properties, saved_at, expires_at, client_id)
    VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?)
"""
_ADD_DESCRIPTOR = """
    INSERT OR IGNORE INTO descriptor
        (connection_id, fd, kind, local, peer, tcp_state, rtt_us, unread_bytes)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_ADD_SETTING = "INSERT OR REPLACE INTO setting (name, value) VALUES (?, ?)"
_TRIGGERS = "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"

MAX_DISCONNECTED_CLIENTS = 10_000
"""Rows of ``client`` kept for processes that have left; the oldest go first."""


def read(descriptor: int) -> bytes:
    """Return the image that `scache.Client.snapshot` has got, and close its descriptor."""
    try:
        # The offset of the descriptor is shared with the daemon: it is neither used nor moved.
        # A private mapping, because Linux before 6.7 refuses a shared one of a sealed memfd.
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY) as data:
            return data[:]
    finally:
        os.close(descriptor)


def load(image: bytes) -> sqlite3.Connection:
    """Return a database in memory that is this image; sqlite3.Error if it is none."""
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
    """Return an image of a database, which is ours, with what only the process knows.

    That is connections that were found and not sent yet, with stamps, for they
    are still here; the facts of the descriptor of each connection, by its id;
    and rows of ``setting``. What an administrator has added to the schema is in
    the image, but refuses none of that.
    """
    copy.execute("BEGIN")
    triggers = copy.execute(_TRIGGERS).fetchall()
    for name, _ in triggers:
        copy.execute('DROP TRIGGER "{}"'.format(name.replace('"', '""')))
    copy.executemany(_ADD_CONNECTION, on_their_way)
    copy.executemany(_ADD_DESCRIPTOR, ((row_id, *facts) for row_id, facts in descriptors))
    copy.executemany(_ADD_SETTING, settings.items())
    for _, sql in triggers:
        copy.execute(sql)
    copy.execute("COMMIT")
    return copy.serialize()
