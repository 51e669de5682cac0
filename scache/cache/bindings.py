"""The cached bindings: the row and statistics of each one together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from scache.cache.expiry import Deadline
from scache.cache.limits import Limits
from scache.cache.slices import in_time
from scache.cache.statistics import Statistics
from scache.errors import DatabaseFault
from scache.model import Status
from scache.store.audit import AuditLog
from scache.store.live_rows import Binding, Gone, LiveRows
from scache.vocabulary import Limit


class Bindings:
    """Bindings of a destination to an endpoint.

    Unlike connections they have no descriptor, so they outlive the daemon. A removal is recorded
    with its reason.
    """

    def __init__(
        self,
        limits: Limits,
        rows: LiveRows,
        statistics: Statistics,
        audit_log: AuditLog,
        deadline: Deadline,
    ) -> None:
        """Take over the bindings that the database has from an earlier run."""
        self.limits = limits
        self.make_room: Callable[[float, int], bool] = lambda _at, _id: True
        """Evicts what expires first, other than the binding with this id, until the limit on bytes
        holds; returns False if that fails."""
        self._rows = rows
        self._statistics = statistics
        self._audit_log = audit_log
        self._deadline = deadline
        for destination, count, size in rows.bindings_by_destination():
            statistics.bindings_added(destination, size, count)

    def save(self, row: Binding, ttl: float) -> Status:
        """Add a binding, or change the expiry time of the same binding saved earlier.

        ``ttl`` is the granted time to live, for the audit log.
        """
        destination = row.destination
        limits, statistics = self.limits, self._statistics
        limit: Limit | None = None
        if limits.size and row.size > limits.size:
            limit = "bytes"
        elif limits.bindings and statistics.bindings >= limits.bindings:
            limit = "bindings"
        elif (most := limits.bindings_per_destination) and (
            statistics.bindings_of(destination) >= most
        ):
            limit = "bindings_per_destination"
        try:
            saved = self._rows.save_binding(row, may_add=limit is None)
        except DatabaseFault as fault:
            self._audit_log.binding_refused(row, ttl, str(fault))
            return Status.FAIL
        if saved is None:
            assert limit is not None
            self._audit_log.binding_limited(row, ttl, limit)
            return Status.FAIL
        if saved.replaced is not None:
            self._record_removal("expired", row.saved_at, saved.replaced)
        if saved.added or saved.replaced is not None:
            statistics.bindings_added(destination, row.size)
            if not self.make_room(row.saved_at, row.id):
                return self._refuse_saved(row, ttl)
        statistics.saved()
        if row.expires_at < self._deadline.at:
            self._deadline.bring_forward(row.expires_at)
        self._audit_log.binding_saved(row, saved.binding_id, ttl)
        return Status.OK

    def _refuse_saved(self, row: Binding, ttl: float) -> Status:
        """Remove a binding that was just saved, because there is no room for it."""
        with suppress(DatabaseFault):
            self._rows.remove_binding(row.destination, row.id)
            self._statistics.binding_removed(row.destination, row.size)
        self._audit_log.binding_limited(row, ttl, "bytes")
        return Status.FAIL

    def first(self, besides: int) -> Gone | None:
        """Return the binding that expires first; ``besides`` is an id to leave out.

        Raises DatabaseFault if the database rejects a statement.
        """
        return self._rows.first_binding(besides)

    def evict(self, gone: Gone, now: float) -> None:
        """Remove a binding because another row needs its room.

        Raises DatabaseFault if the database rejects a statement.
        """
        self._rows.remove_binding(gone.destination, gone.id)
        self._record_removal("evicted", now, gone)

    def expire(self, now: float, limit: int) -> bool:
        """Remove up to ``limit`` expired bindings; return True if more may have expired.

        Raises DatabaseFault if the database rejects a statement.
        """
        expired = self._rows.expired_bindings(now, limit)
        for gone in in_time(expired):
            self._rows.remove_binding(gone.destination, gone.id)
            self._record_removal("expired", now, gone)
        return len(expired) == limit

    def purge(self, destination: bytes, now: float, limit: int, client_id: int) -> int | None:
        """Remove up to ``limit`` bindings of a destination; return their number.

        Return None if the database rejects a statement.
        """
        status, removed = Status.OK, 0
        try:
            for gone in self._rows.bindings_of_destination(destination, limit):
                self._rows.remove_binding(destination, gone.id)
                self._record_removal("purged", now, gone, client_id)
                removed += 1
        except DatabaseFault:
            status = Status.FAIL
        self._audit_log.purged("purge_dest", client_id, status, destination=destination)
        return removed if status is Status.OK else None

    def _record_removal(
        self, reason: str, now: float, gone: Gone, client_id: int | None = None
    ) -> None:
        self._statistics.binding_removed(gone.destination, gone.size)
        self._audit_log.binding_removed(reason, now, gone, client_id)
