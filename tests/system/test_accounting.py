"""The audit log compared with the diaries of client processes that die at random moments.

The processes record what they sent and received, and each descriptor carries a token. In some tests
the daemon is killed too.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scache.cli.daemon_socket import given_socket
from scache.cli.target import Target
from scache.store.database import MEMORY
from tests.support.commands import clean_environment
from tests.support.daemon import Daemon
from tests.support.descriptors import descriptors_of
from tests.support.dialogue import DEADLINE, Dialogue, eventually
from tests.support.dying_client import BIND, FIND, LOOK, SAVE, SPOIL, Diary
from tests.support.store_fixture import read

PROCESSES = 4
WAYS_OUT = ("found", "expired", "evicted", "hung_up", "purged", "lost")
CRASHES = 10
WANTED = {SAVE, BIND, FIND, LOOK, "found", "expired", "put_back"}
"""Kinds of events that must occur; on a slow machine this may take more than one attempt."""
AUDIT_ROWS = ("--audit-rows", "1000000")
"""Enough that nothing is trimmed."""

Query = Callable[[str], list[tuple[Any, ...]]]


@contextmanager
def looking(socket: Path, database: str) -> Iterator[Query]:
    """Yield a query function for one image: of the daemon, or of the file."""
    target = Target(given_socket(str(socket), None) if database == MEMORY else database)
    with target.image() as image:
        yield lambda sql: list(image.execute(sql).rows)


@contextmanager
def processes(path: Path, diaries: Path, seed: int, seconds: float) -> Iterator[None]:
    """Run clients, and replace those that die, until the time is over or the daemon is gone."""

    def begin(number: int) -> subprocess.Popen[bytes]:
        module = (sys.executable, "-m", "tests.support.dying_client")
        arguments = (str(path), str(diaries / "diary"), str(seed * 1000 + number), str(seconds))
        root = Path(__file__).parents[2]
        return subprocess.Popen([*module, *arguments], cwd=root, env=clean_environment())

    running = [begin(number) for number in range(PROCESSES)]
    begun = PROCESSES
    deadline = time.monotonic() + seconds
    try:
        yield
        while time.monotonic() < deadline and path.exists():
            for at, process in enumerate(running):
                if process.poll() == -signal.SIGKILL:
                    running[at] = begin(begun)
                    begun += 1
            time.sleep(0.02)
        for process in running:
            assert process.wait(DEADLINE) in (0, -signal.SIGKILL)
    finally:
        for process in running:
            process.kill()
            process.wait()


class AccountingCheck:
    """The audit log, joined with the diaries of the clients."""

    def __init__(self, query: Query, diaries: Path) -> None:
        self.query = query
        self.diaries = [Diary(each) for each in sorted(diaries.iterdir())]
        self.clients: dict[tuple[int, int], int] = {}
        """The id of the client, by the id of its process and the number of its wire."""
        of_pid = defaultdict(list)
        for row_id, pid in query("SELECT id, pid FROM client ORDER BY id"):
            of_pid[pid].append(row_id)
        for diary in self.diaries:
            assert len(of_pid[diary.pid]) <= diary.wires + 1
            for wire, row_id in enumerate(of_pid[diary.pid], 1):
                self.clients[diary.pid, wire] = row_id
        saved = defaultdict(list)
        for client_id, row_id, endpoint, ttl in query(
            "SELECT client_id, connection_id, endpoint, ttl FROM event "
            "WHERE kind = 'save_endp' AND status = 0 ORDER BY connection_id"
        ):
            saved[client_id].append((row_id, endpoint.decode(), ttl))
        self.token_of: dict[int, str] = {}
        for diary in self.diaries:
            sent = defaultdict(list)
            for each in diary.sent:
                if each.kind == SAVE and each.token:
                    sent[each.wire].append(each)
            for wire in range(1, diary.wires + 1):
                rows = saved.pop(self.clients.get((diary.pid, wire)), [])
                # Requests on a wire are served in order, so the served ones come first.
                assert len(rows) <= len(sent[wire])
                for (row_id, endpoint, ttl), each in zip(rows, sent[wire], strict=False):
                    assert (endpoint, ttl) == (each.label, each.ttl)
                    self.token_of[row_id] = each.token

    def check(self, *, all_on_record: bool) -> None:
        """Check the invariants; with ``all_on_record`` the daemon was not killed."""
        self.check_connections()
        self.check_bindings()
        self.check_counters()
        self.check_ages()
        self.check_finders(all_on_record=all_on_record)

    def check_connections(self) -> None:
        """Check that every connection is live or has exactly one close reason."""
        query = self.query
        ways = ", ".join(f"'{way}'" for way in WAYS_OUT)
        live = [row_id for (row_id,) in query("SELECT id FROM connection")]
        left = query(
            f"SELECT connection_id FROM event WHERE kind IN ({ways}) AND connection_id IS NOT NULL"
        )
        saved = query("SELECT connection_id FROM event WHERE kind = 'save_endp' AND status = 0")
        assert sorted([row_id for (row_id,) in left] + live) == sorted(
            row_id for (row_id,) in saved
        )

    def check_bindings(self) -> None:
        """Check that every binding is live or has exactly one close reason."""
        live = [row_id for (row_id,) in self.query("SELECT id FROM binding")]
        left = self.query(
            "SELECT binding_id FROM event "
            "WHERE kind IN ('expired', 'evicted', 'purged') AND connection_id IS NULL"
        )
        saved = self.query(
            "SELECT DISTINCT binding_id FROM event WHERE kind = 'save_dest' AND status = 0"
        )
        assert sorted([row_id for (row_id,) in left] + live) == sorted(
            row_id for (row_id,) in saved
        )

    def check_counters(self) -> None:
        """Check that every counter is the number of its events."""
        counters = {
            name.decode(): value
            for name, value in self.query("SELECT name, value FROM counter WHERE value > 0")
        }
        expected: Counter[str] = Counter()
        for kind, status, count in self.query(
            "SELECT kind, status, count(*) FROM event WHERE status IS NOT NULL GROUP BY 1, 2"
        ):
            expected[f"{kind.decode()}_{('ok', 'bad', 'fail')[status]}"] = count
        for kind, of_connection, count in self.query(
            "SELECT kind, connection_id IS NOT NULL, count(*) FROM event "
            "WHERE status IS NULL AND kind <> 'put_back' GROUP BY 1, 2"
        ):
            expected[f"{'connections' if of_connection else 'bindings'}_{kind.decode()}"] = count
        for name in ("clients_connected", "events_dropped", "finds_continued"):
            counters.pop(name, None)
        misses = [counters.pop(name) for name in list(counters) if name.startswith("find_misses_")]
        assert sum(misses) == expected["find_endp_fail"] + expected["find_dest_fail"]
        assert counters == expected

    def check_ages(self) -> None:
        """Check the ages of connections that left, and the clients of all events."""
        assert not self.query(
            "SELECT * FROM event AS e JOIN event AS s ON s.connection_id = e.connection_id "
            "AND s.kind = 'save_endp' AND s.status = 0 "
            "WHERE e.id <> s.id AND (e.endpoint <> s.endpoint OR e.age IS NULL "
            "OR abs(e.at - s.at - e.age) > 1e-6 OR e.age < 0 OR e.age > s.ttl + 60 "
            "AND e.kind <> 'lost')"
        )
        assert not self.query(
            "SELECT * FROM event WHERE (client_id IS NULL) <> "
            "(kind IN ('expired', 'hung_up', 'lost'))"
        )
        assert not self.query(
            "SELECT * FROM event AS e LEFT JOIN client AS c ON c.id = e.client_id "
            "WHERE e.client_id IS NOT NULL AND (c.id IS NULL OR e.at < c.connected_at "
            "OR c.disconnected_at < e.at)"
        )

    def check_finders(self, *, all_on_record: bool) -> None:
        """Check that each connection went to the client that is on record, and to no other."""
        found = {
            self.token_of[row_id]: (client_id, endpoint.decode())
            for row_id, client_id, endpoint in self.query(
                "SELECT connection_id, client_id, endpoint FROM event WHERE kind = 'found'"
            )
        }
        label_of = {each.token: each.label for diary in self.diaries for each in diary.sent}
        got: Counter[str] = Counter()
        for diary in self.diaries:
            for each in diary.got:
                got[each.token] += 1
                assert each.properties == each.token
                assert each.kind == LOOK or each.label == label_of[each.token]
                if all_on_record or each.token in found:
                    client_id = self.clients[diary.pid, each.wire]
                    assert found[each.token] == (client_id, label_of[each.token])
        assert set(got.values()) <= {1}

    def check_requests(self) -> None:
        """Check the recorded requests of each client against its diary."""
        recorded: defaultdict[int, Counter[tuple[str, str]]] = defaultdict(Counter)
        outcomes: defaultdict[int, Counter[tuple[str, str, int]]] = defaultdict(Counter)
        for client_id, kind, status, endpoint, destination in self.query(
            "SELECT client_id, kind, status, endpoint, destination FROM event "
            "WHERE status IS NOT NULL"
        ):
            name = kind.decode() if status != 1 else SPOIL
            label = destination if name in (BIND, LOOK) else endpoint
            what = (name, "" if label is None else label.decode())
            recorded[client_id][what] += 1
            outcomes[client_id][*what, status] += 1
        for diary in self.diaries:
            sent: defaultdict[int, Counter[tuple[str, str]]] = defaultdict(Counter)
            replied: defaultdict[int, Counter[tuple[str, str, int]]] = defaultdict(Counter)
            for each in diary.sent:
                sent[each.wire][each.kind, each.label if each.kind != SPOIL else ""] += 1
            for reply in diary.replied:
                label = reply.label if reply.kind != SPOIL else ""
                replied[reply.wire][reply.kind, label, reply.status] += 1
            for wire in range(1, diary.wires + 1):
                client_id = self.clients[diary.pid, wire]
                assert recorded[client_id] <= sent[wire]
                assert replied[wire] <= outcomes[client_id]
                if wire in diary.ended:
                    assert replied[wire] == outcomes[client_id]

    def check_statistics(self, lines: list[str]) -> None:
        """Check that the statistics in the log agree with the audit log."""
        counts = Counter(
            {
                (kind.decode(), status): count
                for kind, status, count in self.query(
                    "SELECT kind, status, count(*) FROM event GROUP BY 1, 2"
                )
            }
        )
        text = "\n".join(lines)
        for what, kind in (("domain", LOOK), ("address", FIND)):
            match = re.search(rf"statistics: {what} lookup hits=(\d+) miss=(\d+) ", text)
            assert match
            assert tuple(map(int, match.groups())) == (counts[kind, 0], counts[kind, 2])


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_audit_log_agrees_with_clients_that_die(
    seed: int, path: Path, tmp_path: Path, database: str
) -> None:
    """Clients die at every step; the audit log, counters and diaries agree."""
    diaries = tmp_path / "diaries"
    diaries.mkdir()
    with Daemon(path, *AUDIT_ROWS, database=database) as daemon:
        with Dialogue(path) as first:
            assert first.take_endp(b"nothing") is None
            constant = len(descriptors_of(daemon.pid)) - 1
        for more in range(10):
            with processes(path, diaries, seed + 100 * more, seconds=2.5):
                pass
            with looking(path, database) as query:
                kinds = {kind.decode() for (kind,) in query("SELECT DISTINCT kind FROM event")}
            if kinds >= WANTED:
                break

        def quiet() -> bool:
            with looking(path, database) as query:
                ((live,),) = query("SELECT count(*) FROM connection")
                ((connected,),) = query("SELECT count(*) FROM client WHERE disconnected_at IS NULL")
            clients = database == MEMORY  # the client that takes the snapshot
            return bool(connected == clients and len(descriptors_of(daemon.pid)) == constant + live)

        eventually(quiet)
        os.kill(daemon.pid, signal.SIGUSR1)
        daemon.wait_for_log("statistics: max")
        log = daemon.log()
        with looking(path, database) as query:
            accounting = AccountingCheck(query, diaries)
            accounting.check(all_on_record=True)
            accounting.check_requests()
            accounting.check_statistics(log)
    assert kinds >= WANTED
    assert not [line for line in log if "report" in line]


@pytest.mark.slow
def test_audit_log_agrees_with_clients_after_ten_kills(path: Path, tmp_path: Path) -> None:
    """After each kill -9 on the same file, every connection is accounted for."""
    database = str(tmp_path / "cache.db")
    diaries = tmp_path / "diaries"
    diaries.mkdir()
    for number in range(CRASHES):
        with Daemon(path, *AUDIT_ROWS, database=database) as daemon:
            check_after_crash(path, database, diaries)
            with processes(path, diaries, number, seconds=10):
                time.sleep(0.8)  # the load
                daemon.kill()
                path.unlink()
        assert read(database, "PRAGMA quick_check") == [(b"ok",)]
    with Daemon(path, *AUDIT_ROWS, database=database) as daemon:
        check_after_crash(path, database, diaries)
    assert len(read(database, "SELECT id FROM instance")) == CRASHES + 1


def check_after_crash(socket: Path, database: str, diaries: Path) -> None:
    """Check the audit log of all runs against the diaries."""
    with looking(socket, database) as query:
        AccountingCheck(query, diaries).check(all_on_record=False)
