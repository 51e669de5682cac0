"""The four operations of scache(8), with its semantics, on SQLite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from scache.cache.bindings import Bindings
from scache.cache.connections import Connections
from scache.cache.descriptors import Descriptors
from scache.cache.expiry import Deadline
from scache.cache.limits import Limits
from scache.cache.liveness import Kind, kind_of
from scache.cache.misses import Misses
from scache.cache.statistics import Statistics
from scache.clock import Clock
from scache.errors import DatabaseFault
from scache.model import Connection, Delivery, Peer, Status
from scache.store.batch import FAULT_RETRY_INTERVAL
from scache.store.database import Database
from scache.store.endings import Miss
from scache.store.live_rows import Binding, LiveRows
from scache.unix import memory
from scache.unix.closing import Closer

EXPIRY_SLICE = 64
"""Connections or bindings that one slice of work handles at most (see `slices`)."""

EVICTIONS = 64
"""Rows that one save evicts at most to make room for its bytes. It bounds the latency of a large
save among many small rows; the save is refused if this is not enough."""

_TRIES = 16
"""Dead connections that one find may close before it reports a miss. It bounds the latency of a
find after a mass hang-up, because each dead connection costs as much time as a request. The next
find and the hang-up poller close the rest."""


class Cache:
    """The cached connections and bindings: rows in the database, descriptors in this process.

    All methods are plain functions that run on the event loop's thread, so no change of state is
    interrupted by an await. If the database rejects a statement, a save fails with
    ``Status.FAIL`` and a find reports a miss, at once.
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
        self.is_own_socket: Callable[[int], bool] = lambda _: False
        """True if a descriptor is a socket of this daemon, which must not be saved."""
        self.statistics = Statistics(clock)
        self.audit_log = database.audit_log
        self.deadline = Deadline()
        """The time that `expire` has returned, or an earlier one since."""
        self.clock = clock
        """The clock of all times of connections and bindings."""
        self._limits = limits
        self._ids = database.ids
        self._rows = LiveRows(database.batch)
        self._descriptors = Descriptors(self.closer, close_on_data=close_on_data)
        shared = (self._rows, self.statistics, self.audit_log, self.deadline)
        self.connections = Connections(self._descriptors, *shared)
        self._bindings = Bindings(limits, *shared)
        self._misses = Misses(self._rows, self.statistics, self.audit_log.endings)
        self._bindings.make_room = self._make_room

    def change_limits(self, limits: Limits) -> None:
        """Apply other limits to the requests from now on."""
        self._limits = self._bindings.limits = limits

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
        now, limits = self.clock.now(), self._limits
        if descriptor is None:
            why = "limit: open files" if lost else "no descriptor"
            return self._refuse_endp(endpoint, client_id, why)
        most = limits.connections_per_endpoint
        if most and self.statistics.connections_of(endpoint) >= most:
            self.closer.close((descriptor,))
            self.audit_log.connection_limited(endpoint, client_id, "connections_per_endpoint")
            return Status.FAIL
        size = len(endpoint) + len(properties)
        if limits.size and size > limits.size:
            return self._refuse_for_bytes(endpoint, descriptor, client_id)
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
            self.connections.evict(now)
        if not self._make_room(now, size=size):
            self._rows.remove_connection(endpoint, row.id)
            return self._refuse_for_bytes(endpoint, descriptor, client_id)
        try:
            self.connections.park(row, descriptor, kind)
        except MemoryError:
            memory.release()
            self._rows.remove_connection(endpoint, row.id)
            self.closer.close((descriptor,))
            return self._refuse_endp(endpoint, client_id, "out of memory")
        self.statistics.saved()
        self.audit_log.connection_saved(row, granted)
        return Status.OK

    def find_endp(self, endpoint: bytes, client_id: int) -> Delivery | None:
        """Take the oldest connection of an endpoint."""
        now = self.clock.now()
        try:
            for _ in range(_TRIES):
                row = self._rows.oldest_of_endpoint(endpoint, now)
                if row is None:
                    break
                if self.connections.close_if_dead(row, now):
                    continue
                descriptor = self.connections.begin_delivery(row)
                delivery = Delivery(row, descriptor, client_id, now)
                self.statistics.address_hits += 1
                self.audit_log.connection_taken("find_endp", endpoint, now, client_id)
                return delivery
            miss = self._misses.of_endpoint(endpoint, now)
        except DatabaseFault as fault:
            miss = Miss.because("fault", str(fault))
        self.statistics.address_misses += 1
        self.audit_log.find_missed("find_endp", now, client_id, miss, endpoint=endpoint)
        return None

    def save_dest(
        self, ttl: float, destination: bytes, properties: bytes, endpoint: bytes, client_id: int
    ) -> Status:
        """Bind a destination to an endpoint for ``ttl`` seconds, or the limit if that is less.

        A binding with the same destination, endpoint and properties as an existing one only
        changes the expiry time.
        """
        now = self.clock.now()
        granted = min(ttl, self._limits.ttl)
        expires_at, row_id = now + granted, self._ids.take()
        row = Binding(row_id, destination, endpoint, properties, now, expires_at, client_id)
        return self._bindings.save(row, granted)

    def find_dest(self, destination: bytes, client_id: int) -> Delivery | None:
        """Take the oldest connection of the first endpoint of a destination that has one."""
        now = self.clock.now()
        try:
            for _ in range(_TRIES):
                hit = self._rows.oldest_of_destination(destination, now)
                if hit is None:
                    break
                row, properties, binding_id = hit
                if self.connections.close_if_dead(row, now):
                    continue
                binding = (destination, properties, binding_id)
                descriptor = self.connections.begin_delivery(row)
                delivery = Delivery(row, descriptor, client_id, now, *binding)
                self.statistics.domain_hits += 1
                self.audit_log.connection_taken("find_dest", row.endpoint, now, client_id)
                return delivery
            miss = self._misses.of_destination(destination, now)
        except DatabaseFault as fault:
            miss = Miss.because("fault", str(fault))
        self.statistics.domain_misses += 1
        self.audit_log.find_missed("find_dest", now, client_id, miss, destination=destination)
        return None

    def delivered(self, delivery: Delivery, *, finder_left: bool = False) -> None:
        """Close the cache's copy of a descriptor that was sent to the finder.

        ``finder_left`` is True if the finder has disconnected since.
        """
        if finder_left:
            self._descriptors.close_undelivered(delivery.connection.id)
        else:
            self._descriptors.close_delivered(delivery.connection.id)
        self.audit_log.connection_delivered(delivery, self.clock.now())

    def put_back(self, delivery: Delivery) -> None:
        """Park a found connection again that was not sent; it keeps its expiry time."""
        now = self.clock.now()
        self.audit_log.find_hit(delivery)
        if self.connections.cancel_delivery(delivery.connection, now):
            self.audit_log.connection_put_back(delivery, now)

    def deny(self, delivery: Delivery, why: str) -> None:
        """Park a found connection again that cannot be sent, and record a miss for the finder."""
        now = self.clock.now()
        self.statistics.denied(domain=delivery.destination is not None)
        self.audit_log.delivery_denied(delivery, now, why)
        self.connections.cancel_delivery(delivery.connection, now)

    def expire(self) -> float:
        """Remove a slice of the expired connections and bindings; return when to call this again.

        The result is a time of `Clock.now`. It is not in the future if more rows have expired
        already, and inf if nothing is cached. If the wall clock was set, the time stamps in the
        database are adjusted first.
        """
        self._rows.follow_clock()
        now = self.clock.now()
        try:
            more = self.connections.expire(now, EXPIRY_SLICE)
            more = more or self._bindings.expire(now, EXPIRY_SLICE)
            due = now if more else self._rows.next_binding_expiry()
        except DatabaseFault:
            due = now + FAULT_RETRY_INTERVAL
        self.deadline.at = min(due, self.connections.next_expiry())
        return self.deadline.at

    def watch(self) -> bool:
        """Watch a slice of the newly parked connections; return True if more are unwatched."""
        return self.connections.watch(EXPIRY_SLICE)

    def close_hung_up(self) -> None:
        """Close a slice of the connections whose peers have hung up."""
        self.connections.close_hung_up(self.clock.now(), EXPIRY_SLICE)

    def hang_ups(self) -> int:
        """Return a descriptor that is readable when `close_hung_up` has connections to check."""
        return self._descriptors.fileno()

    def new_client(self) -> int:
        """Return an id for a client, to which rows refer; nothing is recorded yet."""
        return self._ids.take()

    def client_connected(
        self, peer: Peer, client_id: int | None = None, at: float | None = None
    ) -> int:
        """Record a client, and return its id, to which rows refer.

        The id is that of `new_client` if it is given. ``at`` is a time of `Clock.now`; without it,
        the client has connected now.
        """
        client_id = self.new_client() if client_id is None else client_id
        self._rows.add_client(client_id, peer, self.clock.now() if at is None else at)
        self.audit_log.client_connected()
        return client_id

    def forget_client(self, client_id: int) -> None:
        """Delete the record of a client that has made no request."""
        self._rows.forget_client(client_id)

    def client_disconnected(self, client_id: int) -> None:
        """Record that a client has disconnected. The connections that it saved stay cached."""
        self._rows.end_client(client_id, self.clock.now())
        self.audit_log.client_disconnected(client_id)

    def purge_endp(self, endpoint: bytes, limit: int, client_id: int) -> int | None:
        """Close up to ``limit`` connections of an endpoint, oldest first; return their number.

        Return None if the database rejects a statement.
        """
        return self.connections.purge(endpoint, self.clock.now(), limit, client_id)

    def purge_dest(self, destination: bytes, limit: int, client_id: int) -> int | None:
        """Remove up to ``limit`` bindings of a destination; return their number.

        Return None if the database rejects a statement.
        """
        return self._bindings.purge(destination, self.clock.now(), limit, client_id)

    def purge_id(self, connection_id: int, client_id: int) -> int:
        """Close a connection; return 1, or 0 if it is not cached."""
        return self.connections.purge_id(connection_id, self.clock.now(), client_id)

    def use_of_limits(self) -> dict[str, tuple[int, int]]:
        """Return each limit on the whole cache, 0 for none, with what is used of it."""
        limits, statistics = self._limits, self.statistics
        return {
            "connections": (limits.connections, statistics.connections),
            "bindings": (limits.bindings, statistics.bindings),
            "bytes": (limits.size, statistics.size),
        }

    def descriptors(self) -> Iterator[tuple[int, int]]:
        """Yield the id and descriptor of each connection that is parked or in delivery."""
        return self._descriptors.items()

    def close(self) -> None:
        """Close every descriptor; the cache must not be used afterwards."""
        self._descriptors.close_all()

    def _make_room(self, now: float, besides: int = 0, *, size: int = 0) -> bool:
        """Evict what expires first until ``size`` further bytes fit; return False if they do not.

        ``besides`` is the id of the binding that is saved, which is never evicted.
        """
        most = self._limits.size - size
        if not self._limits.size or self.statistics.size <= most:
            return True
        try:
            for _ in range(EVICTIONS):
                binding = self._bindings.first(besides)
                expires_at = self.connections.first_expiry()
                if binding is not None and binding.expires_at < expires_at:
                    self._bindings.evict(binding, now)
                elif expires_at < math.inf:
                    self.connections.evict(now)
                else:
                    return False
                if self.statistics.size <= most:
                    return True
        except DatabaseFault:
            return False
        return False

    def _refuse_for_bytes(self, endpoint: bytes, descriptor: int, client_id: int) -> Status:
        self.closer.close((descriptor,))
        self.audit_log.connection_limited(endpoint, client_id, "bytes")
        return Status.FAIL

    def _refuse_endp(self, endpoint: bytes, client_id: int, why: str) -> Status:
        self.audit_log.connection_refused(endpoint, client_id, why)
        return Status.FAIL
