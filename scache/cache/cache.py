"""The four operations of scache(8), with its semantics, on SQLite."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator

from scache.cache.descriptors import Descriptors, Parked
from scache.cache.expiry import ExpiryQueue
from scache.cache.limits import Limits
from scache.cache.liveness import Kind, kind_of
from scache.cache.slices import in_time
from scache.cache.statistics import Statistics
from scache.clock import Clock
from scache.errors import DatabaseFault
from scache.model import Connection, Delivery, Peer, Status
from scache.store import FAULT_RETRY_INTERVAL, Binding, Database, Gone, LiveRows
from scache.unix.closing import Closer
from scache.vocabulary import Limit

EXPIRY_SLICE = 64
"""Connections or bindings that one slice of work handles at most (see `slices`)."""

_TRIES = 16
"""Dead connections that one find may close before it reports a miss. It bounds the latency of a
find after a mass hang-up, because each dead connection costs as much time as a request. The next
find and the hang-up poller close the rest."""

logger = logging.getLogger(__name__)


class Cache:
    """The cached connections and bindings: rows in the database, descriptors in this process.

    The row id joins a row and its descriptor. All methods are plain functions that run on the
    event loop's thread, so no change of state is interrupted by an await. If the database rejects
    a statement, a save fails with ``Status.FAIL`` and a find reports a miss, at once.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        limits: Limits,
        *,
        close_on_data: bool = False,
    ) -> None:
        """Cache in a database; ``close_on_data`` counts data from a parked peer as a hang-up."""
        self.closer = Closer()
        """Closes descriptors without blocking the event loop."""
        self.on_earlier_expiry: Callable[[], None] = lambda: None
        """Called when a saved row expires before the time that `expire` returned."""
        self.is_own_socket: Callable[[int], bool] = lambda _: False
        """True if a descriptor is a socket of this daemon, which must not be saved."""
        self.on_parked: Callable[[], None] = lambda: None
        """Called when a connection is parked while no call of `watch` is due."""
        self.statistics = Statistics(clock)
        self._clock = clock
        self._limits = limits
        self._ids = database.ids
        self._rows = LiveRows(database.batch)
        self.audit_log = database.audit_log
        self._descriptors = Descriptors(self.closer, close_on_data=close_on_data)
        self._descriptors.on_watch_failed = self._watch_failed
        self._watch_fails = self._watch_failed_now = False
        """True if a connection could not be watched. The first value is about the last completed
        slice or the current one, the second about the current slice alone."""
        self._expiry_queue = ExpiryQueue()
        self._next_expiry = math.inf
        for destination, count in self._rows.bindings_by_destination().items():
            self.statistics.bindings_added(destination, count)

    def save_endp(
        self,
        ttl: float,
        endpoint: bytes,
        properties: bytes,
        descriptor: int | None,
        client_id: int,
        *,
        lost: bool = False,
    ) -> Status:
        """Park a connection for ``ttl`` seconds, or the limit if that is less.

        The cache takes ownership of the descriptor, and closes it if the request is refused. A
        descriptor of None is refused. ``lost`` is True if the client sent a descriptor that this
        process could not receive, because it was at its file descriptor limit.
        """
        now, limits = self._clock.now(), self._limits
        if descriptor is None:
            why = "limit: open files" if lost else "no descriptor"
            return self._refuse_endp(endpoint, client_id, why)
        most = limits.connections_per_endpoint
        if most and self.statistics.connections_of(endpoint) >= most:
            self.closer.close((descriptor,))
            limit: Limit = "connections_per_endpoint"
            self.audit_log.request_limited("save_endp", client_id, limit, endpoint=endpoint)
            return Status.FAIL
        kind = kind_of(descriptor)
        # A TCP connection is none of the daemon's own sockets.
        if kind is not Kind.ESTABLISHED and self.is_own_socket(descriptor):
            # A cached socket of the daemon would keep its own connection or listener open.
            self.closer.close((descriptor,))
            return self._refuse_endp(endpoint, client_id, "a socket of the daemon itself")
        granted = min(ttl, limits.ttl)
        row = Connection(self._ids.take(), endpoint, properties, now, now + granted, client_id)
        try:
            self._rows.save_connection(row)
        except DatabaseFault as fault:
            self.closer.close((descriptor,))
            return self._refuse_endp(endpoint, client_id, str(fault))
        if limits.connections and len(self._descriptors) + self.closer.held >= limits.connections:
            self._evict(now)
        self._park(row, descriptor, kind)
        self.statistics.saved()
        self.audit_log.connection_saved(row, granted)
        return Status.OK

    def find_endp(self, endpoint: bytes, client_id: int) -> Delivery | None:
        """Take the oldest connection of an endpoint."""
        now = self._clock.now()
        detail = None
        try:
            for _ in range(_TRIES):
                row = self._rows.oldest_of_endpoint(endpoint, now)
                if row is None:
                    break
                if self._has_left(row, now):
                    continue
                delivery = Delivery(row, self._begin_delivery(row), client_id, now)
                self.statistics.address_hits += 1
                return delivery
        except DatabaseFault as fault:
            detail = str(fault)
        self.statistics.address_misses += 1
        self.audit_log.find_missed("find_endp", now, client_id, endpoint=endpoint, detail=detail)
        return None

    def save_dest(
        self, ttl: float, destination: bytes, properties: bytes, endpoint: bytes, client_id: int
    ) -> Status:
        """Bind a destination to an endpoint for ``ttl`` seconds, or the limit if that is less.

        A binding with the same destination, endpoint and properties as an existing one only
        changes the expiry time.
        """
        now = self._clock.now()
        granted = min(ttl, self._limits.ttl)
        expires_at = now + granted
        binding_id = self._ids.take()
        row = Binding(binding_id, destination, endpoint, properties, now, expires_at, client_id)
        limit = self._binding_limit(destination)
        try:
            saved = self._rows.save_binding(row, may_add=limit is None)
        except DatabaseFault as fault:
            self.audit_log.request_refused(
                "save_dest",
                client_id,
                str(fault),
                destination=destination,
                endpoint=endpoint,
                ttl=granted,
            )
            return Status.FAIL
        if saved is None:
            assert limit is not None
            self.audit_log.request_limited(
                "save_dest",
                client_id,
                limit,
                destination=destination,
                endpoint=endpoint,
                ttl=granted,
            )
            return Status.FAIL
        if saved.replaced is not None:
            self._binding_left("expired", now, saved.replaced)
        if saved.added or saved.replaced is not None:
            self.statistics.bindings_added(destination)
        self.statistics.saved()
        if expires_at < self._next_expiry:
            self._expire_earlier(expires_at)
        bound = (destination, endpoint, saved.binding_id)
        self.audit_log.binding_saved(*bound, client_id, now, granted)
        return Status.OK

    def find_dest(self, destination: bytes, client_id: int) -> Delivery | None:
        """Take the oldest connection of the first endpoint of a destination that has one."""
        now = self._clock.now()
        detail = None
        try:
            for _ in range(_TRIES):
                hit = self._rows.oldest_of_destination(destination, now)
                if hit is None:
                    break
                row, properties, binding_id = hit
                if self._has_left(row, now):
                    continue
                binding = (destination, properties, binding_id)
                delivery = Delivery(row, self._begin_delivery(row), client_id, now, *binding)
                self.statistics.domain_hits += 1
                return delivery
        except DatabaseFault as fault:
            detail = str(fault)
        self.statistics.domain_misses += 1
        self.audit_log.find_missed(
            "find_dest", now, client_id, destination=destination, detail=detail
        )
        return None

    def delivered(self, delivery: Delivery, *, finder_left: bool = False) -> None:
        """Close the cache's copy of a descriptor that was sent to the finder.

        ``finder_left`` is True if the finder has disconnected since.
        """
        if finder_left:
            self._descriptors.close_undelivered(delivery.connection.id)
        else:
            self._descriptors.close_delivered(delivery.connection.id)
        self.audit_log.connection_delivered(delivery, self._clock.now())

    def put_back(self, delivery: Delivery) -> None:
        """Park a found connection again that was not sent; it keeps its expiry time."""
        now = self._clock.now()
        self.audit_log.find_hit(delivery)
        if self._restore(delivery, now):
            self.audit_log.connection_put_back(delivery, now)

    def deny(self, delivery: Delivery, why: str) -> None:
        """Park a found connection again that cannot be sent, and record a miss for the finder."""
        now = self._clock.now()
        self.statistics.denied(domain=delivery.destination is not None)
        self.audit_log.delivery_denied(delivery, now, why)
        self._restore(delivery, now)

    def _restore(self, delivery: Delivery, now: float) -> bool:
        """Park a connection again; return False if it has expired meanwhile."""
        row = delivery.connection
        if row.expires_at <= now:
            self._descriptors.close_undelivered(row.id)
            self._left("expired", now, row)
            return False
        self._rows.restore_connection(row)
        parked = self._descriptors.take_back(row.id)
        self._park(row, parked.descriptor, parked.kind)
        return True

    def expire(self) -> float:
        """Remove a slice of the expired connections and bindings; return when to call this again.

        The result is a time of `Clock.now`. It is not in the future if more rows have expired
        already, and inf if nothing is cached. If the wall clock was set, the time stamps in the
        database are adjusted first.
        """
        self._rows.follow_clock()
        now = self._clock.now()
        try:
            more = self._clear_slice(now)
            self._next_expiry = now if more else self._rows.next_binding_expiry()
        except DatabaseFault:
            self._next_expiry = now + FAULT_RETRY_INTERVAL
        self._next_expiry = min(self._next_expiry, self._expiry_queue.next_due())
        return self._next_expiry

    def watch(self) -> bool:
        """Watch a slice of the newly parked connections; return True if more are unwatched."""
        self._watch_failed_now = False
        more = self._descriptors.watch(EXPIRY_SLICE)
        self._watch_fails = self._watch_failed_now
        return more

    def close_hung_up(self) -> None:
        """Close a slice of the connections whose peers have hung up."""
        now = self._clock.now()
        for parked in in_time(self._descriptors.hung_up(EXPIRY_SLICE)):
            self._remove("hung_up", now, parked)

    def hang_ups(self) -> int:
        """Return a descriptor that is readable when `close_hung_up` has connections to check."""
        return self._descriptors.fileno()

    def client_connected(self, peer: Peer) -> int:
        """Record a client; return its id, to which rows refer."""
        client_id = self._ids.take()
        self._rows.add_client(client_id, peer, self._clock.now())
        self.audit_log.client_connected()
        return client_id

    def client_disconnected(self, client_id: int) -> None:
        """Record that a client has disconnected. The connections that it saved stay cached."""
        self._rows.end_client(client_id, self._clock.now())

    def purge_endp(self, endpoint: bytes, limit: int, client_id: int) -> int | None:
        """Close up to ``limit`` connections of an endpoint, oldest first; return their number.

        Return None if the database rejects a statement.
        """
        now = self._clock.now()
        status, closed = Status.OK, 0
        try:
            for row_id in self._rows.connections_of_endpoint(endpoint, limit):
                parked = self._descriptors.parked(row_id)
                if parked is not None:
                    self._remove("purged", now, parked, client_id)
                    closed += 1
        except DatabaseFault:
            status = Status.FAIL
        self.audit_log.purged("purge_endp", client_id, status, endpoint=endpoint)
        return closed if status is Status.OK else None

    def purge_dest(self, destination: bytes, limit: int, client_id: int) -> int | None:
        """Remove up to ``limit`` bindings of a destination; return their number.

        Return None if the database rejects a statement.
        """
        now = self._clock.now()
        status, removed = Status.OK, 0
        try:
            for gone in self._rows.bindings_of_destination(destination, limit):
                self._rows.remove_binding(destination, gone.id)
                self._binding_left("purged", now, gone, client_id)
                removed += 1
        except DatabaseFault:
            status = Status.FAIL
        self.audit_log.purged("purge_dest", client_id, status, destination=destination)
        return removed if status is Status.OK else None

    def purge_id(self, connection_id: int, client_id: int) -> int:
        """Close a connection; return 1, or 0 if it is not cached."""
        parked = self._descriptors.parked(connection_id)
        if parked is None:
            # Not in the column ``connection_id``: no such connection may ever have existed.
            detail = f"no connection {connection_id}"
            self.audit_log.purged("purge_id", client_id, detail=detail)
            return 0
        self._remove("purged", self._clock.now(), parked, client_id)
        self.audit_log.purged(
            "purge_id", client_id, endpoint=parked.endpoint, connection_id=parked.id
        )
        return 1

    def descriptors(self) -> Iterator[tuple[int, int]]:
        """Yield the id and descriptor of each connection that is parked or in delivery."""
        return self._descriptors.items()

    def close(self) -> None:
        """Close every descriptor; the cache must not be used afterwards."""
        self._descriptors.close_all()

    def _refuse_endp(self, endpoint: bytes, client_id: int, why: str) -> Status:
        self.audit_log.request_refused("save_endp", client_id, why, endpoint=endpoint)
        return Status.FAIL

    def _has_left(self, row: Connection, now: float) -> bool:
        """Close a connection if its peer has hung up; return True in that case."""
        parked = self._descriptors.parked(row.id)
        hang_up = None if parked is None else self._descriptors.hang_up_of(parked)
        if parked is None or hang_up is None:
            return False
        self._remove("hung_up", now, parked, detail=hang_up or None)
        return True

    def _watch_failed(self, error: OSError) -> None:
        """Count a connection that cannot be watched; log the first in a series of failures."""
        self.audit_log.connection_not_watched()
        if not self._watch_fails:
            logger.warning(
                "cannot watch a connection for a hang-up of its peer (%s): each find looks",
                error.strerror,
            )
        self._watch_fails = self._watch_failed_now = True

    def _begin_delivery(self, row: Connection) -> int:
        """Remove a connection from the cache for delivery to its finder; return its descriptor.

        Raises DatabaseFault if the database rejects the statement, or if this daemon did not write
        the row.
        """
        parked = self._descriptors.parked(row.id)
        self._rows.take_connection(row)
        if parked is None:
            raise DatabaseFault("somebody has put a row into the database")
        self.statistics.connection_removed(parked.endpoint)
        self._expiry_queue.remove(parked.expires_at, parked.id)
        return self._descriptors.begin_delivery(row.id)

    def _park(self, row: Connection, descriptor: int, kind: Kind) -> None:
        """Park a descriptor after its row was written to the database."""
        parked = Parked(row.id, row.endpoint, row.saved_at, row.expires_at, descriptor, kind)
        if self._descriptors.park(parked):
            self.on_parked()
        self._expiry_queue.add(parked)
        self.statistics.connection_added(row.endpoint)
        if row.expires_at < self._next_expiry:
            self._expire_earlier(row.expires_at)

    def _evict(self, now: float) -> None:
        """Close the connection that expires first, if any is parked."""
        nearest = self._expiry_queue.nearest()
        if nearest is not None:
            self._remove("evicted", now, nearest)

    def _remove(
        self,
        way: str,
        now: float,
        parked: Parked,
        client_id: int | None = None,
        *,
        detail: str | None = None,
    ) -> None:
        """Close a parked connection and record the close reason.

        ``way`` is the close reason, ``client_id`` the client that requested it, if any.
        """
        self._descriptors.close_parked(parked)
        self._expiry_queue.remove(parked.expires_at, parked.id)
        self.statistics.connection_removed(parked.endpoint)
        self._rows.remove_connection(parked.endpoint, parked.id)
        self._left(way, now, parked, client_id, detail)

    def _left(
        self,
        way: str,
        now: float,
        row: Parked | Connection,
        client_id: int | None = None,
        detail: str | None = None,
    ) -> None:
        """Record the removal of a connection."""
        self.audit_log.connection_left(
            way,
            now,
            connection_id=row.id,
            endpoint=row.endpoint,
            saved_at=row.saved_at,
            client_id=client_id,
            detail=detail,
        )

    def _binding_limit(self, destination: bytes) -> Limit | None:
        """Return the name of the limit that a new binding would exceed; None if there is none."""
        limits, statistics = self._limits, self.statistics
        if limits.bindings and statistics.bindings >= limits.bindings:
            return "bindings"
        most = limits.bindings_per_destination
        if most and statistics.bindings_of(destination) >= most:
            return "bindings_per_destination"
        return None

    def _expire_earlier(self, expires_at: float) -> None:
        """Request an earlier call of `expire`."""
        self._next_expiry = expires_at
        self.on_earlier_expiry()

    def _clear_slice(self, now: float) -> bool:
        """Remove expired connections and bindings; return True if more may be left."""
        for parked in in_time(self._expiry_queue.due(now, EXPIRY_SLICE)):
            self._remove("expired", now, parked)
        if self._expiry_queue.next_due() <= now:
            return True
        bindings = self._rows.expired_bindings(now, EXPIRY_SLICE)
        for gone in in_time(bindings):
            self._rows.remove_binding(gone.destination, gone.id)
            self._binding_left("expired", now, gone)
        return len(bindings) == EXPIRY_SLICE

    def _binding_left(self, way: str, now: float, gone: Gone, client_id: int | None = None) -> None:
        """Count and record the removal of a binding."""
        self.statistics.binding_removed(gone.destination)
        self.audit_log.binding_left(way, now, gone, client_id)
