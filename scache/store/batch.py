"""The data plane's writes, gathered into one transaction that is committed now and then."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from scache.clock import Clock
from scache.errors import DatabaseFault
from scache.store.faults import COMMIT, Faults

COMMIT_INTERVAL = 0.05
"""Seconds from the first write of a batch to its commit."""

FAULT_RETRY_INTERVAL = 0.2
"""Seconds between attempts to commit while the disk refuses."""

COUNT = (
    "INSERT INTO counter (name, value) VALUES (?, ?) "
    "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"
)

Parameters = Sequence[int | float | bytearray | bytes | str | None]
Operation = tuple[str, Parameters]
"""One statement and its parameters; if those are a list, of rows, it is done for each of them."""

text = bytearray
"""Makes a parameter of a label. For one of the type bytes, which it could bind as it is, sqlite3
first looks for an adapter, which costs a fifth of a statement."""


class Batch:
    """One write transaction after another on the data plane's connection.

    A transaction begins with the first write and collects whatever follows
    until somebody calls `commit`, which is cheaper than a transaction for each
    write. Readers in other processes see whole batches.

    A commit that the disk refuses rolls the whole batch back (SQLite docs,
    "Response to errors within a transaction"). So the operations of a batch
    are kept until they are safe, and are done again at the next occasion: the
    live rows stay true, in SQLite's page cache, until a commit succeeds.

    A statement that is refused rolls it back as well, because a trigger of an
    administrator may have left half of it (RAISE(FAIL)), or nothing of the
    whole batch (RAISE(ROLLBACK)).
    """

    def __init__(self, connection: sqlite3.Connection, clock: Clock) -> None:
        self.clock = clock
        """Its offset is what was added to the times of all that is live, for their stamps."""
        self.on_pending: Callable[[], None] = lambda: None
        """Called when a commit becomes due: call `commit` COMMIT_INTERVAL later."""
        self.before_commit: Callable[[], object] = lambda: None
        """Called when a commit is about to be tried: write what waits to be written."""
        self.counts: Counter[str] = Counter()
        """What to add to the table ``counter`` with the next commit."""
        self.faults = Faults()
        self._connection = connection
        self._cursor = connection.cursor()
        """One for all: making a cursor for each statement costs a sixth of its time."""
        self._operations: list[Operation] = []
        self._counted: Counter[str] = Counter()
        """What of `counts` is in the batch: one sum for each, however often a commit fails."""
        self.commit_failed = False
        """Whether an earlier commit still waits for the disk: then nothing may grow, so that what
        has to be kept for later cannot grow without bound."""
        self._held_back = False
        """Whether the batch waits for a counter or for rows of `add_many`, which were refused: then
        no request may add to it."""

    @property
    def fault(self) -> str | None:
        """What the database complains of; None while it can be written."""
        return self.faults.text

    def begin(self) -> None:
        """Make sure of a transaction that has seen every earlier operation.

        Raises DatabaseFault when there can be none now.
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
        except sqlite3.Error as error:
            raise self._refused(sql, error) from error
        if not (self._operations or self._counted):
            self.on_pending()

    def catch_up(self) -> None:
        """Make sure that queries see every earlier operation; raise DatabaseFault if they cannot.

        Unlike `begin` it takes no transaction if there is no such operation.
        """
        if self._operations:
            self.begin()

    def execute(self, sql: str, parameters: Parameters) -> sqlite3.Cursor:
        """Do one write; DatabaseFault if the database refuses it, and then nothing has changed.

        The cursor is that of every write and query: look at it before the next.
        """
        if not self._connection.in_transaction:
            self.begin()
        try:
            self._cursor.execute(sql, parameters)
        except sqlite3.Error as error:
            raise self._refused(sql, error) from error
        self._operations.append((sql, parameters))
        return self._cursor

    def add(self, sql: str, parameters: Parameters) -> sqlite3.Cursor:
        """Do one write of a request that makes the database grow.

        It is refused as well while an earlier commit fails or is held back.
        """
        if self.commit_failed or self._held_back:
            raise DatabaseFault(self.fault)
        return self.execute(sql, parameters)

    def ignored(self, writes: int = 1) -> DatabaseFault:
        """Forget the latest writes, as a trigger has ignored the first; return what to raise."""
        sql, _ = self._operations[-writes]
        del self._operations[-writes:]
        return self._fault(sql, _ignored())

    def add_many(self, sql: str, rows: list[Any]) -> int:
        """Do one write that makes the database grow for each of these rows, or for none.

        Return how many rows that added. If it is refused, the batch waits until `before_commit` has
        tried again.
        """
        if self.commit_failed:
            raise DatabaseFault(self.fault)
        if not self._connection.in_transaction:
            self.begin()
        try:
            self._cursor.executemany(sql, rows)
        except sqlite3.Error as error:
            self._held_back = True
            raise self._refused(sql, error) from error
        self._operations.append((sql, rows))
        return self._cursor.rowcount

    def execute_eventually(self, sql: str, parameters: Parameters) -> sqlite3.Cursor | None:
        """Do one write, now or as soon as the database lets us: then there is no cursor.

        For what has happened already, whatever the database says.
        """
        try:
            return self.execute(sql, parameters)
        except DatabaseFault:
            self._operations.append((sql, parameters))
            return None

    def undo(self, done: Operation, undoing: Operation) -> None:
        """Do one write that takes back an earlier one, now or as soon as the database lets us.

        If the earlier one waits to be committed, neither of them has to be kept.
        """
        try:
            self._operations.remove(done)
        except ValueError:
            self.execute_eventually(*undoing)
            return
        if self._connection.in_transaction:
            try:
                self._connection.execute(*undoing)
            except sqlite3.Error as error:
                self._refused(undoing[0], error)

    def query(self, sql: str, parameters: Parameters) -> list[tuple[Any, ...]]:
        """Return the rows of a SELECT; DatabaseFault if they cannot be read.

        While the database is locked they are those of the last commit: whoever
        must not see such rows calls `begin` or `catch_up` before.
        """
        if self._operations and not self._connection.in_transaction:
            with contextlib.suppress(DatabaseFault):
                self.begin()
        try:
            rows = self._cursor.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._fault(sql, error) from error
        if self.faults.failing:
            self.faults.succeeded((sql,))
        return rows

    def commit(self) -> bool:
        """Make the batch durable and visible to others; return whether nothing is left to do.

        Never raises: a refusal is logged once, the batch is kept, and the
        caller tries again after FAULT_RETRY_INTERVAL.
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
            self._roll_back()  # and let others write, of whom one may end the fault
            return False
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self.commit_failed = True
            self._fault(COMMIT, error)
            return False
        if self.faults.failing:
            self.faults.succeeded((COMMIT, COUNT, *(sql for sql, _ in self._operations)))
        self._operations.clear()
        self._counted.clear()
        growth_was_refused, self.commit_failed = self.commit_failed, False
        self._tell()
        # What was refused meanwhile waits to be written: nobody else would think of it.
        return self.commit() if growth_was_refused else True

    def gather(self) -> None:
        """Write what waits for the next commit, as far as the database lets us, for `serialize`."""
        self.before_commit()
        with contextlib.suppress(DatabaseFault):
            self.begin()
            self._write_counts()

    def serialize(self) -> bytes:
        """Return an image of the database, the batch under way included.

        Reads every page, so not for the event loop's thread. And SQLite does
        that without the connection's lock: for no other thread either.
        """
        return self._connection.serialize()

    def go_on_with(self, connection: sqlite3.Connection) -> None:
        """Leave a database for another that has what was committed last.

        What waits to be committed is done again there. Never raises.
        """
        with contextlib.suppress(sqlite3.Error):
            self._roll_back()
        self._connection = connection
        self._cursor = connection.cursor()
        self.faults.unreadable = ""
        self.on_pending()

    def _write_counts(self) -> None:
        """Add `counts` to the transaction under way."""
        for name, value in list(self.counts.items()):
            try:
                self._cursor.execute(COUNT, (name, value))
                if not self._cursor.rowcount:
                    raise _ignored()
            except sqlite3.Error as error:
                self._held_back = True
                self._refused(COUNT, error)
                return
            self._counted[name] += value
            del self.counts[name]

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.rollback()

    def _refused(self, sql: str, error: sqlite3.Error) -> DatabaseFault:
        """Undo what a write that failed may have done, for `begin` to do the rest again."""
        self._roll_back()
        return self._fault(sql, error)

    def _fault(self, sql: str, error: sqlite3.Error) -> DatabaseFault:
        """Remember what went wrong, say so once, and return what to raise."""
        known = len(self.faults.failing)
        fault = self.faults.failed(sql, error, self._connection)
        if len(self.faults.failing) > known:
            self.on_pending()  # so that a commit finds out when it has ended
        return fault

    def _tell(self) -> None:
        """Let the log say in time that a fault has ended."""
        self.faults.tell()
        if self.faults.to_tell:
            self.on_pending()


def _ignored() -> sqlite3.IntegrityError:
    """Return what to make of a write that a trigger has ignored, which is no error for SQLite."""
    return sqlite3.IntegrityError("RAISE(IGNORE)")
