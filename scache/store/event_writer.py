"""The writer of the table ``event``: pending events, their INSERT statements, and trimming."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain

from scache.errors import DatabaseFault
from scache.model import AuditEvent, Status
from scache.store.batch import Batch, Parameters, text
from scache.unix import memory
from scache.vocabulary import EVENTS_DROPPED, EVENTS_TRIMMED

ROWS_AT_ONCE = 64
"""Events written with one statement. This takes half the time of one statement each (measured)."""

MAX_PENDING = 20_000
"""Limit of pending events. If it is exceeded while writes fail, all are dropped and counted."""

LONG_LABEL = 1024
"""Bytes; a label that is longer counts towards MAX_LONG_SIZE."""

MAX_LONG_SIZE = 32 * 2**20
"""Bytes of long labels to keep. The oldest events are trimmed when there are more."""

_ANY = """
    INSERT INTO event (at, kind, status, destination, endpoint,
        connection_id, binding_id, client_id, ttl, age, detail)
    VALUES (?, ?, ?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?, ?, ?, ?)
"""
_COUNT = "SELECT count(*) FROM event"
_LAST = "SELECT coalesce(max(id), 0) FROM event"
_LONG_SIZE = f"""
    SELECT coalesce(sum(length(CAST(label AS BLOB))), 0) FROM (
        SELECT destination AS label FROM event UNION ALL SELECT endpoint FROM event
    ) WHERE length(CAST(label AS BLOB)) > {LONG_LABEL}
"""
_TRIM_UP_TO = "DELETE FROM event WHERE id <= ?"
TRIM = "DELETE FROM event WHERE id <= (SELECT max(id) FROM event) - ?"


class Form:
    """Pending events of one frequent kind, tens of thousands a second.

    Each form has its own INSERT statement, which writes many rows at once. It binds no NULL,
    because sqlite3 looks for an adapter for NULL, which costs more than a column.
    """

    def __init__(
        self,
        columns: str,
        row: str,
        width: int,
        as_events: Callable[..., Iterable[AuditEvent]],
        events: int = 1,
    ) -> None:
        """Insert these columns; ``row`` refers to its ``width`` parameters as {0}, {1}, ...

        Each row of parameters makes this number of ``events``. ``as_events`` returns them; it gets
        the parameters of one row.
        """

        def statement(count: int) -> str:
            rows = (
                row.format(*(f"?{at * width + n + 1}" for n in range(width))) for at in range(count)
            )
            return f"INSERT INTO event ({columns}) VALUES {', '.join(rows)}"

        self._one, self._many = statement(1), statement(ROWS_AT_ONCE)
        self.as_events = as_events
        self._events = events
        self.rows: list[Parameters] = []
        """The parameters of the pending events. It is the same list for good."""

    def __len__(self) -> int:
        """Return the number of pending events."""
        return self._events * len(self.rows)

    def write(self, batch: Batch) -> int:
        """Write the pending events; return the number of rows added.

        If that raises DatabaseFault, they stay pending.
        """
        if len(self.rows) == ROWS_AT_ONCE:
            added = batch.add_many(self._many, [tuple(chain.from_iterable(self.rows))])
        elif self.rows:
            added = batch.add_many(self._one, self.rows.copy())
        else:
            return 0
        _count_dropped(batch, len(self) - added)
        self.rows.clear()
        return added


def _of_save(
    at: float, endpoint: bytes, connection_id: int, client_id: int, ttl: float
) -> Iterable[AuditEvent]:
    ids = connection_id, None, client_id
    yield AuditEvent(at, "save_endp", Status.OK, None, endpoint, *ids, ttl)


def _of_binding(
    at: float, destination: bytes, endpoint: bytes, binding_id: int, client_id: int, ttl: float
) -> Iterable[AuditEvent]:
    ids = None, binding_id, client_id
    yield AuditEvent(at, "save_dest", Status.OK, destination, endpoint, *ids, ttl)


def _of_find(
    endpoint: bytes,
    connection_id: int,
    client_id: int,
    found_at: float,
    at: float,
    saved_at: float,
) -> Iterable[AuditEvent]:
    row = None, endpoint, connection_id, None, client_id, None
    yield AuditEvent(found_at, "find_endp", Status.OK, *row, found_at - saved_at)
    yield AuditEvent(at, "found", None, *row, at - saved_at)


Followed = AuditEvent | tuple[Form, Parameters]
"""An event that is followed, or a row of a form, which may be several; times are stamps."""


class EventWriter:
    """Events that wait in memory, are written in groups, and are trimmed.

    The rows that a transaction changes and their events are committed together. Ids follow the
    order of time, except within one group.
    """

    def __init__(self, batch: Batch, limit: int) -> None:
        """Keep the newest ``limit`` rows; 0 writes nothing."""
        self.saves = Form(
            "at, kind, status, endpoint, connection_id, client_id, ttl",
            "({0}, 'save_endp', 0, CAST({1} AS TEXT), {2}, {3}, {4})",
            5,
            _of_save,
        )
        self.bindings = Form(
            "at, kind, status, destination, endpoint, binding_id, client_id, ttl",
            "({0}, 'save_dest', 0, CAST({1} AS TEXT), CAST({2} AS TEXT), {3}, {4}, {5})",
            6,
            _of_binding,
        )
        self.finds = Form(
            "at, kind, status, endpoint, connection_id, client_id, age",
            "({3}, 'find_endp', 0, CAST({0} AS TEXT), {1}, {2}, {3} - {5}), "
            "({4}, 'found', NULL, CAST({0} AS TEXT), {1}, {2}, {4} - {5})",
            6,
            _of_find,
            events=2,
        )
        self.followed: list[Followed] | None = None
        """The events since the last `take_followed`; None while no observer follows them."""
        self.kept: int = batch.query(_COUNT, ())[0][0]
        """Rows of the table."""
        self.long_pending = 0
        """Bytes of long labels that have not been written yet. Add those of rows of a form."""
        self._batch = batch
        self._clock = batch.clock
        self._limit = limit
        self._others: list[Parameters] = []
        self._grown = False
        """True if events may have been written since the last trim."""
        self._long_written: deque[tuple[int, int]] = deque()
        """The last event id of each write that had long labels, and the bytes of these labels."""
        self._long_kept = 0
        """Total bytes in `_long_written`."""
        self._count_long(batch, *batch.query(_LONG_SIZE, ())[0])
        batch.before_commit = self.write

    def add(self, event: AuditEvent) -> None:
        """Add an event of any kind, and ask for a commit."""
        self._batch.on_pending()
        at, kind, status, destination, endpoint, *others = event
        if self.followed is not None:
            self.followed.append(AuditEvent(at + self._clock.offset, *event[1:]))
        if not self._limit:
            return
        labels = [label if label is None else text(label) for label in (destination, endpoint)]
        self.long_pending += sum(
            len(label) for label in labels if label and len(label) > LONG_LABEL
        )
        outcome = None if status is None else int(status)
        self._others.append((at + self._clock.offset, kind, outcome, *labels, *others))
        if len(self._others) >= ROWS_AT_ONCE:
            self._try(self._write_all)

    def follow(self, *, wanted: bool) -> None:
        """Keep each event for `take_followed` from now on, or stop doing so.

        It is kept when its fact happens, independent of the database and of the limit.
        """
        self.followed = [] if wanted else None

    def take_followed(self, limit: int | None = None) -> tuple[list[AuditEvent], bool]:
        """Return the events since the last call, in the order of their recording.

        A find that hits is recorded when its connection is handed over. Times are stamps. At most
        ``limit`` entries are taken, each of which may be several events; the second value is True
        if there are more. Call this only while `followed` is a list.
        """
        assert self.followed is not None
        taken = self.followed[:limit]
        del self.followed[:limit]
        events: list[AuditEvent] = []
        for each in taken:
            if isinstance(each, AuditEvent):
                events.append(each)
            else:
                form, parameters = each
                events.extend(form.as_events(*parameters))
        return events, bool(self.followed)

    def write_saves(self) -> None:
        """Write the pending rows of the form `saves`, because there are ROWS_AT_ONCE of them."""
        self._try(self._write_saves)

    def write_forms(self) -> None:
        """Write the pending rows of all forms, because one of them has ROWS_AT_ONCE."""
        self._try(self._write_forms)

    def write(self) -> None:
        """Write the pending events into the current batch, and trim the oldest rows.

        Never raises: events that the database refuses are written later.
        """
        if self._grown or self._pending():
            self._try(self._write_all)

    def _try(self, write: Callable[[Batch], None]) -> None:
        self._grown = True
        try:
            write(self._batch)
        except MemoryError:
            memory.release()
            self._drop_what_is_too_much()
        except DatabaseFault:
            self._drop_what_is_too_much()

    def _write_all(self, batch: Batch) -> None:
        self._write_forms(batch)
        if self._others:
            added = batch.add_many(_ANY, self._others.copy())
            self.kept += added
            _count_dropped(batch, len(self._others) - added)
            self._others.clear()
        self._trim(batch, TRIM, self._limit)
        self._grown = False
        long, self.long_pending = self.long_pending, 0
        self._count_long(batch, long)

    def _write_forms(self, batch: Batch) -> None:
        # Saves get lower ids than finds, so that no connection seems to be found before its save.
        self._write_saves(batch)
        self.kept += self.bindings.write(batch)
        self.kept += self.finds.write(batch)

    def _write_saves(self, batch: Batch) -> None:
        self.kept += self.saves.write(batch)

    def _count_long(self, batch: Batch, size: int) -> None:
        """Account for ``size`` bytes of long labels, and trim events beyond MAX_LONG_SIZE."""
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
            self.kept -= trimmed
            batch.counts[EVENTS_TRIMMED] += trimmed

    def _pending(self) -> int:
        """Return the number of pending events."""
        return len(self.saves) + len(self.bindings) + len(self.finds) + len(self._others)

    def _drop_what_is_too_much(self) -> None:
        """Drop all pending events if there are too many of them, or too long ones.

        Without memory, any number is too many.
        """
        pending = self._pending()
        too_many = pending > MAX_PENDING or self.long_pending > MAX_LONG_SIZE
        if too_many or not memory.restore():
            self.long_pending = 0
            self._batch.counts[EVENTS_DROPPED] += pending
            for rows in (self.saves.rows, self.bindings.rows, self.finds.rows, self._others):
                rows.clear()


def _count_dropped(batch: Batch, events: int) -> None:
    """Count events that an administrator's trigger has dropped (RAISE(IGNORE))."""
    if events:
        batch.counts[EVENTS_DROPPED] += events
