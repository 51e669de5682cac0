"""The cached connections: the row, descriptor, expiry and statistics of each one together."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from scache.cache.descriptors import Descriptors, Parked
from scache.cache.expiry import Deadline, ExpiryQueue
from scache.cache.liveness import Kind
from scache.cache.slices import in_time
from scache.cache.statistics import Statistics
from scache.errors import DatabaseFault, reason_of
from scache.model import Connection, Status
from scache.store.audit import AuditLog
from scache.store.live_rows import LiveRows

logger = logging.getLogger(__name__)


class Connections:
    """Connections that are parked or in delivery.

    A row of the table ``connection`` and its descriptor are joined by the row id. A removal is
    recorded with its close reason.
    """

    def __init__(
        self,
        descriptors: Descriptors,
        rows: LiveRows,
        statistics: Statistics,
        audit_log: AuditLog,
        deadline: Deadline,
    ) -> None:
        self.on_parked: Callable[[], None] = lambda: None
        """Called when a connection is parked while no call of `watch` is due."""
        self._descriptors = descriptors
        self._rows = rows
        self._statistics = statistics
        self._audit_log = audit_log
        self._deadline = deadline
        self._expiry_queue = ExpiryQueue()
        descriptors.on_watch_failed = self._watch_failed
        self._watch_fails = self._watch_failed_now = False
        """True if a connection could not be watched. The first value is about the last completed
        slice or the current one, the second about the current slice alone."""

    def park(self, row: Connection, descriptor: int, kind: Kind) -> None:
        """Park a descriptor after its row was written to the database.

        Raises MemoryError, and changes nothing, if there is no memory for that.
        """
        size = len(row.endpoint) + len(row.properties)
        times = row.saved_at, row.expires_at
        parked = Parked(row.id, row.endpoint, *times, descriptor, kind, size)
        try:
            first = self._descriptors.park(parked)
            self._expiry_queue.add(parked)
            self._statistics.connection_added(row.endpoint, size)
        except MemoryError:
            self._descriptors.drop(row.id)
            self._expiry_queue.drop(row.expires_at, row.id)
            raise
        if first:
            self.on_parked()
        if row.expires_at < self._deadline.at:
            self._deadline.bring_forward(row.expires_at)

    def close_if_dead(self, row: Connection, now: float) -> bool:
        """Close a connection if its peer has hung up; return True in that case."""
        parked = self._descriptors.parked(row.id)
        hang_up = None if parked is None else self._descriptors.hang_up_of(parked)
        if parked is None or hang_up is None:
            return False
        self._remove("hung_up", now, parked, detail=hang_up or None)
        return True

    def begin_delivery(self, row: Connection) -> int:
        """Remove a connection from the cache for delivery to its finder; return its descriptor.

        Raises DatabaseFault if the database rejects the statement, or if this daemon did not write
        the row.
        """
        parked = self._descriptors.parked(row.id)
        self._rows.take_connection(row)
        if parked is None:
            raise DatabaseFault("the table connection has a row that this daemon did not write")
        self._statistics.connection_removed(parked.endpoint, parked.size)
        self._expiry_queue.remove(parked.expires_at, parked.id)
        return self._descriptors.begin_delivery(row.id)

    def cancel_delivery(self, row: Connection, now: float) -> bool:
        """Park a connection again that was not sent; return False if it has expired meanwhile."""
        if row.expires_at <= now:
            self._descriptors.close_undelivered(row.id)
            self._record_removal("expired", now, row)
            return False
        self._rows.restore_connection(row)
        parked = self._descriptors.take_back(row.id)
        self.park(row, parked.descriptor, parked.kind)
        return True

    def evict(self, now: float) -> None:
        """Close the connection that expires first, if any is parked."""
        nearest = self._expiry_queue.nearest()
        if nearest is not None:
            self._remove("evicted", now, nearest)

    def first_expiry(self) -> float:
        """Return when the connection expires that `evict` would close; inf if there is none."""
        nearest = self._expiry_queue.nearest()
        return math.inf if nearest is None else nearest.expires_at

    def expire(self, now: float, limit: int) -> bool:
        """Close up to ``limit`` expired connections; return True if more have expired."""
        for parked in in_time(self._expiry_queue.due(now, limit)):
            self._remove("expired", now, parked)
        return self.next_expiry() <= now

    def next_expiry(self) -> float:
        """Return the time of `Clock.now` when the next connection expires, or inf."""
        return self._expiry_queue.next_due()

    def watch(self, limit: int) -> bool:
        """Watch up to ``limit`` newly parked connections; return True if more are unwatched."""
        self._watch_failed_now = False
        more = self._descriptors.watch(limit)
        self._watch_fails = self._watch_failed_now
        return more

    def close_hung_up(self, now: float, limit: int) -> None:
        """Close the dead ones of up to ``limit`` connections that epoll has reported."""
        for parked in in_time(self._descriptors.hung_up(limit)):
            self._remove("hung_up", now, parked)

    def purge(self, endpoint: bytes, now: float, limit: int, client_id: int) -> int | None:
        """Close up to ``limit`` connections of an endpoint, oldest first; return their number.

        Return None if the database rejects a statement.
        """
        status, closed = Status.OK, 0
        try:
            for row_id in self._rows.connections_of_endpoint(endpoint, limit):
                parked = self._descriptors.parked(row_id)
                if parked is not None:
                    self._remove("purged", now, parked, client_id)
                    closed += 1
        except DatabaseFault:
            status = Status.FAIL
        self._audit_log.purged("purge_endp", client_id, status, endpoint=endpoint)
        return closed if status is Status.OK else None

    def purge_id(self, connection_id: int, now: float, client_id: int) -> int:
        """Close a connection; return 1, or 0 if it is not cached."""
        parked = self._descriptors.parked(connection_id)
        if parked is None:
            # Not in the column ``connection_id``: no such connection may ever have existed.
            detail = f"no connection {connection_id}"
            self._audit_log.purged("purge_id", client_id, detail=detail)
            return 0
        endpoint = parked.endpoint
        self._remove("purged", now, parked, client_id)
        self._audit_log.purged(
            "purge_id", client_id, endpoint=endpoint, connection_id=connection_id
        )
        return 1

    def _remove(
        self,
        reason: str,
        now: float,
        parked: Parked,
        client_id: int | None = None,
        *,
        detail: str | None = None,
    ) -> None:
        """Close a parked connection; ``client_id`` is the client that requested it, if any."""
        self._descriptors.close_parked(parked)
        self._expiry_queue.remove(parked.expires_at, parked.id)
        self._statistics.connection_removed(parked.endpoint, parked.size)
        self._rows.remove_connection(parked.endpoint, parked.id)
        self._record_removal(reason, now, parked, client_id, detail)

    def _record_removal(
        self,
        reason: str,
        now: float,
        row: Parked | Connection,
        client_id: int | None = None,
        detail: str | None = None,
    ) -> None:
        self._audit_log.connection_removed(
            reason,
            now,
            connection_id=row.id,
            endpoint=row.endpoint,
            saved_at=row.saved_at,
            expires_at=row.expires_at,
            client_id=client_id,
            detail=detail,
        )

    def _watch_failed(self, error: OSError) -> None:
        """Count a connection that cannot be watched; log the first in a series of failures."""
        self._audit_log.connection_not_watched()
        if not self._watch_fails:
            logger.warning(
                "cannot watch a connection for a hang-up of its peer (%s): finds poll it instead",
                reason_of(error),
            )
        self._watch_fails = self._watch_failed_now = True
