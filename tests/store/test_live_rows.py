"""The store: migrations, live rows, gathered commits, ids, and a database that says no."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import aiosqlite
import anyio
import pytest

from scache.daemon import maintenance
from scache.daemon.auto_reset_event import AutoResetEvent
from scache.daemon.poller import Poller
from scache.errors import DatabaseError, DatabaseFault
from scache.model import Connection, Peer
from scache.store import (
    MEMORY,
    Binding,
    Database,
    Gone,
    LiveRows,
    batch,
    event_writer,
    ids,
    live_rows,
    migrations,
)
from scache.store.batch import Batch
from scache.store.files import APPLICATION_ID, Files
from scache.store.live_rows import Saved
from tests.support.clocks import HandClock
from tests.support.dialogue import DEADLINE
from tests.support.store_fixture import NOW, Opened, locked, no_space, read

LABELS = [b"", b"\n", b"two\nlines\n", b"\xff\xfe\x80", bytes(range(1, 256)), b"7" * 3000]


@pytest.fixture
def opened(database: str) -> Iterator[Opened]:
    """Open a new database of each kind."""
    with Opened(database) as opened:
        yield opened


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


def connection(row_id: int, endpoint: bytes = b"e", ttl: float = 60) -> Connection:
    """Return a row that was saved now."""
    return Connection(row_id, endpoint, b"p%d" % row_id, NOW, NOW + ttl, 1)


def binding(
    row_id: int, destination: bytes = b"d", endpoint: bytes = b"e", ttl: float = 60
) -> Binding:
    """Return a row that was saved now."""
    return Binding(row_id, destination, endpoint, b"q", NOW, NOW + ttl, 1)


class TestMigrations:
    def test_a_fresh_database_has_the_newest_version_and_our_mark(self, opened: Opened) -> None:
        """A new database ends at the last migration, marked as one of ours."""
        assert opened.rows("PRAGMA user_version") == [(migrations.migrations()[-1].version,)]
        assert opened.rows("PRAGMA application_id") == [(APPLICATION_ID,)]

    def test_a_fresh_database_has_the_public_tables_and_columns(self, opened: Opened) -> None:
        """The tables and columns that people write SQL against are there, by these names."""
        for table, columns in {
            "connection": "id endpoint properties saved_at expires_at client_id",
            "binding": "id destination endpoint properties saved_at expires_at client_id",
            "client": "id pid uid gid connected_at disconnected_at",
            "instance": "id started_at stopped_at version",
            "counter": "name value",
        }.items():
            found = {
                str(name, "ascii") for _, name, *_ in opened.rows(f"PRAGMA table_info({table})")
            }
            assert set(columns.split()) <= found

    def test_opening_again_changes_no_schema(self, file: Path) -> None:
        """A database that is up to date is opened as it is."""
        schemas = []
        for _ in range(2):
            with Opened(file) as opened:
                schemas.append(opened.rows("PRAGMA schema_version"))
        assert schemas[0] == schemas[1]

    def test_a_migration_and_its_record_share_one_transaction(self) -> None:
        """A migration that fails half-way leaves neither its tables nor its number."""
        known = [
            migrations.Migration(1, "CREATE TABLE one (x);"),
            migrations.Migration(2, "CREATE TABLE two (x); CREATE TABLE one (x);"),
        ]
        with closing(sqlite3.connect(MEMORY, isolation_level=None)) as connection:
            with pytest.raises(sqlite3.OperationalError):
                connection.executescript(migrations.pending_script(0, known))
            connection.rollback()
            assert connection.execute("PRAGMA user_version").fetchone() == (1,)
            tables = connection.execute("SELECT name FROM sqlite_schema").fetchall()
        assert tables == [("one",)]

    def test_only_what_is_pending_is_applied(self) -> None:
        """Migrations up to the version of a database are left alone."""
        known = [migrations.Migration(n, f"-- step {n}") for n in (1, 2, 3)]
        assert "step 2" not in migrations.pending_script(2, known)
        assert "step 3" in migrations.pending_script(2, known)
        assert migrations.pending_script(3, known) == ""

    def test_the_files_are_numbered_without_a_gap(self) -> None:
        """Every migration is found, each once, in order."""
        versions = [step.version for step in migrations.migrations()]
        assert versions == list(range(1, len(versions) + 1))
        assert versions

    @pytest.mark.parametrize("installed", [True, False])
    def test_the_files_are_found_in_a_package_and_in_a_checkout(
        self, installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An installed package carries its migrations inside; a checkout has them at the top."""
        (tmp_path / "migrations").mkdir()
        package = tmp_path / "scache"
        if installed:
            (package / "migrations").mkdir(parents=True)
        directory = (package if installed else tmp_path) / "migrations"
        (directory / "0001_first.sql").write_text("-- found")
        monkeypatch.setattr(migrations, "__file__", str(package / "store" / "migrations.py"))
        assert migrations.migrations.__wrapped__() == (migrations.Migration(1, "-- found"),)


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
}
"""Done once, before the daemon listens: these may read all of something."""


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_of_the_data_plane_scans_or_sorts(name: str, opened: Opened) -> None:
    """Every constant statement finds its rows, in order, through an index."""
    sql = STATEMENTS[name]
    numbered = set(re.findall(r"\?\d+", sql))
    parameters = [0] * (len(numbered) or sql.count("?"))
    plan = opened.database.batch.query(f"EXPLAIN QUERY PLAN {sql}", parameters)
    for step in (str(row[3], "utf-8") for row in plan):
        assert "TEMP B-TREE" not in step
        if name not in AT_THE_START:
            assert not step.startswith("SCAN") or step == "SCAN CONSTANT ROW"


def test_the_statements_are_all_looked_at() -> None:
    """The test above sees the statements: there are well over ten of them."""
    assert len(STATEMENTS) > 15
    assert set(STATEMENTS) > AT_THE_START


class TestLiveRows:
    @pytest.mark.parametrize("label", LABELS)
    def test_bytes_come_back_exact(self, label: bytes, opened: Opened) -> None:
        """Labels and properties are kept to the byte, in columns that people read as text."""
        rows = LiveRows(opened.database.batch)
        saved = Connection(1, label, label, NOW, NOW + 60, 1)
        rows.save_connection(saved)
        rows.save_binding(Binding(2, label, label, label, NOW, NOW + 60, 1))
        assert rows.oldest_of_endpoint(label, NOW) == saved
        assert rows.oldest_of_destination(label, NOW) == (saved, label, 2)
        assert rows.bindings_by_destination() == {label: 1}
        kinds = "SELECT typeof(endpoint), typeof(properties) FROM "
        assert opened.rows(kinds + "connection") == opened.rows(kinds + "binding")
        assert opened.rows(kinds + "connection") == [(b"text", b"text")]
        rows.take_connection(saved)
        rows.remove_binding(label, 2)
        assert (
            opened.rows("SELECT endpoint FROM connection UNION SELECT endpoint FROM binding") == []
        )

    @pytest.mark.parametrize("label", LABELS)
    def test_another_process_reads_the_same_bytes(self, label: bytes, file: Path) -> None:
        """What lies in the file is what was saved, to the byte."""
        with Opened(file) as opened:
            rows = LiveRows(opened.database.batch)
            rows.save_connection(Connection(1, label, label, NOW, NOW + 60, 1))
            assert opened.database.batch.commit()
            assert read(file, "SELECT endpoint, properties FROM connection") == [(label, label)]

    def test_labels_that_differ_in_one_byte_are_two(self, opened: Opened) -> None:
        """No label is folded, trimmed or taken for a number."""
        rows = LiveRows(opened.database.batch)
        labels = [b"a", b"A", b"a ", b"a\n", b"1", b"01", b"1.0", b"\xc3\xa9", b"e\xcc\x81", b""]
        for row_id, label in enumerate(labels, 1):
            rows.save_connection(connection(row_id, label))
        for row_id, label in enumerate(labels, 1):
            assert rows.oldest_of_endpoint(label, NOW) == connection(row_id, label)

    def test_saving_the_same_binding_again(self, opened: Opened) -> None:
        """The triple is refreshed in its place, and replaced if its time was over."""
        rows = LiveRows(opened.database.batch)
        assert rows.save_binding(binding(1)) == Saved(1, added=True)
        assert rows.save_binding(binding(2, ttl=5)) == Saved(1, added=False)
        assert opened.rows("SELECT id, expires_at FROM binding") == [(1, NOW + 5)]
        later = binding(3)._replace(saved_at=NOW + 5, expires_at=NOW + 9)
        gone = Gone(1, later.destination, later.endpoint, NOW)
        assert rows.save_binding(later) == Saved(3, added=False, replaced=gone)
        assert opened.rows("SELECT id, saved_at FROM binding") == [(3, NOW + 5)]

    def test_expired_bindings_come_in_order_and_in_slices(self, opened: Opened) -> None:
        """Expired bindings come the first to expire first, no more at once than asked for."""
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

    def test_the_oldest_clients_that_left_are_forgotten(
        self, opened: Opened, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Clients that are connected stay, and so many of those that left; the oldest go."""
        monkeypatch.setattr(live_rows, "MAX_DISCONNECTED_CLIENTS", 2)
        rows = LiveRows(opened.database.batch)
        for client_id in range(1, 7):
            rows.add_client(client_id, Peer(7, 8, 9), NOW)
        for client_id in (6, 2, 3, 4):
            rows.end_client(client_id, NOW + 1)
        found = opened.rows("SELECT id, disconnected_at FROM client ORDER BY id")
        assert found == [(1, None), (4, NOW + 1), (5, None), (6, NOW + 1)]


class TestBatch:
    def test_others_see_whole_batches(self, file: Path) -> None:
        """Nothing of a batch is visible outside until its commit, and then all of it is."""
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

    def test_a_locked_database_refuses_at_once_and_changes_nothing(self, file: Path) -> None:
        """While another program writes, saves and finds fail, and what happened anyway waits."""
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

    def test_a_commit_that_the_disk_refuses_loses_nothing(self, file: Path) -> None:
        """The batch stays true for us, is done again, and is there for others in the end."""
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

    def test_a_count_survives_a_statement_that_is_refused(self, file: Path) -> None:
        """A counter whose own statement fails keeps what it was to be raised by."""
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


class TestRuns:
    @pytest.mark.parametrize("crash", [True, False])
    @pytest.mark.parametrize("taken", [0, 3, ids.ID_RESERVE // 2 - 1, ids.ID_RESERVE + 7])
    def test_ids_never_come_back(self, taken: int, crash: bool, file: Path) -> None:
        """No run gives out an id that an earlier one may have given out, not even after a crash."""
        with Opened(file) as opened:
            sequence = opened.database.ids
            last = 0
            for _ in range(taken):
                last = sequence.take()
            assert opened.database.batch.commit()
            if not crash:
                opened.run(opened.database.stop(NOW))
        with Opened(file) as opened:
            assert opened.database.ids.take() > last

    def test_a_crash_loses_connections_and_keeps_bindings(self, file: Path) -> None:
        """The next run has no row of the dead one but the bindings that have not expired."""
        with Opened(file) as opened:
            rows = LiveRows(opened.database.batch)
            rows.save_connection(connection(1))
            for row_id, ttl in ((2, 5), (3, 60), (4, 1e9)):
                rows.save_binding(binding(row_id, b"d%d" % row_id, ttl=ttl))
            rows.add_client(5, Peer(7, 8, 9), NOW)
            assert opened.database.batch.commit()
        with Opened(file, now=NOW + 5, ttl_limit=100):
            assert read(file, "SELECT id FROM connection") == []
            found = read(file, "SELECT id, expires_at FROM binding ORDER BY id")
            assert found == [(3, NOW + 60), (4, NOW + 105)]
            assert read(file, "SELECT id, disconnected_at FROM client") == [(5, NOW + 5)]
            assert read(file, "SELECT value FROM counter WHERE name = 'connections_lost'") == [(1,)]
            stopped = "SELECT started_at, stopped_at, version FROM instance ORDER BY id"
            assert read(file, stopped) == [(NOW, None, b"1.2.3"), (NOW + 5, None, b"1.2.3")]

    def test_an_orderly_end_is_recorded(self, file: Path) -> None:
        """A run that stops leaves no connection, its end on record, and one file."""
        with Opened(file) as opened:
            rows = LiveRows(opened.database.batch)
            rows.save_connection(connection(1))
            rows.save_binding(binding(2))
            opened.run(opened.database.stop(NOW))
        assert [each.name for each in file.parent.iterdir()] == [file.name]
        assert read(file, "SELECT id FROM connection") == []
        assert read(file, "SELECT id FROM binding") == [(2,)]
        assert read(file, "SELECT stopped_at FROM instance") == [(NOW,)]

    def test_a_second_daemon_is_refused(self, file: Path) -> None:
        """A file that a run has open is not opened by another one."""
        with Opened(file):
            with pytest.raises(DatabaseError, match="another scache daemon uses"), Opened(file):
                pass
            assert read(file, "SELECT count(*) FROM instance") == [(1,)]

    def test_clients_that_come_and_go_during_a_fault_pile_up_nothing(self, file: Path) -> None:
        """While the disk is full, clients that connect and leave leave nothing to be done later."""
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

    def test_a_connection_taken_and_put_back_during_a_fault_piles_up_nothing(
        self, file: Path
    ) -> None:
        """While the disk is full, what is found and put back again and again is kept once."""
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


def test_the_log_starts_over_under_steady_load(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write-ahead log stays near its limit though a batch is always under way."""
    limit = 64 * 4096
    monkeypatch.setattr("scache.store.checkpoint.WAL_LIMIT", limit)
    monkeypatch.setattr(maintenance, "CHECKPOINT_INTERVAL", 0)

    async def load(opened: Opened) -> list[int]:
        poller = Poller(asyncio.get_running_loop())
        committed = AutoResetEvent()
        rows, sizes = LiveRows(opened.database.batch), []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(maintenance.checkpoint, opened.database, poller, committed)
            for row_id in range(1, 100_000):
                rows.save_connection(connection(row_id)._replace(properties=b"x" * 16_384))
                rows.remove_connection(b"e", row_id)
                if opened.database.batch.commit():
                    committed.set()
                sizes.append(Path(f"{file}-wal").stat().st_size)  # noqa: ASYNC240 - no disk to wait for
                if row_id > 1000 and sizes[-1] < max(sizes):
                    break
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
        poller.close()
        return sizes

    with Opened(file) as opened:
        sizes = opened.run(load(opened))
    assert max(sizes) > limit
    assert any(later < earlier for earlier, later in pairwise(sizes))


def test_what_was_written_before_the_committing_began_is_committed(file: Path) -> None:
    """A batch that is under way when the daemon's tasks start is committed like any other."""

    async def run_until_committed(database: Database) -> None:
        committed = AutoResetEvent()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(maintenance.commit, database, committed)
            await committed.wait(at_most=DEADLINE)
            tasks.cancel_scope.cancel()

    with Opened(file) as opened:
        LiveRows(opened.database.batch).save_connection(connection(1))
        opened.run(run_until_committed(opened.database))
        assert read(file, "SELECT id FROM connection") == [(1,)]


def test_held_still_waits_for_what_nobody_waits_for_any_more(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that was given up on has ended before the database is held still."""
    go_on, ended = Event(), Event()
    control: list[aiosqlite.Connection] = []
    connect = aiosqlite.connect

    def note(*arguments: Any, **named: Any) -> aiosqlite.Connection:  # noqa: ANN401 - aiosqlite's
        control.append(connect(*arguments, **named))
        return control[-1]

    monkeypatch.setattr(aiosqlite, "connect", note)

    def work() -> None:
        go_on.wait(DEADLINE)
        ended.set()

    async def hold(database: Database) -> bool:
        await control[-1].create_function("slow", 0, work)
        async with database.control_lock:
            with anyio.move_on_after(0.05):
                await control[-1].execute_fetchall("SELECT slow()")
        assert not ended.is_set()
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        async with database.held_still():
            return ended.is_set()

    with Opened(file) as opened:
        assert opened.run(hold(opened.database))


def test_a_file_that_is_made_anew_stays_though_the_daemon_stops(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Being asked to stop in the middle of it costs nothing of what is to last."""
    give_way = Files.give_way_to

    async def renew(database: Database) -> None:
        with anyio.CancelScope() as scope:

            def and_stop(files: Files, successor: str) -> None:
                give_way(files, successor)
                scope.cancel()

            monkeypatch.setattr(Files, "give_way_to", and_stop)
            await database.renew()

    with Opened(file) as opened:
        rows = LiveRows(opened.database.batch)
        rows.save_binding(binding(1))
        file.unlink()
        opened.run(renew(opened.database))
        assert opened.database.fault is None
        opened.run(opened.database.stop(NOW))
    assert read(file, "SELECT id FROM binding") == [(1,)]
