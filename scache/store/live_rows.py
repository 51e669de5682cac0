"""The rows of the current connections, bindings and clients.

They are read and written on the event loop's thread. Statements find their rows through an index,
so that a request neither scans nor sorts a table, and none waits for a disk.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from scache.errors import DatabaseFault
from scache.model import Connection, Peer
from scache.store.batch import Batch, Parameters, text
from scache.store.serialized import MAX_DISCONNECTED_CLIENTS
from scache.store.steps import following
from scache.vocabulary import CLIENTS_NOT_RECORDED

_BINDING_SIZE = """length(CAST(destination AS BLOB)) + length(CAST(endpoint AS BLOB))
    + length(CAST(properties AS BLOB))"""
_GONE = f"id, destination, endpoint, saved_at, expires_at, {_BINDING_SIZE}"
# CAST keeps any bytes exact in a TEXT column, and SQL tools show them as text.
_SAVE_CONNECTION = """
    INSERT INTO connection (id, endpoint, properties, saved_at, expires_at, client_id)
    VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?)
"""
# A SELECT and a DELETE by key are faster than one DELETE ... RETURNING with a subquery.
_OLDEST_OF_ENDPOINT = """
    SELECT id, endpoint, properties, saved_at, expires_at, client_id FROM connection
    WHERE endpoint = CAST(? AS TEXT) AND expires_at > ? ORDER BY id LIMIT 1
"""
_OLDEST_OF_DESTINATION = """
    SELECT c.id, c.endpoint, c.properties, c.saved_at, c.expires_at, c.client_id,
        b.properties, b.id
    FROM binding AS b CROSS JOIN connection AS c ON c.endpoint = b.endpoint
    WHERE b.destination = CAST(?1 AS TEXT) AND b.expires_at > ?2 AND c.expires_at > ?2
    ORDER BY b.id, c.id LIMIT 1
"""
_REMOVE_CONNECTION = "DELETE FROM connection WHERE endpoint = CAST(? AS TEXT) AND id = ?"
_REFRESH_BINDING = """
    UPDATE binding SET expires_at = ? WHERE destination = CAST(? AS TEXT)
    AND endpoint = CAST(? AS TEXT) AND properties = CAST(? AS TEXT) AND expires_at > ?
    RETURNING id
"""
_ADD_BINDING = """
    INSERT INTO binding (id, destination, endpoint, properties, saved_at, expires_at, client_id)
    VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?)
    ON CONFLICT (destination, endpoint, properties) DO NOTHING
"""
_SAME_BINDING = """
    SELECT id, saved_at, expires_at, expires_at > ? FROM binding WHERE destination = CAST(? AS TEXT)
    AND endpoint = CAST(? AS TEXT) AND properties = CAST(? AS TEXT)
"""
_REPLACE_BINDING = """
    UPDATE binding SET id = ?, saved_at = ?, expires_at = ?, client_id = ?
    WHERE destination = CAST(? AS TEXT)
    AND endpoint = CAST(? AS TEXT) AND properties = CAST(? AS TEXT)
"""
_REMOVE_BINDING = "DELETE FROM binding WHERE destination = CAST(? AS TEXT) AND id = ?"
_CONNECTIONS_OF_ENDPOINT = """
    SELECT id FROM connection WHERE endpoint = CAST(? AS TEXT) ORDER BY id LIMIT ?
"""
_BINDINGS_OF_DESTINATION = f"""
    SELECT {_GONE} FROM binding
    WHERE destination = CAST(? AS TEXT) ORDER BY id LIMIT ?
"""
_EXPIRED_BINDINGS = f"""
    SELECT {_GONE} FROM binding
    WHERE expires_at <= ? ORDER BY expires_at LIMIT ?
"""
_FIRST_BINDING = f"""
    SELECT {_GONE} FROM binding
    WHERE expires_at > 0 AND id != ? ORDER BY expires_at LIMIT 1
"""
_LATEST_EXPIRY_OF_ENDPOINT = """
    SELECT max(expires_at) FROM (
        SELECT expires_at FROM connection WHERE endpoint = CAST(? AS TEXT) ORDER BY id DESC LIMIT ?
    )
    WHERE expires_at <= ?
"""
_ENDPOINTS_OF_DESTINATION = """
    SELECT endpoint, expires_at FROM binding
    WHERE destination = CAST(? AS TEXT) ORDER BY id LIMIT ?
"""
_NEXT_BINDING_EXPIRY = "SELECT min(expires_at) FROM binding"
_DESTINATIONS = f"""
    SELECT destination, count(*), sum({_BINDING_SIZE}) FROM binding GROUP BY destination
"""
_ADD_CLIENT = """
    INSERT INTO client (id, pid, uid, gid, connected_at, program)
    VALUES (?, ?, ?, ?, ?, CAST(? AS TEXT))
"""
_END_CLIENT = "UPDATE client SET disconnected_at = ? WHERE id = ?"
_DELETE_CLIENT = "DELETE FROM client WHERE id = ?"
_FORGET_CLIENT = """
    DELETE FROM client
    WHERE id = (SELECT min(id) FROM client WHERE disconnected_at IS NOT NULL)
"""
_COUNT_DISCONNECTED = "SELECT count(*) FROM client WHERE disconnected_at IS NOT NULL"


class Binding(NamedTuple):
    """A row of the table ``binding``: an endpoint that serves a destination."""

    id: int
    destination: bytes
    endpoint: bytes
    properties: bytes
    saved_at: float
    expires_at: float
    client_id: int

    @property
    def size(self) -> int:
        """Bytes of the labels and the properties."""
        return len(self.destination) + len(self.endpoint) + len(self.properties)


class Gone(NamedTuple):
    """A binding that was removed, or is about to be removed."""

    id: int
    destination: bytes
    endpoint: bytes
    saved_at: float
    expires_at: float
    size: int
    """Bytes of the labels and the properties."""


class Saved(NamedTuple):
    """The outcome of saving a binding."""

    binding_id: int
    """The id of the stored binding: that of the new row, or of the same binding saved earlier."""
    added: bool
    """True if no row of the same binding existed."""
    replaced: Gone | None = None
    """The expired row of the same binding that was replaced."""


def as_row(row: Connection, offset: float) -> Parameters:
    """Convert a connection to a row of its table, in which times are stamps."""
    row_id, endpoint, properties, saved_at, expires_at, client_id = row
    stamps = saved_at + offset, expires_at + offset
    return row_id, text(endpoint), text(properties), *stamps, client_id


class LiveRows:
    """The tables ``connection``, ``binding`` and ``client`` of a running daemon.

    A method raises DatabaseFault, and changes nothing, when the database refuses a write. Methods
    marked "Never refused" do not raise it: their writes are kept until the database accepts them.

    Arguments and results have times of `Clock.now`; the tables have stamps.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._clock = batch.clock
        self._unrecorded: set[int] = set()
        ((self._disconnected,),) = batch.query(_COUNT_DISCONNECTED, ())

    def follow_clock(self) -> None:
        """Shift the stamps of live rows by the step of the wall clock. Never refused."""
        for operation in following(self._clock):
            self._batch.execute_eventually(*operation)

    def save_connection(self, row: Connection) -> None:
        """Insert the row of a connection."""
        if not self._batch.add(_SAVE_CONNECTION, as_row(row, self._clock.offset)).rowcount:
            raise self._batch.ignored()

    def restore_connection(self, row: Connection) -> None:
        """Put back a connection that was taken, with its old id. Never refused."""
        taken = (_REMOVE_CONNECTION, (text(row.endpoint), row.id))
        self._batch.undo(taken, (_SAVE_CONNECTION, as_row(row, self._clock.offset)))

    def oldest_of_endpoint(self, endpoint: bytes, now: float) -> Connection | None:
        """Return the oldest connection of an endpoint that has not expired."""
        self._batch.begin()
        stamp = now + self._clock.offset
        for row in self._batch.query(_OLDEST_OF_ENDPOINT, (text(endpoint), stamp)):
            return self._connection(*row)
        return None

    def oldest_of_destination(
        self, destination: bytes, now: float
    ) -> tuple[Connection, bytes, int] | None:
        """Return a connection for a destination, and the properties and id of its binding.

        The endpoints are tried in the order in which they were bound. The result is the oldest
        connection of the first endpoint that has one.
        """
        self._batch.begin()
        stamp = now + self._clock.offset
        for *row, properties, binding_id in self._batch.query(
            _OLDEST_OF_DESTINATION, (text(destination), stamp)
        ):
            return self._connection(*row), properties, binding_id
        return None

    def _connection(
        self,
        row_id: int,
        endpoint: bytes,
        properties: bytes,
        saved_at: float,
        expires_at: float,
        client_id: int,
    ) -> Connection:
        offset = self._clock.offset
        times = saved_at - offset, expires_at - offset
        return Connection(row_id, endpoint, properties, *times, client_id)

    def take_connection(self, row: Connection) -> None:
        """Remove a connection that is about to be handed over."""
        if not self._batch.execute(_REMOVE_CONNECTION, (text(row.endpoint), row.id)).rowcount:
            raise self._batch.ignored()

    def remove_connection(self, endpoint: bytes, connection_id: int) -> None:
        """Remove a connection after its descriptor was closed. Never refused."""
        self._batch.execute_eventually(_REMOVE_CONNECTION, (text(endpoint), connection_id))

    def save_binding(self, row: Binding, *, may_add: bool = True) -> Saved | None:
        """Extend the binding if it is saved already and has not expired; otherwise add it.

        Return None if it would have to be added and ``may_add`` is false.
        """
        offset = self._clock.offset
        identity = (text(row.destination), text(row.endpoint), text(row.properties))
        saved_at, expires_at = row.saved_at + offset, row.expires_at + offset
        refresh = (expires_at, *identity, saved_at)
        for (binding_id,) in self._batch.add(_REFRESH_BINDING, refresh).fetchall():
            return Saved(binding_id, added=False)
        if not may_add:
            return None
        adding = (row.id, *identity, saved_at, expires_at, row.client_id)
        if self._batch.execute(_ADD_BINDING, adding).rowcount:
            return Saved(row.id, added=True)
        same = self._batch.query(_SAME_BINDING, (saved_at, *identity))
        if not same:
            raise self._batch.ignored()
        ((old_id, *old_times, is_live),) = same
        if is_live:
            raise self._batch.ignored(writes=2)
        replacing = (row.id, saved_at, expires_at, row.client_id, *identity)
        if not self._batch.execute(_REPLACE_BINDING, replacing).rowcount:
            raise self._batch.ignored()
        began, ended = (stamp - offset for stamp in old_times)
        replaced = Gone(old_id, row.destination, row.endpoint, began, ended, row.size)
        return Saved(row.id, added=False, replaced=replaced)

    def remove_binding(self, destination: bytes, binding_id: int) -> None:
        """Remove a binding that exists."""
        if not self._batch.execute(_REMOVE_BINDING, (text(destination), binding_id)).rowcount:
            raise self._batch.ignored()

    def expired_bindings(self, now: float, limit: int) -> list[Gone]:
        """Return up to ``limit`` expired bindings, in the order of their expiry."""
        self._batch.catch_up()  # a step of the clock may not be written yet
        return self._gone(_EXPIRED_BINDINGS, (now + self._clock.offset, limit))

    def connections_of_endpoint(self, endpoint: bytes, limit: int) -> list[int]:
        """Return the ids of up to ``limit`` connections of an endpoint, the oldest first."""
        self._batch.begin()
        rows = self._batch.query(_CONNECTIONS_OF_ENDPOINT, (text(endpoint), limit))
        return [row_id for (row_id,) in rows]

    def bindings_of_destination(self, destination: bytes, limit: int) -> list[Gone]:
        """Return up to ``limit`` bindings of a destination, the oldest first, for their removal."""
        self._batch.begin()
        return self._gone(_BINDINGS_OF_DESTINATION, (text(destination), limit))

    def _gone(self, sql: str, parameters: Parameters) -> list[Gone]:
        offset = self._clock.offset
        return [
            Gone(row_id, destination, endpoint, saved_at - offset, expires_at - offset, size)
            for row_id, destination, endpoint, saved_at, expires_at, size in self._batch.query(
                sql, parameters
            )
        ]

    def first_binding(self, besides: int) -> Gone | None:
        """Return the binding that expires first; ``besides`` is an id to leave out."""
        self._batch.begin()
        return next(iter(self._gone(_FIRST_BINDING, (besides,))), None)

    def latest_expiry_of_endpoint(self, endpoint: bytes, now: float, limit: int) -> float | None:
        """Return when the latest connection of an endpoint expired that is not removed yet.

        Only the ``limit`` newest connections are read; None if none of them has expired.
        """
        offset = self._clock.offset
        parameters = (text(endpoint), limit, now + offset)
        ((expires_at,),) = self._batch.query(_LATEST_EXPIRY_OF_ENDPOINT, parameters)
        return None if expires_at is None else float(expires_at) - offset

    def endpoints_of_destination(self, destination: bytes, limit: int) -> list[tuple[bytes, float]]:
        """Return endpoint and expiry time of the ``limit`` oldest bindings, also expired ones."""
        offset = self._clock.offset
        rows = self._batch.query(_ENDPOINTS_OF_DESTINATION, (text(destination), limit))
        return [(endpoint, expires_at - offset) for endpoint, expires_at in rows]

    def next_binding_expiry(self) -> float:
        """Return the time at which the next binding expires; inf if there is none."""
        self._batch.catch_up()
        ((expires_at,),) = self._batch.query(_NEXT_BINDING_EXPIRY, ())
        return math.inf if expires_at is None else float(expires_at) - self._clock.offset

    def bindings_by_destination(self) -> list[tuple[bytes, int, int]]:
        """Return each destination with the number and the bytes of its bindings.

        This reads the whole table, so use it only at the start.
        """
        return [(bytes(label), *counts) for label, *counts in self._batch.query(_DESTINATIONS, ())]

    def add_client(self, client_id: int, peer: Peer, now: float) -> None:
        """Record that a client has connected. Never refused, but not recorded during a fault."""
        try:
            pid, uid, gid, program = peer
            stamp = now + self._clock.offset
            row = (client_id, pid, uid, gid, stamp, program and text(program))
            if not self._batch.add(_ADD_CLIENT, row).rowcount:
                raise self._batch.ignored()
        except DatabaseFault:
            self._unrecorded.add(client_id)
            self._batch.counts[CLIENTS_NOT_RECORDED] += 1

    def forget_client(self, client_id: int) -> None:
        """Delete the row of a client to which no other row refers. Never refused."""
        if client_id in self._unrecorded:
            self._unrecorded.remove(client_id)
        else:
            self._batch.execute_eventually(_DELETE_CLIENT, (client_id,))

    def end_client(self, client_id: int, now: float) -> None:
        """Record that a client has disconnected, and delete the oldest row beyond the limit.

        Never refused.
        """
        if client_id in self._unrecorded:
            self._unrecorded.remove(client_id)
            return
        self._batch.execute_eventually(_END_CLIENT, (now + self._clock.offset, client_id))
        self._disconnected += 1
        if self._disconnected > MAX_DISCONNECTED_CLIENTS:
            self._batch.execute_eventually(_FORGET_CLIENT, ())
            self._disconnected -= 1
