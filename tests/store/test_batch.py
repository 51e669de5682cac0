"""The write batch: one transaction, whose operations survive whatever the database refuses."""

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
    """Name a way to write."""
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
    """Open it as the daemon does: without transactions of Python's, and waiting for nobody."""
    with closing(sqlite3.connect(file, isolation_level=None, timeout=0)) as connection:
        yield connection


@pytest.fixture
def batch(connection: sqlite3.Connection) -> Iterator[Batch]:
    """Make a batch."""
    batch = Batch(connection, Clock())
    yield batch
    with closing(sqlite3.connect(":memory:")) as nothing:
        batch.go_on_with(nothing)  # a statement of its own keeps a database open that was closed


def refuse(connection: sqlite3.Connection, item: int) -> None:
    """Let the database refuse this item, by a trigger of this connection alone."""
    connection.execute(
        f"CREATE TEMP TRIGGER refuse BEFORE INSERT ON item WHEN new.id = {item} "
        "BEGIN SELECT RAISE(ABORT, 'refused'); END"
    )


def accept(connection: sqlite3.Connection) -> None:
    """Let the database refuse nothing any more."""
    connection.execute("DROP TRIGGER refuse")


class TestTransaction:
    def test_each_write_begins_one(self, batch: Batch, file: Path, write: Write) -> None:
        """Others see nothing of it until the commit."""
        write(batch, 1)
        assert read(file, ITEMS) == []
        assert batch.query(ITEMS, ()) == [(1,)]
        assert batch.commit()
        assert read(file, ITEMS) == [(1,)]

    def test_commit_is_announced_as_due_once(self, batch: Batch, write: Write) -> None:
        """The first write of each batch says so, and no further one."""
        due: list[int] = []
        batch.on_pending = lambda: due.append(1)
        for item in (1, 2):
            write(batch, item)
        assert len(due) == 1
        assert batch.commit()
        write(batch, 3)
        assert len(due) == 2

    def test_counts_are_written_with_the_commit(self, batch: Batch, file: Path) -> None:
        """A count alone is a batch as well, and is added to what the table has."""
        for _ in range(2):
            batch.counts["things"] += 3
            assert batch.commit()
        assert read(file, "SELECT name, value FROM counter") == [(b"things", 6)]


class TestRefusedStatement:
    @pytest.mark.parametrize("way", ["execute", "add", "add_many"])
    def test_write_changes_nothing(
        self, batch: Batch, connection: sqlite3.Connection, file: Path, way: str
    ) -> None:
        """What was written before it stays, and so does what is written afterwards."""
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
        """Rows before the one that is refused are taken back."""
        refuse(connection, 3)
        batch.execute(INSERT, (1,))
        with pytest.raises(DatabaseFault, match="refused"):
            batch.add_many(INSERT, [(2,), (3,), (4,)])
        assert batch.query(ITEMS, ()) == [(1,)]
        assert batch.commit()
        assert read(file, ITEMS) == [(1,)]

    def test_execute_eventually_is_done_once_the_database_allows_it(
        self, batch: Batch, connection: sqlite3.Connection, file: Path
    ) -> None:
        """It is not lost with the transaction in which it was refused."""
        refuse(connection, 2)
        batch.execute(INSERT, (1,))
        assert batch.execute_eventually(INSERT, (2,)) is None
        assert not batch.commit()
        accept(connection)
        assert batch.commit()
        assert read(file, ITEMS) == [(1,), (2,)]

    def test_undo_is_done_once_the_database_allows_it(
        self, batch: Batch, connection: sqlite3.Connection, file: Path
    ) -> None:
        """A write that waits for its commit is forgotten, though its undoing is refused."""
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

    def test_undo_of_what_was_committed_is_a_write(self, batch: Batch, file: Path) -> None:
        """It is in the next batch."""
        batch.execute(INSERT, (1,))
        assert batch.commit()
        batch.undo((INSERT, (1,)), ("DELETE FROM item WHERE id = ?", (1,)))
        assert batch.commit()
        assert read(file, ITEMS) == []


class TestLockedDatabase:
    def test_fault_announces_a_commit_as_due(
        self, batch: Batch, file: Path, write: Write, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Without a further write somebody finds out that the database can be written again."""
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

    def test_what_happened_meanwhile_is_written_in_order(self, batch: Batch, file: Path) -> None:
        """Each operation of the time is done again, once."""
        with locked(file):
            batch.execute_eventually(INSERT, (1,))
            batch.execute_eventually("UPDATE item SET id = id + 10", ())
            batch.execute_eventually(INSERT, (2,))
        assert batch.query(ITEMS, ()) == [(2,), (11,)]
        assert batch.commit()
        assert read(file, ITEMS) == [(2,), (11,)]

    def test_nothing_grows_after_a_commit_that_failed(
        self, batch: Batch, connection: sqlite3.Connection, file: Path
    ) -> None:
        """What is kept for later has a bound: adding is refused, until a commit succeeds."""
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
    def test_commit_that_is_refused_is_done_again(self, batch: Batch, file: Path) -> None:
        """Single writes, rows and counts are true meanwhile, and there in the end, once."""
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

    def test_what_waits_for_the_commit_is_written_by_the_retry(
        self, batch: Batch, file: Path
    ) -> None:
        """What could not be added meanwhile is, as soon as a commit succeeds."""
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
    def test_image_holds_all_that_waits(self, batch: Batch) -> None:
        """The batch under way, the counts, and what is written before a commit are in it."""
        batch.execute(INSERT, (1,))
        batch.counts["things"] += 1
        batch.before_commit = lambda: batch.add_many(INSERT, [(2,)])
        batch.gather()
        with closing(load(batch.serialize())) as image:
            assert image.execute(ITEMS).fetchall() == [(1,), (2,)]
            assert image.execute("SELECT value FROM counter").fetchall() == [(1,)]

    def test_gathering_from_a_locked_database_raises_nothing(
        self, batch: Batch, file: Path
    ) -> None:
        """The image is then of what was committed last."""
        batch.counts["things"] += 1
        with locked(file):
            batch.gather()
        assert batch.counts["things"] == 1


def test_query_that_fails_is_a_fault(batch: Batch) -> None:
    """SQLite's reason is told."""
    with pytest.raises(DatabaseFault, match="no such table: absent"):
        batch.query("SELECT * FROM absent", ())
    assert batch.fault == "no such table: absent"


def test_batch_goes_on_with_another_database(batch: Batch, tmp_path: Path) -> None:
    """What waits to be committed is done there, and a commit is announced as due."""
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
