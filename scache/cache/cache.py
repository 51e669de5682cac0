"""The four operations of scache(8), with its semantics, on SQLite."""

from __future__ import annotations

import math
from collections.abc import Callable

from scache import fdpass
from scache.cache.agenda import Agenda
from scache.cache.descriptors import Descriptors
from scache.cache.statistics import Statistics
from scache.clock import Clock
from scache.errors import DatabaseFault
from scache.model import Connection, Loan, Peer, Status
from scache.store import FAULT_RETRY_INTERVAL, Binding, Database, LiveRows, Saved

EXPIRY_SLICE = 64
"""Rows that `Cache.expire` clears away at a time, so that requests come in between."""

_SAVE_ENDP = tuple(f"save_endp_{status.name.lower()}" for status in Status)
_SAVE_DEST = tuple(f"save_dest_{status.name.lower()}" for status in Status)


class Cache:
    """What is cached: rows in the database, descriptors in the process, joined by row id.

    Plain functions on the event loop's thread: a change of state never
    straddles an await. Where the database says no, the answer is
    ``Status.FAIL``, or no connection, at once.
    """

    def __init__(self, database: Database, clock: Clock, ttl_limit: float) -> None:
        self.on_earlier_expiry: Callable[[], None] = lambda: None
        """Called when something was saved that expires before `expire` said."""
        self.statistics = Statistics(clock.now())
        self._clock = clock
        self._ttl_limit = ttl_limit
        self._ids = database.ids
        self.counts = database.batch.counts
        """Totals to be added to the table ``counter``: count here by its names."""
        self._rows = LiveRows(database.batch)
        self._descriptors = Descriptors()
        self._agenda = Agenda()
        self._next_expiry = math.inf
        for destination, count in self._rows.bindings_by_destination().items():
            self.statistics.bindings_added(destination, count)

    def save_endp(
        self, ttl: float, endpoint: bytes, properties: bytes, descriptor: int | None, client_id: int
    ) -> Status:
        """Park a connection for ``ttl`` seconds, or the limit if that is less.

        The descriptor is the cache's from here on, and is closed if it is
        refused; None, because the client sent none, is.
        """
        status = Status.FAIL
        if descriptor is not None:
            now = self._clock.now()
            expires_at = now + min(ttl, self._ttl_limit)
            row = Connection(self._ids.take(), endpoint, properties, now, expires_at, client_id)
            try:
                self._rows.save_connection(row)
            except DatabaseFault:
                fdpass.close([descriptor])
            else:
                self._park(row, descriptor)
                self.statistics.saved()
                status = Status.OK
        self.counts[_SAVE_ENDP[status]] += 1
        return status

    def find_endp(self, endpoint: bytes) -> Loan | None:
        """Take the oldest connection of an endpoint."""
        found = None
        try:
            row = self._rows.oldest_of_endpoint(endpoint, self._clock.now())
            if row is not None:
                found = self._take(row, b"")
        except DatabaseFault:
            pass
        if found is None:
            self.statistics.address_misses += 1
            self.counts["find_endp_fail"] += 1
        else:
            self.statistics.address_hits += 1
            self.counts["find_endp_ok"] += 1
        return found

    def save_dest(
        self, ttl: float, destination: bytes, properties: bytes, endpoint: bytes, client_id: int
    ) -> Status:
        """Bind a destination to an endpoint for ``ttl`` seconds, or the limit if that is less.

        The same triple of destination, endpoint and properties again only
        moves the expiry, to sooner or to later.
        """
        now = self._clock.now()
        expires_at = now + min(ttl, self._ttl_limit)
        binding_id = self._ids.take()
        row = Binding(binding_id, destination, endpoint, properties, now, expires_at, client_id)
        try:
            saved = self._rows.save_binding(row)
        except DatabaseFault:
            status = Status.FAIL
        else:
            if saved is Saved.ADDED:
                self.statistics.bindings_added(destination)
            elif saved is Saved.REPLACED:
                self.counts["bindings_expired"] += 1
            self.statistics.saved()
            if expires_at < self._next_expiry:
                self._expire_earlier(expires_at)
            status = Status.OK
        self.counts[_SAVE_DEST[status]] += 1
        return status

    def find_dest(self, destination: bytes) -> Loan | None:
        """Take the oldest connection of the first endpoint of a destination that has one."""
        found = None
        try:
            hit = self._rows.oldest_of_destination(destination, self._clock.now())
            if hit is not None:
                found = self._take(*hit)
        except DatabaseFault:
            pass
        if found is None:
            self.statistics.domain_misses += 1
            self.counts["find_dest_fail"] += 1
        else:
            self.statistics.domain_hits += 1
            self.counts["find_dest_ok"] += 1
        return found

    def delivered(self, found: Loan) -> None:
        """Close our copy of a descriptor that the client has been sent."""
        self._descriptors.close_lent(found.connection.id)
        self.counts["connections_found"] += 1

    def put_back(self, found: Loan) -> None:
        """Take back a connection that was found but never sent, with its remaining ttl."""
        row = found.connection
        if row.expires_at <= self._clock.now():
            self._descriptors.close_lent(row.id)
            self.counts["connections_expired"] += 1
            return
        self._rows.restore_connection(row)
        self._park(row, self._descriptors.take_back(row.id))

    def expire(self) -> float:
        """Clear away a slice of what has expired; return when there is more to do.

        That is in seconds since the epoch, in the past if there is more to do
        already, and inf if nothing is cached.
        """
        now = self._clock.now()
        try:
            more = self._clear_slice(now)
            self._next_expiry = now if more else self._rows.next_binding_expiry()
        except DatabaseFault:
            self._next_expiry = now + FAULT_RETRY_INTERVAL
        self._next_expiry = min(self._next_expiry, self._agenda.next_due())
        return self._next_expiry

    def client_connected(self, peer: Peer) -> int:
        """Record a client; return the id by which rows refer to it."""
        client_id = self._ids.take()
        self._rows.add_client(client_id, peer, self._clock.now())
        self.counts["clients_connected"] += 1
        return client_id

    def client_disconnected(self, client_id: int) -> None:
        """Record that a client has gone. What it saved stays."""
        self._rows.end_client(client_id, self._clock.now())

    def close(self) -> None:
        """Close every descriptor; the cache is of no use after that."""
        self._descriptors.close_all()

    def _take(self, row: Connection, destination_properties: bytes) -> Loan:
        """Remove a connection from the cache, its descriptor lent to the one who asked."""
        self._rows.take_connection(row)
        self.statistics.connection_removed(row.endpoint)
        self._agenda.remove(row.expires_at, row.id)
        return Loan(row, self._descriptors.lend(row.id), destination_properties)

    def _park(self, row: Connection, descriptor: int) -> None:
        """Keep a descriptor whose row is in the database."""
        self._descriptors.park(row.id, descriptor)
        self._agenda.add(row.expires_at, row.id, row.endpoint)
        self.statistics.connection_added(row.endpoint)
        if row.expires_at < self._next_expiry:
            self._expire_earlier(row.expires_at)

    def _expire_earlier(self, expires_at: float) -> None:
        """Make sure that `expire` is called in time."""
        self._next_expiry = expires_at
        self.on_earlier_expiry()

    def _clear_slice(self, now: float) -> bool:
        """Clear away what has expired; return whether more of it may be left."""
        connections = self._agenda.take_due(now, EXPIRY_SLICE)
        for connection_id, endpoint in connections:
            self._descriptors.close_parked(connection_id)
            self.statistics.connection_removed(endpoint)
            self._rows.remove_connection(endpoint, connection_id)
            self.counts["connections_expired"] += 1
        if len(connections) == EXPIRY_SLICE:
            return True
        bindings = self._rows.expired_bindings(now, EXPIRY_SLICE)
        for binding_id, destination in bindings:
            if self._rows.remove_binding(destination, binding_id):
                self.statistics.binding_removed(destination)
                self.counts["bindings_expired"] += 1
        return len(bindings) == EXPIRY_SLICE
