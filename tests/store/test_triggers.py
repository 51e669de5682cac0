"""Triggers and unique indexes that an administrator added, and that refuse writes."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import product
from pathlib import Path

import pytest

from scache import Client
from scache.cli.main import execute
from scache.errors import EXIT_DATABASE, EXIT_FINDINGS, DatabaseError, DatabaseFault
from scache.model import Peer
from scache.store import faults
from scache.store.live_rows import LiveRows
from scache.store.serialized import complete, load
from tests.support.daemon import Daemon
from tests.support.dialogue import eventually
from tests.support.starting import refused
from tests.support.store_fixture import NOW, Opened, binding, connection, read

RAISES = ["ABORT", "FAIL", "IGNORE", "ROLLBACK"]
MOMENTS = ["BEFORE", "AFTER"]
EVERY_REFUSAL = pytest.mark.parametrize(("raises", "moment"), list(product(RAISES, MOMENTS)))


def change(file: Path, *statements: str) -> None:
    """Execute statements in the file, as an administrator does."""
    with closing(sqlite3.connect(file, isolation_level=None, timeout=20)) as administrator:
        for sql in statements:
            administrator.execute(sql)


def trigger(raises: str, moment: str, action: str, condition: str = "") -> str:
    """Return the statement that creates the trigger ``guard``, which refuses an action."""
    raising = raises if raises == "IGNORE" else f"{raises}, 'not today'"
    when = f"WHEN {condition}" if condition else ""
    return f"CREATE TRIGGER guard {moment} {action} {when} BEGIN SELECT RAISE({raising}); END"


@contextmanager
def opening(file: Path) -> Iterator[Opened]:
    """Open a file with connection 1, binding 2 and client 3, which are committed."""
    with Opened(file) as opened:
        rows = LiveRows(opened.database.batch)
        rows.save_connection(connection(1))
        rows.save_binding(binding(2))
        rows.add_client(3, Peer(7, 8, 9), NOW)
        assert opened.database.batch.commit()
        yield opened


@pytest.fixture
def opened(file: Path) -> Iterator[Opened]:
    """Open a file with three rows."""
    with opening(file) as opened:
        yield opened


@pytest.fixture
def crashed(file: Path) -> Path:
    """Return the file of a run that crashed and had three rows."""
    with opening(file):
        return file


@pytest.fixture
def rows(opened: Opened) -> LiveRows:
    """Return the live rows of the open file."""
    return LiveRows(opened.database.batch)


REQUESTS: dict[str, tuple[str, Callable[[LiveRows], object]]] = {
    "save": ("INSERT ON connection", lambda rows: rows.save_connection(connection(9))),
    "take": ("DELETE ON connection", lambda rows: rows.take_connection(connection(1))),
    "bind": ("INSERT ON binding", lambda rows: rows.save_binding(binding(9, b"other"))),
    "refresh": ("UPDATE ON binding", lambda rows: rows.save_binding(binding(9))),
    "unbind": ("DELETE ON binding", lambda rows: rows.remove_binding(b"d", 2)),
}
"""By the name of a request: the action that a trigger refuses, and the write."""

LIVE = (
    "SELECT id FROM connection UNION ALL SELECT id FROM binding UNION ALL SELECT id FROM client "
    "ORDER BY id"
)


class TestRequest:
    @pytest.mark.parametrize("request_name", REQUESTS)
    @EVERY_REFUSAL
    def test_refused_write_changes_nothing(
        self,
        opened: Opened,
        rows: LiveRows,
        file: Path,
        raises: str,
        moment: str,
        request_name: str,
    ) -> None:
        """No part of it stays, and the writes before and after it are not lost."""
        action, write = REQUESTS[request_name]
        batch = opened.database.batch
        change(file, trigger(raises, moment, action))
        rows.add_client(4, Peer(7, 8, 9), NOW)
        if (raises, moment) == ("IGNORE", "AFTER"):  # too late to refuse the write
            write(rows)
            assert batch.fault is None
            return
        with pytest.raises(DatabaseFault, match=r"trigger guard on (connection|binding)"):
            write(rows)
        rows.add_client(5, Peer(7, 8, 9), NOW)
        assert opened.rows(LIVE) == [(1,), (2,), (3,), (4,), (5,)]
        assert batch.commit()
        assert batch.fault is not None
        assert read(file, LIVE) == [(1,), (2,), (3,), (4,), (5,)]
        assert read(file, "SELECT expires_at FROM binding") == [(NOW + 60,)]

    @pytest.mark.parametrize("request_name", REQUESTS)
    @pytest.mark.parametrize("raises", RAISES)
    def test_fault_ends_when_the_write_succeeds(
        self, opened: Opened, rows: LiveRows, file: Path, raises: str, request_name: str
    ) -> None:
        """Other writes and commits that succeed do not end it."""
        action, write = REQUESTS[request_name]
        batch = opened.database.batch
        change(file, trigger(raises, "BEFORE", action))
        for row_id in (4, 5):
            with pytest.raises(DatabaseFault):
                write(rows)
            rows.add_client(row_id, Peer(7, 8, 9), NOW)
            assert batch.commit()
            assert batch.fault is not None
            assert "guard" in batch.fault
        change(file, "DROP TRIGGER guard")
        write(rows)
        assert batch.commit()
        assert batch.fault is None

    @pytest.mark.parametrize(
        ("index", "write", "message"),
        [
            ("connection (client_id)", REQUESTS["save"][1], "index one on connection: UNIQUE"),
            ("connection (endpoint || '')", REQUESTS["save"][1], "index one on connection: UNIQUE"),
            ("binding (endpoint)", REQUESTS["bind"][1], "index one on binding: UNIQUE"),
        ],
    )
    def test_unique_index_refuses_a_row(
        self,
        opened: Opened,
        rows: LiveRows,
        file: Path,
        index: str,
        write: Callable[[LiveRows], object],
        message: str,
    ) -> None:
        """The fault names the index, which refuses no other row."""
        change(file, f"CREATE UNIQUE INDEX one ON {index}")
        with pytest.raises(DatabaseFault, match=message):
            write(rows)
        rows.add_client(4, Peer(7, 8, 9), NOW)
        assert opened.database.batch.commit()
        assert read(file, LIVE) == [(1,), (2,), (3,), (4,)]

    @pytest.mark.parametrize("raises", RAISES)
    def test_refused_client_is_counted(
        self, opened: Opened, rows: LiveRows, file: Path, raises: str
    ) -> None:
        """Neither the client nor its disconnection is recorded."""
        change(file, trigger(raises, "BEFORE", "INSERT ON client"))
        rows.add_client(4, Peer(7, 8, 9), NOW)
        rows.end_client(4, NOW)
        assert opened.database.batch.commit()
        assert read(file, LIVE) == [(1,), (2,), (3,)]
        counted = "SELECT value FROM counter WHERE name = 'clients_not_recorded'"
        assert read(file, counted) == [(1,)]

    def test_fault_names_a_broken_trigger(self, opened: Opened, rows: LiveRows, file: Path) -> None:
        """A trigger that calls a function of another program fails with each row."""
        change(file, "CREATE TRIGGER guard AFTER INSERT ON connection BEGIN SELECT notify(1); END")
        with pytest.raises(DatabaseFault, match="trigger guard on connection: no such function"):
            rows.save_connection(connection(9))
        change(file, "DROP TRIGGER guard")
        assert rows.oldest_of_endpoint(b"absent", NOW) is None  # SQLite reads the schema again
        rows.save_connection(connection(9))
        assert opened.database.batch.commit()
        assert opened.database.fault is None


class TestLog:
    def test_intermittent_refusals_are_logged_once(
        self,
        opened: Opened,
        rows: LiveRows,
        file: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The end of the fault is logged when no row was refused for REFUSAL_PAUSE seconds."""
        batch = opened.database.batch
        change(file, trigger("ABORT", "BEFORE", "INSERT ON connection", "new.id % 2"))
        caplog.clear()
        for row_id in range(10, 30):
            try:
                rows.save_connection(connection(row_id))
            except DatabaseFault:
                assert row_id % 2
            assert batch.commit()
        assert "trigger guard on connection: not today" in str(batch.fault)
        rows.save_connection(connection(30))
        assert batch.commit()
        assert batch.fault is None
        messages = [record.getMessage().split(" (")[0] for record in caplog.records]
        assert messages == ["the database cannot be written now"]
        due: list[int] = []
        batch.on_pending = lambda: due.append(1)
        assert batch.commit()
        assert due == [1]
        monkeypatch.setattr(faults, "REFUSAL_PAUSE", 0)
        assert batch.commit()
        assert caplog.messages[1:] == ["the database can be written again; nothing was lost"]
        assert batch.commit()
        assert due == [1]

    @pytest.mark.parametrize("action", ["INSERT ON event", "INSERT ON counter"])
    @EVERY_REFUSAL
    def test_refused_event_or_counter_delays_the_batch(
        self,
        opened: Opened,
        rows: LiveRows,
        file: Path,
        raises: str,
        moment: str,
        action: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Saves are refused, finds succeed, and other programs see whole batches."""
        if raises == "IGNORE" and (moment, action) != ("BEFORE", "INSERT ON counter"):
            return  # it refuses nothing, or an event, which an administrator may leave out
        batch = opened.database.batch
        change(file, trigger(raises, moment, action))
        caplog.clear()
        rows.save_connection(connection(9))
        opened.database.audit_log.connection_saved(connection(9), 5)
        for _ in range(10):
            assert not batch.commit()
            change(file, "UPDATE client SET pid = pid + 1")  # the lock is free
            with pytest.raises(DatabaseFault, match=r"trigger guard on (event|counter): "):
                rows.save_connection(connection(10))
            assert read(file, "SELECT id FROM connection") == [(1,)]
        rows.take_connection(connection(1))
        assert opened.rows("SELECT id FROM connection") == [(9,)]
        assert not batch.commit()
        assert len(caplog.records) == 1
        change(file, "DROP TRIGGER guard")
        assert batch.commit()
        assert batch.fault is None
        rows.save_connection(connection(10))
        assert batch.commit()
        assert read(file, "SELECT id FROM connection") == [(9,), (10,)]
        assert read(file, "SELECT connection_id FROM event") == [(9,)]
        counted = "SELECT value FROM counter WHERE name = 'save_endp_ok'"
        assert read(file, counted) == [(1,)]

    def test_ignored_events_are_counted_as_dropped(self, opened: Opened, file: Path) -> None:
        """The counter tells `check` that a trigger keeps events out of the audit log."""
        batch, audit_log = opened.database.batch, opened.database.audit_log
        change(file, trigger("IGNORE", "BEFORE", "INSERT ON event", "new.kind = 'unknown'"))
        audit_log.request_malformed("unknown", 1)
        audit_log.snapshot_taken(1)
        audit_log.request_malformed("unknown", 1)
        assert batch.commit()
        assert batch.fault is None
        assert read(file, "SELECT kind FROM event") == [(b"snapshot",)]
        dropped = "SELECT value FROM counter WHERE name = 'events_dropped'"
        assert read(file, dropped) == [(2,)]


def test_lasting_refusal_is_logged_once(path: Path, file: Path) -> None:
    """A trigger on the audit log refuses each commit until it is dropped; saves are answered."""
    with Daemon(path, database=file) as daemon, Client(path) as client:
        change(file, trigger("ABORT", "BEFORE", "INSERT ON event"))
        eventually(lambda: not client.save_endp(60, "e", "p", 0))
        for _ in range(200):
            assert not client.save_endp(60, "e", "p", 0)
            assert not client.save_dest(60, "d", "q", "e")
        assert len(daemon.log()) == 2
        assert "the database cannot be written now (trigger guard on event" in daemon.log()[1]
        assert execute(["check", "--socket", str(path)]) == EXIT_FINDINGS
        change(file, "DROP TRIGGER guard")
        eventually(lambda: client.save_endp(60, "e", "p", 0))
        daemon.wait_for_log("the database can be written again; nothing was lost")
        assert len(daemon.log()) == 3
        assert daemon.terminate() == 0
    with Daemon(path, database=file) as daemon:
        assert len(daemon.log()) == 1
        assert execute(["check", "--socket", str(path)]) == 0


AT_THE_START = [
    "INSERT ON event",
    "DELETE ON connection",
    "UPDATE ON counter",
    "UPDATE ON client",
    "DELETE ON setting",
    "INSERT ON setting",
    "INSERT ON instance",
]
"""Writes at the start on the file of a daemon that crashed."""


class TestStart:
    @pytest.mark.parametrize("action", AT_THE_START)
    @pytest.mark.parametrize("moment", MOMENTS)
    @pytest.mark.parametrize("raises", ["ABORT", "FAIL", "ROLLBACK"])
    def test_error_names_the_trigger_that_refuses(
        self, crashed: Path, raises: str, moment: str, action: str
    ) -> None:
        """The error says which trigger to drop, also if there are several."""
        harmless = "CREATE TRIGGER harmless AFTER INSERT ON event BEGIN SELECT 1; END"
        change(crashed, harmless, trigger(raises, moment, action))
        table = action.split()[-1]
        with pytest.raises(DatabaseError) as failure, Opened(crashed, now=NOW + 1):
            pass
        assert str(failure.value) == (
            f"the database {crashed} refuses what the daemon writes at its start, because of "
            f"trigger guard on {table} (not today): drop that, and start again"
        )
        change(crashed, "DROP TRIGGER guard")
        with Opened(crashed, now=NOW + 1):
            assert read(crashed, "SELECT count(*) FROM connection") == [(0,)]

    @pytest.mark.parametrize(
        "action", ["DELETE ON connection", "DELETE ON binding", "INSERT ON instance"]
    )
    def test_error_names_the_trigger_that_ignores(self, crashed: Path, action: str) -> None:
        """The daemon does not start, because rows of the earlier run would remain."""
        change(crashed, trigger("IGNORE", "BEFORE", action))
        match = f"because of trigger guard on {action.split()[-1]} "
        with pytest.raises(DatabaseError, match=match), Opened(crashed, now=NOW + 100):
            pass

    @pytest.mark.parametrize("index", ["instance (version)", "event (kind)"])
    def test_error_names_the_unique_index_that_refuses(self, file: Path, index: str) -> None:
        """The daemon writes to these tables at each start."""
        with Opened(file) as opened:
            rows = LiveRows(opened.database.batch)
            rows.save_connection(connection(1))
            rows.save_connection(connection(2))
            assert opened.database.batch.commit()
        change(file, f"CREATE UNIQUE INDEX one ON {index}")
        match = f"because of index one on {index.split()[0]} "
        with pytest.raises(DatabaseError, match=match), Opened(file, now=NOW + 1):
            pass

    def test_daemon_reports_a_refusing_trigger_in_one_line(self, path: Path, file: Path) -> None:
        """The daemon exits with EXIT_DATABASE."""
        with Opened(file):
            pass
        change(file, trigger("ABORT", "BEFORE", "INSERT ON instance"))
        line = refused(path, file, EXIT_DATABASE)
        assert "trigger guard on instance (not today): drop that" in line

    def test_additions_are_logged_in_one_warning(
        self, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The warning names all but the index that is not unique, because that refuses nothing."""
        with Opened(file):
            pass
        assert not caplog.records
        change(
            file,
            "CREATE TRIGGER copy AFTER INSERT ON event BEGIN SELECT 1; END",
            trigger("ABORT", "BEFORE", "DELETE ON event"),
            "CREATE UNIQUE INDEX one ON client (connected_at, pid)",
            "CREATE INDEX quick ON event (at)",
        )
        with Opened(file), caplog.at_level(logging.WARNING):
            (message,) = caplog.messages
        assert message == (
            f"the database {file} has what scache did not make: trigger copy on event, trigger "
            "guard on event, index one on client; what that refuses will fail"
        )

    def test_refused_end_of_a_run_is_logged(
        self, opened: Opened, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The warning names the trigger."""
        change(file, trigger("ABORT", "BEFORE", "UPDATE ON instance"))
        opened.run(opened.database.stop(NOW + 1))
        culprit = "trigger guard on instance: not today"
        assert caplog.messages == [f"cannot record the end of this run in the database: {culprit}"]


@pytest.mark.parametrize(
    "addition",
    [
        trigger("ABORT", "BEFORE", "INSERT ON descriptor"),
        trigger("ROLLBACK", "AFTER", "INSERT ON setting"),
        trigger("FAIL", "AFTER", "INSERT ON connection"),
        "CREATE UNIQUE INDEX guard ON descriptor (kind)",
        "CREATE UNIQUE INDEX guard ON setting (value) WHERE name IN ('clients_served', 'max_idle')",
    ],
)
def test_additions_do_not_refuse_a_snapshot(
    path: Path, file: Path, addition: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The image has the rows that only the daemon can add, and `check` reports the addition."""
    options = ("--max-idle", "1")  # which is the number of clients as well
    with Daemon(path, *options, database=file), Client(path) as client:
        for endpoint in ("a", "b"):
            assert client.save_endp(60, endpoint, "p", 0)
        change(file, addition)
        assert execute(["check", "--socket", str(path), "--format", "jsonl"]) == EXIT_FINDINGS
    rows = map(json.loads, capsys.readouterr().out.splitlines())
    (schema,) = (row["detail"] for row in rows if row["check"] == "schema")
    assert schema.endswith("guard is not ours")


def test_image_keeps_a_trigger_with_a_quoted_name(file: Path) -> None:
    """The text of the trigger does not change."""
    sql = 'CREATE TRIGGER "a ""b""" AFTER INSERT ON setting BEGIN SELECT RAISE(ABORT, \'\'); END'
    with Opened(file) as opened:
        change(file, sql)
        data = opened.database.batch.serialize()
    with closing(load(data)) as copy:
        image = complete(copy, [], [], {"a": "b"})
    with closing(load(image)) as copy:
        assert copy.execute("SELECT sql FROM sqlite_schema WHERE type = 'trigger'").fetchall() == [
            (sql,)
        ]
        assert copy.execute("SELECT value FROM setting WHERE name = 'a'").fetchall() == [("b",)]
