"""``scache check``: changes that break each rule, and rules that an image cannot decide."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scache import Client
from scache.cli.main import execute
from scache.errors import EXIT_DATABASE, EXIT_FINDINGS, EXIT_OK, EXIT_SOCKET
from scache.inspection.checks import CHECKS, SHOWN, check
from scache.inspection.image import Image
from scache.model import Peer, Status
from tests.support.daemon import Daemon
from tests.support.database_files import overwrite_the_middle
from tests.support.peer import Parked, take
from tests.support.rig import rigged
from tests.support.sample_database import NOW, Cached, filling
from tests.support.wire import Wire

Capture = pytest.CaptureFixture[str]

Break = Callable[[Cached], None]


def fill(cached: Cached) -> None:
    """Fill a live cache that breaks no rule, with its whole audit log."""
    cached.instance(last_id=1_000_000)
    cached.client(1, program=b"smtp")
    cached.client(2, disconnected_at=NOW + 5)
    cached.setting(audit_rows="1000", ttl_limit="300", exchange_timeout="5")
    for row_id in range(10, 16):
        cached.event("save_endp", 0, connection_id=row_id, client_id=1, endpoint=b"e", ttl=60)
    cached.connection(10)
    cached.descriptor(10, 20)
    cached.connection(11)
    cached.descriptor(11, 21)
    cached.event("find_endp", 0, connection_id=12, client_id=2, endpoint=b"e", age=1)
    cached.event("put_back", connection_id=12, client_id=2, endpoint=b"e", age=1)
    cached.event("find_dest", 0, connection_id=12, binding_id=30, client_id=2, age=2)
    cached.event("found", connection_id=12, client_id=2, endpoint=b"e", age=2)
    for row_id, way in ((13, "expired"), (14, "lost"), (15, "purged")):
        cached.event(way, connection_id=row_id, endpoint=b"e")
    for row_id in (30, 30, 31):
        cached.event("save_dest", 0, binding_id=row_id, client_id=1, endpoint=b"e", ttl=60)
    cached.binding(30, b"d", b"e")
    cached.event("expired", binding_id=31, destination=b"d", endpoint=b"e")
    cached.count(save_endp_ok=6, find_endp_ok=1, find_dest_ok=1, save_dest_ok=3)
    cached.count(connections_found=1, connections_expired=1, connections_lost=1)
    cached.count(connections_purged=1, bindings_expired=1, clients_connected=2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Make a file that breaks no rule."""
    path = tmp_path / "cache.db"
    with filling(path) as cached:
        fill(cached)
    return path


def results(file: Path, *, live: bool = True) -> dict[str, tuple[str, int | None, str]]:
    """Return the result, the number of findings and the detail of each rule."""
    with Image.from_file(file, sound=False) as image:
        report = check(image, live=live)
    found: dict[str, Any] = {}
    for name, result, count, detail in report.result.rows:
        assert isinstance(name, bytes)
        assert isinstance(result, bytes)
        assert isinstance(detail, bytes)
        found[name.decode()] = result.decode(), count, detail.decode()
    assert report.broken == sum(result == "wrong" for result, _, _ in found.values())
    return found


def test_check_of_a_sound_cache_has_no_findings(file: Path) -> None:
    """No rule has a finding."""
    found = results(file)
    assert set(found) == {each.name for each in CHECKS} | {"schema"}
    assert {name: each for name, each in found.items() if each != ("ok", 0, "")} == {}


def run(sql: str) -> Break:
    """Return a function that executes a statement."""
    return lambda cached: cached.run(sql)


BROKEN: list[tuple[str, Break, str]] = [
    ("fault", lambda c: c.setting(database_fault="it is full"), "has a fault: it is full"),
    ("schema", run("CREATE TABLE mine (x)"), "table mine is not ours"),
    ("schema", run("DROP VIEW lifetime"), "view lifetime is not there"),
    ("schema", run("ALTER TABLE event ADD COLUMN x TEXT"), "table event is another"),
    ("connections without a descriptor", run("DELETE FROM descriptor"), ": 10; 11$"),
    ("descriptors without a connection", lambda c: c.descriptor(15, 22), ": 15$"),
    ("descriptors", run("UPDATE descriptor SET kind = 'closed' WHERE fd = 21"), "descriptor 21$"),
    ("descriptors", run("UPDATE descriptor SET fd = 21"), "connection 10, .*connection 11, "),
    (
        "connections gone without a way out",
        run("DELETE FROM event WHERE kind IN ('found', 'lost')"),
        ": 12; 14$",
    ),
    (
        "connections with two ways out",
        lambda c: c.event("hung_up", connection_id=13),
        "more than once: 13$",
    ),
    ("connections both here and gone", lambda c: c.event("found", connection_id=10), ": 10$"),
    (
        "connections without a save",
        run("UPDATE event SET status = 2 WHERE connection_id IN (10, 11) AND kind = 'save_endp'"),
        ": 10; 11$",
    ),
    (
        "bindings gone without a way out",
        run("DELETE FROM event WHERE kind = 'expired' AND connection_id IS NULL"),
        ": 31$",
    ),
    ("bindings with two ways out", lambda c: c.event("purged", binding_id=31), ": 31$"),
    ("bindings both here and gone", lambda c: c.event("purged", binding_id=30), ": 30$"),
    (
        "counters below the audit log",
        lambda c: c.count(save_endp_ok=5, connections_found=0),
        "connections_found is 0, with 1 events; save_endp_ok is 5, with 6 events$",
    ),
    (
        "counters below the audit log",
        run("DELETE FROM counter WHERE name = 'bindings_expired'"),
        "bindings_expired is 0, with 1 events$",
    ),
    (
        "counters above the audit log",
        lambda c: c.count(save_endp_ok=7, find_dest_bad=1),
        "find_dest_bad is 1, with 0 events; save_endp_ok is 7, with 6 events$",
    ),
    ("ids used twice", lambda c: c.binding(10, b"x", b"y"), r"10 \(binding, connection\)$"),
    ("ids used twice", lambda c: c.connection(10, b"other"), r": 10 \(connections\)$"),
    ("ids used twice", lambda c: c.event("unknown", 1, client_id=12), r"12 \(client, conn"),
    ("ids never given out", lambda c: c.client(1_000_001), ": client 1000001$"),
    ("ids never given out", run("DELETE FROM instance"), r"client 1; client 2; connection 10; \.+"),
    ("times", lambda c: c.connection(50, expires_at=NOW - 1), ": connection 50$"),
    ("times", lambda c: c.connection(50, expires_at=NOW + 300.1), ": connection 50$"),
    ("times", lambda c: c.binding(50, b"x", b"e", expires_at=NOW - 1), ": binding 50$"),
    ("times", lambda c: c.event("save_dest", 0, ttl=-1, binding_id=30), "event 1"),
    (
        "overdue",
        lambda c: c.client(16, connected_at=NOW + 71),
        ": connection 10; .*; binding 30$",
    ),
    ("clients", lambda c: c.connection(50, client_id=3), r"connection 50 \(client 3\)$"),
    ("clients", lambda c: c.event("unknown", 1, client_id=3), r"event \d+ \(client 3\)$"),
]


@pytest.mark.parametrize(("name", "spoil", "detail"), BROKEN)
def test_check_reports_each_broken_rule(name: str, spoil: Break, detail: str, file: Path) -> None:
    """The rule reports the change, and its detail says where it is."""
    with filling(file) as cached:
        spoil(cached)
    result, count, text = results(file)[name]
    assert result == "wrong"
    assert count
    assert re.search(detail, text), text


def test_every_rule_has_been_broken() -> None:
    """Only the rule ``integrity`` is not in the list above; it has its own test."""
    assert {name for name, _, _ in BROKEN} | {"integrity"} == {each.name for each in CHECKS} | {
        "schema"
    }


def test_check_names_the_first_findings_and_counts_all(file: Path) -> None:
    """The detail names the first findings, and the number counts all of them."""
    with filling(file) as cached:
        for row_id in range(100, 200):
            cached.descriptor(row_id, row_id)
    _, count, text = results(file)["descriptors without a connection"]
    assert count == 100
    assert text.endswith(": 100; 101; 102; ...")
    assert SHOWN == 3


def damage_an_index(file: Path) -> None:
    """Make an index that lacks a row, which quick_check does not detect."""
    with filling(file) as cached:
        cached.run("PRAGMA writable_schema = ON")
        cached.run(
            "UPDATE sqlite_schema SET sql = 'CREATE INDEX client_disconnected ON client (id) "
            "WHERE disconnected_at IS NULL' WHERE name = 'client_disconnected'"
        )


@pytest.mark.parametrize("spoil", [damage_an_index, overwrite_the_middle])
def test_check_reports_a_damaged_file(
    spoil: Callable[[Path], None], file: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The rule ``integrity`` reports the damage, and the other rules are still checked."""
    damaged = file if spoil is damage_an_index else tmp_path / "other.db"
    spoil(damaged)
    result, count, _ = results(damaged, live=False)["integrity"]
    assert (result, bool(count)) == ("wrong", True)
    assert execute(["check", "--database", str(damaged)]) == EXIT_FINDINGS
    assert "something wrong in the database" in capsys.readouterr().err


CANNOT_TELL: list[tuple[Break, list[str]]] = [
    (
        run("DELETE FROM event WHERE id <= 6"),
        ["counters above the audit log", "connections without a save"],
    ),
    (
        lambda c: c.count(events_dropped=3),
        ["connections gone without a way out", "bindings gone without a way out"],
    ),
    (
        lambda c: c.count(runs_not_recorded=1),
        ["counters above the audit log", "bindings gone without a way out"],
    ),
    (
        lambda c: c.setting(database_fault="it is full"),
        ["connections without a descriptor", "connections both here and gone", "overdue"],
    ),
]


@pytest.mark.parametrize(("limit", "names"), CANNOT_TELL)
def test_rule_that_the_image_cannot_decide_is_skipped(
    limit: Break, names: list[str], file: Path
) -> None:
    """The audit log or the database of the image is incomplete."""
    with filling(file) as cached:
        limit(cached)
    found = results(file)
    for name in names:
        assert found[name] == ("skipped", 0, "the image cannot tell")


def test_rules_about_descriptors_are_skipped_for_the_file_of_a_running_daemon(file: Path) -> None:
    """A file has neither descriptors nor connections that are being delivered."""
    with filling(file) as cached:
        cached.run("DELETE FROM descriptor")
        cached.run("DELETE FROM connection WHERE id = 10")
    found = results(file, live=False)
    assert found["connections without a descriptor"][0] == "skipped"
    assert found["connections gone without a way out"][0] == "skipped"
    with filling(file) as cached:
        cached.run(f"UPDATE instance SET stopped_at = {NOW + 9}")
    found = results(file, live=False)
    assert found["connections gone without a way out"][:2] == ("wrong", 1)


def test_client_that_was_not_recorded_is_no_finding(file: Path) -> None:
    """A client that connected during a fault has no row."""
    with filling(file) as cached:
        cached.connection(50, client_id=3)
        cached.count(clients_not_recorded=1)
    assert results(file)["clients"][0] == "ok"


def test_clock_set_back_between_two_runs_is_no_finding(tmp_path: Path) -> None:
    """Rows of the earlier run are in the future; an overdue client is still found."""
    file, peer = tmp_path / "cache.db", Peer(1, 2, 3)
    with rigged(file) as rig:
        client = rig.cache.client_connected(peer)
        assert rig.cache.save_dest(60, b"d", b"q", b"e", client) is Status.OK
        assert rig.batch.commit()
    with rigged(file, now=NOW - 1000) as rig:
        client = rig.cache.client_connected(peer)
        descriptor = rig.descriptors.new()
        assert rig.cache.save_endp(5, b"e", b"p", descriptor, client) is Status.OK
        assert rig.batch.commit()
    with filling(file) as cached:
        cached.setting(exchange_timeout="5")
    found = results(file)
    assert (found["times"], found["overdue"]) == (("ok", 0, ""), ("ok", 0, ""))
    with filling(file) as cached:
        cached.client(client + 1, connected_at=NOW - 900)
    assert results(file)["overdue"][:2] == ("wrong", 1)


@pytest.mark.parametrize("layout", ["table", "json", "jsonl", "csv"])
def test_check_prints_a_line_for_each_rule(layout: str, file: Path, capsys: Capture) -> None:
    """The exit code is 0 without findings, and 6 with findings."""
    command = ["check", "--database", str(file), "--format", layout]
    assert execute(command) == EXIT_OK
    output = capsys.readouterr()
    assert output.err == ""
    assert "overdue" in output.out
    if layout == "json":
        assert len(json.loads(output.out)) == len(CHECKS) + 1
    summary = re.compile(rf"\d+ rules hold(, \d+ (was|were) skipped)?: database {file}")
    assert (summary.fullmatch(output.out.splitlines()[-1]) is not None) == (layout == "table")
    with filling(file) as cached:
        cached.client(1_000_001)
    assert execute(command) == EXIT_FINDINGS
    output = capsys.readouterr()
    assert "client 1000001" in output.out
    last = output.out.splitlines()[-1]
    assert (", 1 is broken" in last) == (layout == "table")
    assert output.err == (f"scache: 1 check found something wrong in the database {file}\n")


def test_check_without_daemon_or_file_fails(tmp_path: Path, capsys: Capture) -> None:
    """The exit codes are those of other commands."""
    assert execute(["check", "--socket", str(tmp_path / "none")]) == EXIT_SOCKET
    assert execute(["check", "--database", str(tmp_path / "none")]) == EXIT_DATABASE
    capsys.readouterr()


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_check_of_a_busy_daemon_has_no_findings(
    kind: str, path: Path, tmp_path: Path, capsys: Capture
) -> None:
    """There were saves, finds, misses, expiry, purges, malformed requests and a crash."""
    database = str(tmp_path / "cache.db") if kind == "file" else ":memory:"
    for crash in (True, False):
        with Daemon(path, database=database) as daemon, Client(path) as client:
            exercise(client, path)
            assert execute(["check", "--socket", str(path)]) == EXIT_OK, capsys.readouterr().out
            rows = json.loads(capsys.readouterr().out)
            skipped = {row["check"] for row in rows if row["result"] != "ok"}
            assert skipped == set()
            if crash:
                daemon.kill()
            else:
                assert daemon.terminate() == 0
        if kind == "file":
            assert execute(["check", "--database", database]) == EXIT_OK, capsys.readouterr().out
            capsys.readouterr()


def exercise(client: Client, path: Path) -> None:
    """Make requests of each kind."""
    parked = [Parked(client, 60, f"e{number}") for number in range(6)]
    short = Parked(client, 1, "short")
    for number in range(3):
        assert client.save_dest(60, f"d{number}", "q", f"e{number}")
        assert client.save_dest(30, f"d{number}", "q", f"e{number}")
    assert client.save_dest(1, "brief", "q", "e")
    take(client.find_endp("e0"), parked[0])
    take(client.find_dest("d1"), parked[1])
    assert client.find_endp("nothing") is None
    assert client.find_dest("nothing") is None
    with Wire(path) as rude:
        rude.announcement()
        rude.send(b"request\0nonsense\0\0")
        assert rude.receive_message() == [(b"status", b"1")]
    with Wire(path) as gone:  # asks for one, and leaves before it gets it
        gone.announcement()
        gone.send(b"request\0find_endp\0label\0e2\0\0")
        assert gone.receive_message()[0] == (b"status", b"0")
    client.purge([b"e3"], [b"d2"])
    short.wait_for_end()
    for each in (*parked, short):
        each.peer.close()
