"""The audit trail: every request with its outcome, and every way out, written in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import chain

from scache.errors import DatabaseFault
from scache.model import AuditEvent, Connection, Delivery, Status
from scache.store.batch import Batch, Parameters, text

ROWS_AT_ONCE = 64
"""Events that are written with one statement: half the time of as many statements (measured)."""

MAX_PENDING = 20_000
"""Events kept while the database refuses to grow; what comes then is dropped, and counted."""

LONG_LABEL = 1024
"""Bytes from which on a label counts towards MAX_LONG_SIZE."""

MAX_LONG_SIZE = 32 * 2**20
"""Bytes of long labels that are kept: events with more of them are trimmed earlier."""

_ANY = """
    INSERT INTO event (at, kind, status, destination, endpoint,
        connection_id, binding_id, client_id, ttl, age, detail)
    VALUES (?, ?, ?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?, ?, ?, ?)
"""
_LAST = "SELECT coalesce(max(id), 0) FROM event"
_LONG_SIZE = f"""
    SELECT coalesce(sum(length(CAST(label AS BLOB))), 0) FROM (
        SELECT destination AS label FROM event UNION ALL SELECT endpoint FROM event
    ) WHERE length(CAST(label AS BLOB)) > {LONG_LABEL}
"""
_TRIM_UP_TO = "DELETE FROM event WHERE id <= ?"
TRIM = "DELETE FROM event WHERE id <= (SELECT max(id) FROM event) - ?"


class _Form:
    """Events of one form, of which there are tens of thousands in a second.

    They have statements of their own: many rows in one, and no NULL, for which
    sqlite3 would look for an adapter, at more than the cost of a column.
    """

    def __init__(self, columns: str, row: str, width: int, events: int = 1) -> None:
        """Insert these columns; ``row`` names the ``width`` parameters of each {0}, {1}, ...

        It makes this number of ``events``.
        """

        def statement(count: int) -> str:
            rows = (
                row.format(*(f"?{at * width + n + 1}" for n in range(width))) for at in range(count)
            )
            return f"INSERT INTO event ({columns}) VALUES {', '.join(rows)}"

        self._one, self._many = statement(1), statement(ROWS_AT_ONCE)
        self._events = events
        self.rows: list[Parameters] = []

    def write(self, batch: Batch) -> None:
        """Write them, or raise DatabaseFault and keep them."""
        if len(self.rows) == ROWS_AT_ONCE:
            added = batch.add_many(self._many, [tuple(chain.from_iterable(self.rows))])
        elif self.rows:
            added = batch.add_many(self._one, self.rows.copy())
        else:
            return
        _count_dropped(batch, self._events * len(self.rows) - added)
        self.rows.clear()


class AuditLog:
    """The table ``event``: recorded here at once, written now and then, trimmed as it grows.

    What a transaction of the batch holds and the events of it are committed together. Ids follow
    the order of time, give or take what is written in one go.

    Times are given as `Clock.now` has them, and recorded as stamps, which stay what they are
    though the clock be set afterwards.
    """

    def __init__(self, batch: Batch, limit: int) -> None:
        """Keep the newest ``limit`` rows; 0 records nothing."""
        self._batch = batch
        self._clock = batch.clock
        self._limit = limit
        self._saved = _Form(
            "at, kind, status, endpoint, connection_id, client_id, ttl",
            "({0}, 'save_endp', 0, CAST({1} AS TEXT), {2}, {3}, {4})",
            5,
        )
        self._found = _Form(
            "at, kind, status, endpoint, connection_id, client_id, age",
            "({3}, 'find_endp', 0, CAST({0} AS TEXT), {1}, {2}, {3} - {5}), "
            "({4}, 'found', NULL, CAST({0} AS TEXT), {1}, {2}, {4} - {5})",
            6,
            events=2,
        )
        self._bindings = _Form(
            "at, kind, status, destination, endpoint, binding_id, client_id, ttl",
            "({0}, 'save_dest', 0, CAST({1} AS TEXT), CAST({2} AS TEXT), {3}, {4}, {5})",
            6,
        )
        self._others: list[Parameters] = []
        self._grown = False
        """Whether there may be rows to trim."""
        self._long = 0
        """Bytes of long labels that have not been written yet."""
        self._long_written: deque[tuple[int, int]] = deque()
        """Of those that were: up to which id, and how many bytes."""
        self._long_kept = 0
        """The sum of these bytes."""
        self._count_long(batch, *batch.query(_LONG_SIZE, ())[0])
        batch.before_commit = self.write

    def saved(self, row: Connection, ttl: float) -> None:
        """Record a ``save_endp`` that was done."""
        if not self._limit:
            return
        row_id, endpoint, _, saved_at, _, client_id = row
        if len(endpoint) > LONG_LABEL:
            self._long += len(endpoint)
        pending = self._saved.rows
        stamp = saved_at + self._clock.offset
        pending.append((stamp, text(endpoint), row_id, client_id, ttl))
        if len(pending) >= ROWS_AT_ONCE:
            self._try(self._saved.write)

    def found(self, delivery: Delivery, at: float) -> None:
        """Record a find that hit, and that the connection left with the client that found it."""
        if not self._found.rows:
            # Its row may have gone with an earlier batch, so that nothing else is to be written.
            self._batch.on_pending()
        if not self._limit:
            return
        row, _, client_id, found_at, destination, _, _ = delivery
        row_id, endpoint, _, saved_at, _, _ = row
        if destination is not None:
            self.hit(delivery)
            age = at - saved_at
            self.record(
                AuditEvent(at, "found", None, None, endpoint, row_id, client_id=client_id, age=age)
            )
            return
        if len(endpoint) > LONG_LABEL:
            self._long += 2 * len(endpoint)
        pending = self._found.rows
        offset = self._clock.offset
        stamps = found_at + offset, at + offset, saved_at + offset
        pending.append((text(endpoint), row_id, client_id, *stamps))
        if len(pending) >= ROWS_AT_ONCE:
            self._try(self._write_forms)

    def bound(
        self,
        destination: bytes,
        endpoint: bytes,
        binding_id: int,
        client_id: int,
        at: float,
        ttl: float,
    ) -> None:
        """Record a ``save_dest`` that was done."""
        if not self._limit:
            return
        if len(destination) + len(endpoint) > LONG_LABEL:
            self._long += len(destination) + len(endpoint)
        pending = self._bindings.rows
        labels = (text(destination), text(endpoint))
        pending.append((at + self._clock.offset, *labels, binding_id, client_id, ttl))
        if len(pending) >= ROWS_AT_ONCE:
            self._try(self._write_forms)

    def hit(self, delivery: Delivery) -> None:
        """Record a find that hit."""
        row = delivery.connection
        self.record(
            AuditEvent(
                delivery.found_at,
                "find_endp" if delivery.destination is None else "find_dest",
                Status.OK,
                delivery.destination,
                row.endpoint,
                row.id,
                delivery.binding_id,
                delivery.client_id,
                age=delivery.found_at - row.saved_at,
            )
        )

    def record(self, event: AuditEvent) -> None:
        """Record anything."""
        self._batch.on_pending()
        if not self._limit:
            return
        at, kind, status, destination, endpoint, *others = event
        labels = [label if label is None else text(label) for label in (destination, endpoint)]
        self._long += sum(len(label) for label in labels if label and len(label) > LONG_LABEL)
        outcome = None if status is None else int(status)
        self._others.append((at + self._clock.offset, kind, outcome, *labels, *others))
        if len(self._others) >= ROWS_AT_ONCE:
            self._try(self._write_all)

    def write(self) -> None:
        """Put what is recorded into the batch under way, and trim as much as that adds.

        Never raises: what the database refuses now it gets later.
        """
        if self._grown or any(map(len, self._pending())):
            self._try(self._write_all)

    def _try(self, write: Callable[[Batch], None]) -> None:
        self._grown = True
        try:
            write(self._batch)
        except DatabaseFault:
            self._drop_what_is_too_much()

    def _write_all(self, batch: Batch) -> None:
        self._write_forms(batch)
        if self._others:
            added = batch.add_many(_ANY, self._others.copy())
            _count_dropped(batch, len(self._others) - added)
            self._others.clear()
        self._trim(batch, TRIM, self._limit)
        self._grown = False
        long, self._long = self._long, 0
        self._count_long(batch, long)

    def _count_long(self, batch: Batch, size: int) -> None:
        """Take note of so many bytes of long labels, and trim for what is too much."""
        if not size:
            return
        ((last,),) = batch.query(_LAST, ())
        self._long_written.append((last, size))
        self._long_kept += size
        while self._long_kept > MAX_LONG_SIZE:
            last, size = self._long_written.popleft()
            self._long_kept -= size
            self._trim(batch, _TRIM_UP_TO, last)

    def _trim(self, batch: Batch, sql: str, parameter: int) -> None:
        trimmed = batch.execute(sql, (parameter,)).rowcount
        if trimmed:
            batch.counts["events_trimmed"] += trimmed

    def _write_forms(self, batch: Batch) -> None:
        # First what was saved, so that no connection seems to be found before that.
        self._saved.write(batch)
        self._bindings.write(batch)
        self._found.write(batch)

    def _pending(self) -> tuple[list[Parameters], ...]:
        return self._saved.rows, self._bindings.rows, self._found.rows, self._others

    def _drop_what_is_too_much(self) -> None:
        pending = sum(map(len, self._pending())) + len(self._found.rows)  # two events each
        if pending > MAX_PENDING or self._long > MAX_LONG_SIZE:
            self._long = 0
            self._batch.counts["events_dropped"] += pending
            for rows in self._pending():
                rows.clear()


def _count_dropped(batch: Batch, events: int) -> None:
    """Count events that a trigger of an administrator has dropped (RAISE(IGNORE))."""
    if events:
        batch.counts["events_dropped"] += events
