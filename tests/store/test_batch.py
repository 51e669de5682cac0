"""The write batch: one transaction, whose operations are repeated after a failed commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from scache.clock import Clock
from scache.errors import DatabaseFault
from scache.store.batch import Batch
from scache.store.serialized import load
from tests.support.store_fixture import locked, no_space, read

INSERT = "INSERT INTO item VALUES (?)"
ITEMS = "SELECT id FROM item ORDER BY id"

Write = Callable[[Batch, int], object]

WRITES: dict[str, Write] = {
    "execute": lambda batch, item: batch.execute(INSERT, (item,)),
    "add": lambda batch, item: batch.add(INSERT, (item,)),
    "add_many": lambda batch, item: batch.add_many(INSERT, [(item,)]),
    "execute_eventually": lambda batch, item: batch.execute_eventually(INSERT, (item,)),
}
"""Each way to insert one item."""


@pytest.fixture(params=WRITES)
def write(request: pytest.FixtureRequest) -> Write:
    """Return a function that writes."""
    return WRITES[request.param]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Make a database with a table of items and one of counters."""
    path = tmp_path / "items.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY)")
        connection.execute("CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER)")
    return path


@pytest.fixture
def connection(file: Path) -> Iterator[sqlite3.Connection]:
    """Open the file like the daemon: without implicit transactions, and without a timeout."""
    with closing(sqlite3.connect(file, isolation_level=None, timeout=0)) as connection:
        yield connection


@pytest.fixture
def batch(connection: sqlite3.Connection) -> Iterator[Batch]:
    """Make a batch on the file."""
    batch = Batch(connection, Clock())
    yield batch
    with closing(sqlite3.connect(":memory:")) as nothing:
        batch.go_on_with(nothing)  # a statement of its own keeps a database open that was closed


def refuse(connection: sqlite3.Connection, item: int) -> None:
    """Let the database refuse this item, by a temporary trigger."""
    connection.execute(
        f"CREATE TEMP TRIGGER refuse BEFORE INSERT ON item WHEN new.id = {item} "
        "BEGIN SELECT RAISE(ABORT, 'refused'); END"
    )


def accept(connection: sqlite3.Connection) -> None:
    """Let the database accept all items again."""
    connection.execute("DROP TRIGGER refuse")


class TestTransaction:
    def test_each_write_begins_a_transaction(self, batch: Batch, file: Path, write: Write) -> None:
        """Other programs do not see the write before the commit."""
        write(batch, 1)
        assert read(file, ITEMS) == []
        assert batch.query(ITEMS, ()) == [(1,)]
        assert batch.commit()
        assert read(file, ITEMS) == [(1,)]

    def test_commit_is_announced_as_due_once(self, batch: Batch, write: Write) -> None:
        """Only the first write of a batch calls `on_pending`."""
        due: list[int] = []
        batch.on_pending = lambda: due.append(1)
        for item in (1, 2):
            write(batch, item)
        assert len(due) == 1
        assert batch.commit()
        write(batch, 3)
        assert len(due) == 2

    def test_counts_are_written_with_the_commit(self, batch: Batch, file: Path) -> None:
        """A count alone makes a batch, and is added to the value in the table."""
        for _ in range(2):
            batch.counts["things"] += 3
            assert batch.commit()
        assert read(file, "SELECT name, value FROM counter") == [(b"things", 6)]


class TestRefusedStatement:
    @pytest.mark.parametrize("way", ["execute", "add", "add_many"])
    def test_refused_write_changes_nothing(
        self, batch: Batch, connection: sqlite3.Connection, file: Path, way: str
    ) -> None:
        """Writes before and after it are kept."""
        refuse(connection, 2)
        batch.execute(INSERT, (1,))
        with pytest.raises(DatabaseFault, match="refused"):
            WRITES[way](batch, 2)
        batch.execute(INSERT, (3,))
        assert batch.query(ITEMS, ()) == [(1,), (3,)]
        assert batch.commit()
        assert read(file, ITEMS) == [(1,), (3,)]

    def test_add_many_does_all_rows_or_none(
        self, batch: Batch, connection: sqlite3.Connection, file: Path
    ) -> None:
        """Rows before the refused one are rolled back."""
        refuse(connection, 3)
        batch.execute(INSERT, (1,))
        with pytest.raises(DatabaseFault, match="refused"):
            batch.add_many(INSERT, [(2,), (3,), (4,)])
        assert batch.query(ITEMS, ()) == [(1,)]
        assert batch.commit()
        assert read(file, ITEMS) == [(1,)]

    def test_execute_eventually_is_repeated_until_it_succeeds(
        self, batch: Batch, connection: sqlite3.Connection, file: Path
    ) -> None:
        """It is not lost with the transaction that refused it."""
        refuse(connection, 2)
        batch.execute(INSERT, (1,))
        assert batch.execute_eventually(INSERT, (2,)) is None
        assert not batch.commit()
        accept(connection)
        assert batch.commit()
        assert read(file, ITEMS) == [(1,), (2,)]

    def test_undo_is_repeated_until_it_succeeds(
        self, batch: Batch, connection: sqlite3.Connection, file: Path
    ) -> None:
        """The write is removed from the batch although the database refuses its undoing."""
        connection.execute(
            "CREATE TEMP TRIGGER refuse BEFORE DELETE ON item "
            "BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
        batch.execute(INSERT, (1,))
        batch.execute(INSERT, (2,))
        batch.undo((INSERT, (1,)), ("DELETE FROM item WHERE id = ?", (1,)))
        assert batch.fault == "refused"
        accept(connection)
        assert batch.query(ITEMS, ()) == [(2,)]
        assert batch.commit()
        assert read(file, ITEMS) == [(2,)]

    def test_undo_of_a_committed_write_is_a_write(self, batch: Batch, file: Path) -> None:
        """The next batch has it."""
        batch.execute(INSERT, (1,))
        assert batch.commit()
        batch.undo((INSERT, (1,)), ("DELETE FROM item WHERE id = ?", (1,)))
        assert batch.commit()
        assert read(file, ITEMS) == []


class TestLockedDatabase:
    def test_fault_announces_a_commit_as_due(
        self, batch: Batch, file: Path, write: Write, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A commit without a further write detects the end of the fault."""
        due: list[int] = []
        batch.on_pending = lambda: due.append(1)
        with locked(file):
            for item in (1, 2):
                try:
                    write(batch, item)
                except DatabaseFault:
                    assert write is not WRITES["execute_eventually"]
            assert len(due) == 1
            assert not batch.commit()
        assert batch.commit()
        assert batch.fault is None
        assert [record.message.split(" (")[0] for record in caplog.records] == [
            "the database cannot be written now",
            "the database can be written again; nothing was lost",
        ]

    def test_operations_during_a_lock_are_executed_in_order(self, batch: Batch, file: Path) -> None:
        """Each operation is repeated once."""
        with locked(file):
            batch.execute_eventually(INSERT, (1,))
            batch.execute_eventually("UPDATE item SET id = id + 10", ())
            batch.execute_eventually(INSERT, (2,))
        assert batch.query(ITEMS, ()) == [(2,), (11,)]
        assert batch.commit()
        assert read(file, ITEMS) == [(2,), (11,)]

    def test_failed_commit_stops_the_growth_of_the_batch(
        self, batch: Batch, connection: sqlite3.Connection, file: Path
    ) -> None:
        """Rows cannot be added until a commit succeeds."""
        connection.execute("PRAGMA journal_mode = DELETE")
        batch.execute(INSERT, (1,))
        with closing(sqlite3.connect(file, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute(ITEMS).fetchall()
            assert not batch.commit()
            for write in (WRITES["add"], WRITES["add_many"]):
                with pytest.raises(DatabaseFault, match="locked"):
                    write(batch, 2)
            batch.execute(INSERT, (3,))
        assert batch.commit()
        assert not batch.commit_failed
        batch.add(INSERT, (4,))
        assert batch.commit()
        assert read(file, ITEMS) == [(1,), (3,), (4,)]


class TestFullDisk:
    def test_failed_commit_is_repeated(self, batch: Batch, file: Path) -> None:
        """Writes, rows and counts stay in effect meanwhile, and are committed once."""
        batch.add_many(INSERT, [(1,), (2,)])
        batch.execute("UPDATE item SET id = id + 10", ())
        batch.counts["things"] += 1
        with no_space():
            assert not batch.commit()
            assert batch.query(ITEMS, ()) == [(11,), (12,)]
            batch.counts["things"] += 1
            assert not batch.commit()
        assert batch.query(ITEMS, ()) == [(11,), (12,)]
        batch.counts["things"] += 1
        assert batch.commit()
        assert read(file, ITEMS) == [(11,), (12,)]
        assert read(file, "SELECT value FROM counter") == [(3,)]

    def test_before_commit_is_called_again_after_a_fault(self, batch: Batch, file: Path) -> None:
        """Rows that could not be added are added when a commit succeeds."""
        waiting = [1]

        def write() -> None:
            if waiting:
                with suppress(DatabaseFault):
                    batch.add(INSERT, (waiting[0],))
                    waiting.clear()

        batch.execute(INSERT, (2,))
        with no_space():
            assert not batch.commit()
        batch.before_commit = write
        assert batch.commit()
        assert read(file, ITEMS) == [(1,), (2,)]


class TestImage:
    def test_image_has_the_current_batch(self, batch: Batch) -> None:
        """The image has its writes, its counts and the rows of `before_commit`."""
        batch.execute(INSERT, (1,))
        batch.counts["things"] += 1
        batch.before_commit = lambda: batch.add_many(INSERT, [(2,)])
        batch.gather()
        with closing(load(batch.serialize())) as image:
            assert image.execute(ITEMS).fetchall() == [(1,), (2,)]
            assert image.execute("SELECT value FROM counter").fetchall() == [(1,)]

    def test_gather_ignores_a_locked_database(self, batch: Batch, file: Path) -> None:
        """The image has the last commit then."""
        batch.counts["things"] += 1
        with locked(file):
            batch.gather()
        assert batch.counts["things"] == 1


def test_query_that_fails_is_a_fault(batch: Batch) -> None:
    """The fault has SQLite's message."""
    with pytest.raises(DatabaseFault, match="no such table: absent"):
        batch.query("SELECT * FROM absent", ())
    assert batch.fault == "no such table: absent"


def test_go_on_with_executes_the_batch_in_another_database(batch: Batch, tmp_path: Path) -> None:
    """A commit is announced as due."""
    path = tmp_path / "other.db"
    batch.execute(INSERT, (1,))
    batch.counts["things"] += 1
    due: list[int] = []
    batch.on_pending = lambda: due.append(1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE item (id INTEGER PRIMARY KEY)")
        other.execute("CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER)")
        batch.go_on_with(other)
        assert due
        assert batch.query(ITEMS, ()) == [(1,)]
        assert batch.commit()
        assert read(path, ITEMS) == [(1,)]
        assert read(path, "SELECT value FROM counter") == [(1,)]


def test_write_without_memory_is_refused_and_the_batch_goes_on(
    write: Write, connection: sqlite3.Connection, batch: Batch, file: Path
) -> None:
    """SQLITE_NOMEM, a MemoryError in Python, changes nothing; a commit ends the fault."""

    def nothing_left() -> None:
        raise MemoryError

    connection.create_function("nothing_left", 0, nothing_left)
    connection.execute(
        "CREATE TEMP TRIGGER full BEFORE INSERT ON item WHEN new.id = 2 "
        "BEGIN SELECT nothing_left(); END"
    )
    batch.add(INSERT, (1,))
    with suppress(DatabaseFault):
        write(batch, 2)
    fault = batch.fault
    assert fault == "out of memory"
    connection.execute("DROP TRIGGER full")
    assert batch.commit()
    assert batch.fault is None
    kept = [(1,), (2,)] if write is WRITES["execute_eventually"] else [(1,)]
    assert read(file, ITEMS) == kept
