"""The data plane's writes, collected into transactions that are committed at intervals."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from scache.clock import Clock
from scache.errors import DatabaseFault
from scache.store.faults import COMMIT, Faults
from scache.unix import memory

COMMIT_INTERVAL = 0.05
"""Seconds from the first write of a batch to its commit."""

FAULT_RETRY_INTERVAL = 0.2
"""Seconds between attempts to commit while the database refuses writes."""

COUNT = (
    "INSERT INTO counter (name, value) VALUES (?, ?) "
    "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"
)

_ENOUGH_PAGES = 64
"""Free pages of a database with which a write needs no more memory: those of four long requests."""

REFUSALS = (sqlite3.Error, MemoryError)
"""The errors of a statement that the database refuses. MemoryError stands for SQLITE_NOMEM."""

Parameters = Sequence[int | float | bytearray | bytes | str | None]
Operation = tuple[str, Parameters]
"""One statement and its parameters. A list holds many rows: the statement is executed for each."""

text = bytearray
"""Converts a label to a parameter. For the type bytes sqlite3 first looks for an adapter, which
costs a fifth of the time of a statement (measured)."""


class Batch:
    """The write transactions of the data plane's connection, one after another.

    A transaction begins with the first write and collects all writes until `commit` is called.
    This is cheaper than one transaction for each write. Other processes see whole batches only.

    SQLite may roll back the whole batch when the disk refuses a commit (SQLite docs, "Response to
    errors within a transaction"). The operations of a batch are therefore kept until a commit
    succeeds, and are executed again in the next transaction. Until then the live rows are correct
    in SQLite's page cache.

    The batch is also rolled back when a statement is refused, because an administrator's trigger
    may have left half of the statement (RAISE(FAIL)) or have undone the batch (RAISE(ROLLBACK)).
    """

    def __init__(self, connection: sqlite3.Connection, clock: Clock) -> None:
        self.clock = clock
        """The clock; its offset converts the times of live rows to the stamps in the database."""
        self.on_pending: Callable[[], None] = lambda: None
        """Called when a commit becomes due. The callback calls `commit` COMMIT_INTERVAL later."""
        self.before_commit: Callable[[], object] = lambda: None
        """Called before each commit. The callback writes its pending rows."""
        self.counts: Counter[str] = Counter()
        """Values to add to the table ``counter`` with the next commit, by counter."""
        self.faults = Faults()
        self._connection = connection
        self._cursor = connection.cursor()
        """The only cursor. A new one costs a sixth of the time of a statement (measured)."""
        self._operations: list[Operation] = []
        self.counted: Counter[str] = Counter()
        """Sums moved from `counts` into a batch since the start of the process."""
        self._counted: Counter[str] = Counter()
        """Sums moved from `counts` into the current batch, kept until a commit succeeds."""
        self.commit_failed = False
        """True since a commit failed, until one succeeds. `add` and `add_many` are then refused,
        to bound the number of kept operations."""
        self._held_back = False
        """True since a counter or rows of `add_many` were refused, until the next try to commit.
        Meanwhile `add` is refused."""

    @property
    def fault(self) -> str | None:
        """SQLite's message for the first fault that lasts; None if there is none."""
        return self.faults.text

    def begin(self) -> None:
        """Begin a transaction, if there is none, and execute the kept operations again in it.

        Raises DatabaseFault if that fails.
        """
        connection = self._connection
        if connection.in_transaction:
            return
        sql = COMMIT
        try:
            connection.execute("BEGIN IMMEDIATE")
            for sql, parameters in self._operations:
                if isinstance(parameters, list):
                    connection.executemany(sql, parameters)
                else:
                    connection.execute(sql, parameters)
            sql = COUNT
            connection.executemany(COUNT, self._counted.items())
        except REFUSALS as error:
            raise self._refused(sql, error) from error
        if not (self._operations or self._counted):
            self.on_pending()

    def catch_up(self) -> None:
        """Make queries see every earlier operation. Raises DatabaseFault if that fails.

        Unlike `begin`, this begins no transaction if no operation is kept.
        """
        if self._operations:
            self.begin()

    def execute(self, sql: str, parameters: Parameters) -> sqlite3.Cursor:
        """Execute one write. Raises DatabaseFault, and changes nothing, if the database refuses it.

        All writes and queries share the returned cursor: read it before the next one.
        """
        if not self._connection.in_transaction:
            self.begin()
        try:
            self._cursor.execute(sql, parameters)
            self._operations.append((sql, parameters))
        except REFUSALS as error:
            raise self._refused(sql, error) from error
        return self._cursor

    def add(self, sql: str, parameters: Parameters) -> sqlite3.Cursor:
        """Execute one write that makes the database grow, for a request.

        Raises DatabaseFault also while an earlier commit fails, earlier rows are held back, or the
        process is out of memory.
        """
        if self.commit_failed or self._held_back or not self._may_grow():
            raise DatabaseFault(self.fault or "out of memory")
        return self.execute(sql, parameters)

    def ignored(self, writes: int = 1) -> DatabaseFault:
        """Drop the latest operations, because a trigger ignored the first; return what to raise."""
        sql, _ = self._operations[-writes]
        del self._operations[-writes:]
        return self._fault(sql, _ignored())

    def add_many(self, sql: str, rows: list[Any]) -> int:
        """Execute one write that makes the database grow for all of these rows, or for none.

        Return the number of rows added. After a refusal the batch is held back until the next
        commit, when `before_commit` tries again.
        """
        if self.commit_failed or not self._may_grow():
            raise DatabaseFault(self.fault or "out of memory")
        if not self._connection.in_transaction:
            self.begin()
        try:
            self._cursor.executemany(sql, rows)
            self._operations.append((sql, rows))
        except REFUSALS as error:
            self._held_back = True
            raise self._refused(sql, error) from error
        return self._cursor.rowcount

    def _may_grow(self) -> bool:
        """Return False while the process is out of memory, unless SQLite has pages to reuse."""
        if memory.restore():
            return True
        try:
            ((pages,),) = self._connection.execute("PRAGMA freelist_count").fetchall()
        except REFUSALS:
            return False
        return bool(pages >= _ENOUGH_PAGES)

    def execute_eventually(self, sql: str, parameters: Parameters) -> sqlite3.Cursor | None:
        """Execute one write now, or keep it for the next transaction and return None.

        Use this to record a fact, such as a closed connection, that a refusal cannot undo.
        """
        try:
            return self.execute(sql, parameters)
        except DatabaseFault:
            self._operations.append((sql, parameters))
            return None

    def undo(self, done: Operation, undoing: Operation) -> None:
        """Execute a write that reverts an earlier one, now or in the next transaction.

        If the earlier one is not committed yet, neither operation is kept.
        """
        try:
            self._operations.remove(done)
        except ValueError:
            self.execute_eventually(*undoing)
            return
        if self._connection.in_transaction:
            try:
                self._connection.execute(*undoing)
            except REFUSALS as error:
                self._refused(undoing[0], error)

    def query(self, sql: str, parameters: Parameters) -> list[tuple[Any, ...]]:
        """Return the rows of a SELECT. Raises DatabaseFault if they cannot be read.

        While the database is locked, the rows are those of the last commit. A caller that must not
        see such rows calls `begin` or `catch_up` first.
        """
        if self._operations and not self._connection.in_transaction:
            with contextlib.suppress(DatabaseFault):
                self.begin()
        try:
            rows = self._cursor.execute(sql, parameters).fetchall()
        except REFUSALS as error:
            raise self._fault(sql, error) from error
        if self.faults.failing:
            self.faults.succeeded((sql,))
        return rows

    def commit(self) -> bool:
        """Make the batch durable and visible to other processes; return True if nothing is pending.

        Never raises: a refusal is logged once, and the batch is kept. The caller tries again after
        FAULT_RETRY_INTERVAL.
        """
        self._held_back = False
        self.before_commit()
        pending = self._connection.in_transaction or self._operations or self._counted
        if not (pending or self.counts or (self.fault and not self.faults.unreadable)):
            self._tell()
            return True
        try:
            self.begin()
        except DatabaseFault:
            return False
        self._write_counts()
        if self._held_back:
            self._roll_back()  # release the write lock: another program may have to end the fault
            return False
        try:
            self._connection.execute("COMMIT")
        except REFUSALS as error:
            self.commit_failed = True
            self._fault(COMMIT, error)
            return False
        if self.faults.failing:
            self.faults.succeeded((COMMIT, COUNT, *(sql for sql, _ in self._operations)))
        self._operations.clear()
        self._counted.clear()
        growth_was_refused, self.commit_failed = self.commit_failed, False
        self._tell()
        # Write the rows that were refused meanwhile: no later event would cause this commit.
        return self.commit() if growth_was_refused else True

    def gather(self) -> None:
        """Write all that is pending, as far as the database accepts it, before `serialize`."""
        self.before_commit()
        with contextlib.suppress(DatabaseFault):
            self.begin()
            self._write_counts()

    def serialize(self) -> bytes:
        """Return an image of the database that includes the current batch.

        This reads every page, which is too slow for the event loop's thread. SQLite does not lock
        the connection meanwhile, so another thread must not call it either.
        """
        return self._connection.serialize()

    def go_on_with(self, connection: sqlite3.Connection) -> None:
        """Switch to the connection of another database, a copy of the last committed state.

        Operations that are not committed are executed again there. Never raises.
        """
        with contextlib.suppress(*REFUSALS):
            self._roll_back()
        self._connection = connection
        self._cursor = connection.cursor()
        self.faults.unreadable = ""
        self.on_pending()

    def _write_counts(self) -> None:
        """Add `counts` to the current transaction."""
        for name, value in list(self.counts.items()):
            try:
                self._cursor.execute(COUNT, (name, value))
                if not self._cursor.rowcount:
                    raise _ignored()
            except REFUSALS as error:
                self._held_back = True
                self._refused(COUNT, error)
                return
            self._counted[name] += value
            self.counted[name] += value
            del self.counts[name]

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.rollback()

    def _refused(self, sql: str, error: sqlite3.Error | MemoryError) -> DatabaseFault:
        """Roll back after a failed write, so that `begin` executes the kept operations again."""
        self._roll_back()
        return self._fault(sql, error)

    def _fault(self, sql: str, error: sqlite3.Error | MemoryError) -> DatabaseFault:
        """Record the fault of a statement, log it once, and return what to raise."""
        if isinstance(error, MemoryError):
            memory.release()
        known = len(self.faults.failing)
        fault = self.faults.failed(sql, error, self._connection)
        if len(self.faults.failing) > known:
            self.on_pending()  # so that a commit finds out when it has ended
        return fault

    def _tell(self) -> None:
        """Log the end of a fault, or ask for another commit if it is too early for that."""
        self.faults.tell()
        if self.faults.to_tell:
            self.on_pending()


def _ignored() -> sqlite3.IntegrityError:
    """Return the error for a write that a trigger ignored, which SQLite reports as success."""
    return sqlite3.IntegrityError("RAISE(IGNORE)")
