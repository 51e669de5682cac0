"""The live rows: their statements, exact bytes, order and batches, and rejected writes."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from scache.errors import DatabaseFault
from scache.inspection.image import Image
from scache.model import Connection, Peer
from scache.store import batch, event_writer, ids, live_rows
from scache.store.batch import Batch
from scache.store.live_rows import Binding, Gone, LiveRows, Saved
from scache.store.serialized import complete, load
from tests.support.clocks import HandClock
from tests.support.store_fixture import NOW, Opened, binding, connection, locked, no_space, read

LABELS = [b"", b"\n", b"two\nlines\n", b"\xff\xfe\x80", bytes(range(1, 256)), b"7" * 3000]


@contextmanager
def traced_batch(file: Path) -> Iterator[tuple[Batch, list[str]]]:
    """Make a batch on a new database; yield it, and a list that grows by each statement."""
    with Opened(file):
        pass
    statements: list[str] = []
    with closing(sqlite3.connect(file, isolation_level=None, timeout=0)) as connection:
        connection.text_factory = bytes
        connection.set_trace_callback(statements.append)
        batch = Batch(connection, HandClock(NOW))
        yield batch, statements
        with closing(sqlite3.connect(":memory:")) as nothing:
            batch.go_on_with(nothing)  # a statement of its own keeps a database open


STATEMENTS = {
    f"{module.__name__}.{name}": sql
    for module in (live_rows, batch, ids, event_writer)
    for name, sql in vars(module).items()
    if isinstance(sql, str) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)\b", sql)
}
AT_THE_START = {
    "scache.store.live_rows._DESTINATIONS",
    "scache.store.live_rows._COUNT_DISCONNECTED",
    "scache.store.event_writer._LONG_SIZE",
    "scache.store.event_writer._COUNT",
}
"""Executed once, before the daemon listens, so they may scan a table."""


@pytest.mark.parametrize("name", STATEMENTS)
def test_statement_neither_scans_nor_sorts(name: str, opened: Opened) -> None:
    """Every constant statement finds its rows, in order, through an index."""
    sql = STATEMENTS[name]
    numbered = set(re.findall(r"\?\d+", sql))
    parameters = [0] * (len(numbered) or sql.count("?"))
    plan = opened.database.batch.query(f"EXPLAIN QUERY PLAN {sql}", parameters)
    for step in (str(row[3], "utf-8") for row in plan):
        assert "TEMP B-TREE" not in step
        if name not in AT_THE_START:
            assert not step.startswith("SCAN") or step == "SCAN CONSTANT ROW"


def test_statements_are_all_checked() -> None:
    """The test above finds the statements in the modules."""
    assert len(STATEMENTS) > 15
    assert set(STATEMENTS) > AT_THE_START


class TestLiveRows:
    @pytest.mark.parametrize("label", LABELS)
    def test_labels_are_returned_byte_for_byte(self, label: bytes, opened: Opened) -> None:
        """Labels and properties may have any bytes but NUL, in columns of type TEXT."""
        rows = LiveRows(opened.database.batch)
        saved = Connection(1, label, label, NOW, NOW + 60, 1)
        rows.save_connection(saved)
        rows.save_binding(Binding(2, label, label, label, NOW, NOW + 60, 1))
        assert rows.oldest_of_endpoint(label, NOW) == saved
        assert rows.oldest_of_destination(label, NOW) == (saved, label, 2)
        assert rows.bindings_by_destination() == [(label, 1, 3 * len(label))]
        kinds = "SELECT typeof(endpoint), typeof(properties) FROM "
        assert opened.rows(kinds + "connection") == opened.rows(kinds + "binding")
        assert opened.rows(kinds + "connection") == [(b"text", b"text")]
        rows.take_connection(saved)
        rows.remove_binding(label, 2)
        assert (
            opened.rows("SELECT endpoint FROM connection UNION SELECT endpoint FROM binding") == []
        )

    @pytest.mark.parametrize("label", LABELS)
    def test_other_process_reads_the_same_bytes(self, label: bytes, file: Path) -> None:
        """The file has the bytes that were saved."""
        with Opened(file) as opened:
            rows = LiveRows(opened.database.batch)
            rows.save_connection(Connection(1, label, label, NOW, NOW + 60, 1))
            assert opened.database.batch.commit()
            assert read(file, "SELECT endpoint, properties FROM connection") == [(label, label)]

    def test_labels_that_differ_in_one_byte_are_different(self, opened: Opened) -> None:
        """Labels are not folded, trimmed or converted to numbers."""
        rows = LiveRows(opened.database.batch)
        labels = [b"a", b"A", b"a ", b"a\n", b"1", b"01", b"1.0", b"\xc3\xa9", b"e\xcc\x81", b""]
        for row_id, label in enumerate(labels, 1):
            rows.save_connection(connection(row_id, label))
        for row_id, label in enumerate(labels, 1):
            assert rows.oldest_of_endpoint(label, NOW) == connection(row_id, label)

    def test_saving_a_binding_again_refreshes_or_replaces_it(self, opened: Opened) -> None:
        """A live binding keeps its id; an expired one gets a new id."""
        rows = LiveRows(opened.database.batch)
        assert rows.save_binding(binding(1)) == Saved(1, added=True)
        assert rows.save_binding(binding(2, ttl=5)) == Saved(1, added=False)
        assert opened.rows("SELECT id, expires_at FROM binding") == [(1, NOW + 5)]
        later = binding(3)._replace(saved_at=NOW + 5, expires_at=NOW + 9)
        gone = Gone(1, later.destination, later.endpoint, NOW, NOW + 5, later.size)
        assert rows.save_binding(later) == Saved(3, added=False, replaced=gone)
        assert opened.rows("SELECT id, saved_at FROM binding") == [(3, NOW + 5)]

    def test_expired_bindings_are_returned_in_order_and_in_slices(self, opened: Opened) -> None:
        """The first to expire comes first; the number of rows has a limit."""
        rows = LiveRows(opened.database.batch)
        assert rows.next_binding_expiry() == float("inf")
        for row_id, ttl in enumerate([4, 2, 3, 9], 1):
            rows.save_binding(binding(row_id, b"d%d" % row_id, ttl=ttl))
        assert [gone.id for gone in rows.expired_bindings(NOW + 4, 2)] == [2, 3]
        assert rows.next_binding_expiry() == NOW + 2
        for row_id in (2, 3):
            rows.remove_binding(b"d%d" % row_id, row_id)
        assert [gone.id for gone in rows.expired_bindings(NOW + 4, 2)] == [1]
        assert rows.next_binding_expiry() == NOW + 4

    def test_oldest_disconnected_clients_are_deleted(
        self, opened: Opened, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Connected clients and the newest MAX_DISCONNECTED_CLIENTS disconnected ones are kept."""
        monkeypatch.setattr(live_rows, "MAX_DISCONNECTED_CLIENTS", 2)
        rows = LiveRows(opened.database.batch)
        for client_id in range(1, 7):
            rows.add_client(client_id, Peer(7, 8, 9), NOW)
        for client_id in (6, 2, 3, 4):
            rows.end_client(client_id, NOW + 1)
        found = opened.rows("SELECT id, disconnected_at FROM client ORDER BY id")
        assert found == [(1, None), (4, NOW + 1), (5, None), (6, NOW + 1)]


class TestBatch:
    def test_other_programs_see_whole_batches(self, file: Path) -> None:
        """No write is visible in the file before the commit of its batch."""
        with Opened(file) as opened:
            batch, rows = opened.database.batch, LiveRows(opened.database.batch)
            due: list[bool] = []
            batch.on_pending = lambda: due.append(True)
            rows.save_connection(connection(1))
            rows.save_binding(binding(2))
            batch.counts["things"] += 2
            assert read(file, "SELECT id FROM connection UNION SELECT id FROM binding") == []
            assert due == [True]
            assert batch.commit()
            assert read(file, "SELECT id FROM connection") == [(1,)]
            assert read(file, "SELECT id FROM binding") == [(2,)]
            rows.take_connection(connection(1))
            batch.counts["things"] += 3
            assert batch.commit()
            assert due == [True, True]
            assert read(file, "SELECT id FROM connection") == []
            assert read(file, "SELECT value FROM counter WHERE name = 'things'") == [(5,)]

    def test_locked_database_refuses_writes_at_once(self, file: Path) -> None:
        """Saves and finds fail; removals are executed when the lock is free."""
        with Opened(file) as opened:
            batch, rows = opened.database.batch, LiveRows(opened.database.batch)
            for row_id in (1, 2):
                rows.save_connection(connection(row_id))
            assert batch.commit()
            with locked(file):
                for refused in (
                    lambda: rows.save_connection(connection(3)),
                    lambda: rows.save_binding(binding(4)),
                    lambda: rows.oldest_of_endpoint(b"e", NOW),
                    lambda: rows.oldest_of_destination(b"d", NOW),
                    lambda: rows.take_connection(connection(1)),
                ):
                    with pytest.raises(DatabaseFault, match="locked"):
                        refused()
                rows.remove_connection(b"e", 1)
                rows.add_client(5, Peer(7, 8, 9), NOW)
                assert not batch.commit()
                assert batch.fault
            assert batch.commit()
            assert not batch.fault
            assert read(file, "SELECT id FROM connection") == [(2,)]
            assert read(file, "SELECT id FROM client") == []
            assert read(file, "SELECT id FROM binding") == []

    def test_failed_commit_loses_nothing(self, file: Path) -> None:
        """The batch stays in effect for the daemon, and is committed later."""
        with Opened(file) as opened:
            batch, rows = opened.database.batch, LiveRows(opened.database.batch)
            rows.save_connection(connection(1))
            rows.save_connection(connection(2))
            batch.counts["things"] += 1
            with no_space():
                assert not batch.commit()
                assert batch.fault
                assert rows.oldest_of_endpoint(b"e", NOW) == connection(1)
                rows.take_connection(connection(1))
                with pytest.raises(DatabaseFault):
                    rows.save_connection(connection(3))
                with pytest.raises(DatabaseFault):
                    rows.save_binding(binding(4))
                rows.restore_connection(connection(1))
                assert not batch.commit()
                rows.take_connection(connection(1))
                batch.counts["things"] += 1
                assert not batch.commit()
                assert read(file, "SELECT id FROM connection") == []
            assert batch.commit()
            assert not batch.fault
            assert read(file, "SELECT id FROM connection") == [(2,)]
            assert read(file, "SELECT value FROM counter WHERE name = 'things'") == [(2,)]
            rows.save_connection(connection(5))

    def test_count_survives_a_refused_statement(self, file: Path) -> None:
        """A counter is raised later if its own statement fails."""
        with Opened(file) as opened:
            batch = opened.database.batch
            ((pages,),) = opened.rows("PRAGMA page_count")
            opened.rows(f"PRAGMA max_page_count = {pages}")
            names = [f"{'x' * 500}{number}" for number in range(100)]
            batch.counts.update(names)
            assert not batch.commit()
            opened.rows("PRAGMA max_page_count = 1000000")
            assert batch.commit()
            assert read(file, "SELECT count(*) FROM counter WHERE name LIKE 'xx%'") == [(100,)]


class TestFault:
    def test_clients_during_a_fault_do_not_accumulate_statements(self, file: Path) -> None:
        """A client that connects and disconnects while the disk is full leaves no statement."""
        with traced_batch(file) as (batch, statements):
            rows = LiveRows(batch)
            rows.add_client(1, Peer(1, 2, 3), NOW)
            with no_space():
                assert not batch.commit()
                for client_id in range(2, 100):
                    rows.add_client(client_id, Peer(1, 2, 3), NOW)
                    rows.end_client(client_id, NOW)
                    batch.commit()
            statements.clear()
            assert batch.commit()
            assert sum("client" in sql for sql in statements) == 2  # a row and a count
            assert read(file, "SELECT id FROM client") == [(1,)]

    def test_restored_connection_does_not_accumulate_statements(self, file: Path) -> None:
        """A connection is taken and restored many times while the disk is full."""
        with traced_batch(file) as (batch, statements):
            rows = LiveRows(batch)
            rows.save_connection(connection(1))
            assert batch.commit()
            rows.add_client(2, Peer(1, 2, 3), NOW)
            with no_space():
                assert not batch.commit()
                for _ in range(100):
                    found = rows.oldest_of_endpoint(b"e", NOW)
                    assert found == connection(1)
                    rows.take_connection(found)
                    batch.commit()
                    rows.restore_connection(found)
                assert not batch.commit()
            statements.clear()
            assert batch.commit()
            assert not any("connection" in sql for sql in statements)
            assert read(file, "SELECT id FROM connection") == [(1,)]


def test_snapshot_has_a_connection_being_delivered_once() -> None:
    """Its row may still exist, because a locked database has not deleted it."""
    with Opened(":memory:") as opened:
        LiveRows(opened.database.batch).save_connection(connection(1))
        with closing(load(opened.database.batch.serialize())) as copy:
            data = complete(copy, [connection(1)], [], {})
    with Image.from_bytes(data) as image:
        assert list(image.execute("SELECT id FROM connection").rows) == [(1,)]
