"""A database file under a running daemon: open to everybody, and whole after every crash."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from scache import Client
from scache.errors import Unavailable
from scache.store.database import WAL_LIMIT
from tests.support.daemon import Daemon
from tests.support.dialogue import DEADLINE, eventually
from tests.support.store_fixture import read

ROUNDS = 20
START_LIMIT = 30.0
"""Seconds that a start after a crash may take, on however busy a machine."""


ASK = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchone()[0])"


def ask(database: Path, sql: str) -> str:
    """Return the one value of a query, as another program sees it.

    That program is sqlite3, which administrators use, and which Debian builds against a library
    of its own. Where it is not installed (the suite asks for Python, pip and git alone) it is a
    Python process: it goes the same way through SQLite, its locks and its log.
    """
    program = shutil.which("sqlite3")
    command = [program] if program else [sys.executable, "-c", ASK]
    answer = subprocess.run(
        [*command, str(database), sql],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    return answer.stdout.strip()


def save(client: Client, endpoint: str, ttl: int = 60) -> bool:
    """Save something that has no peer that could hang up; return whether it was taken."""
    with open(os.devnull, "rb") as something:  # noqa: PTH123
        return client.save_endp(ttl, endpoint, "properties", something)


@contextmanager
def traffic(path: Path) -> Iterator[list[int]]:
    """Make requests until the daemon is gone; yield a list that gains an item for each few."""
    done: list[int] = []

    def make() -> None:
        choose = random.Random(0)
        with suppress(Unavailable), Client(path) as client:
            while True:
                endpoint = f"e{choose.randrange(5)}"
                save(client, endpoint)
                client.save_dest(1, f"d{choose.randrange(50)}", "q", endpoint)
                found = client.find_endp(f"e{choose.randrange(5)}")
                if found:
                    found.close()
                done.append(1)

    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        for thread in threads:
            thread.join()


def identities(database: Path) -> dict[int, tuple[object, ...]]:
    """Return every id in the three tables that share one sequence, and what it names."""
    rows = read(
        database,
        "SELECT id, 'connection', saved_at FROM connection UNION ALL "
        "SELECT id, 'binding', saved_at FROM binding UNION ALL "
        "SELECT id, 'client', connected_at FROM client",
    )
    found = {row_id: tuple(rest) for row_id, *rest in rows}
    assert len(found) == len(rows)
    return found


def wait_for_rows(database: Path, sql: str) -> None:
    """Return when somebody else sees rows."""
    eventually(lambda: read(database, sql))


def wait_for_more(done: list[int], count: int) -> None:
    """Return when so many more requests have been made."""
    enough = len(done) + count
    eventually(lambda: len(done) >= enough)


def test_another_program_sees_what_is_cached(path: Path, tmp_path: Path) -> None:
    """A saved connection is soon a row that sqlite3 shows, and the file is sound meanwhile."""
    database = tmp_path / "cache.db"
    with Daemon(path, database=database), Client(path) as client:
        assert save(client, "the endpoint")
        wait_for_rows(database, "SELECT id FROM connection")
        assert ask(database, "SELECT endpoint FROM connection") == "the endpoint"
        mine = f"SELECT count(*) FROM client WHERE pid = {os.getpid()} AND disconnected_at IS NULL"
        assert ask(database, mine) == "1"
        assert ask(database, "PRAGMA integrity_check") == "ok"
        found = client.find_endp("the endpoint")
        assert found is not None
        found.close()
        eventually(lambda: not read(database, "SELECT id FROM connection"))


def test_the_file_is_sound_in_the_middle_of_traffic(path: Path, tmp_path: Path) -> None:
    """Whoever reads at any moment sees a sound database, and readers disturb no request."""
    database = tmp_path / "cache.db"
    with Daemon(path, database=database) as daemon, traffic(path) as done:
        for _ in range(5):
            wait_for_more(done, 20)
            assert ask(database, "PRAGMA integrity_check") == "ok"
        daemon.terminate()
    assert ask(database, "PRAGMA integrity_check") == "ok"


@pytest.mark.slow
def test_twenty_crashes_in_the_middle_of_traffic(path: Path, tmp_path: Path) -> None:
    """After each crash a start is quick, dead rows are gone, bindings stay, and no id returns."""
    database = tmp_path / "cache.db"
    choose = random.Random(7)
    known: dict[int, tuple[object, ...]] = {}
    for number in range(ROUNDS):
        started = time.monotonic()
        with Daemon(path, "--ttl-limit", "3600", database=database) as daemon:
            assert time.monotonic() - started < START_LIMIT
            check_the_start(path, database, [f"kept{earlier}" for earlier in range(number)])
            with Client(path) as client:
                assert client.save_dest(3600, f"kept{number}", "q", "e")
            wait_for_rows(database, f"SELECT id FROM binding WHERE destination = 'kept{number}'")
            with traffic(path) as done:
                wait_for_more(done, choose.randint(20, 150))
                daemon.kill()
        assert read(database, "PRAGMA integrity_check") == [(b"ok",)]
        seen = identities(database)
        assert all(known.get(row_id, what) == what for row_id, what in seen.items())
        assert min(seen.keys() - known.keys()) > max(known, default=0)
        known |= seen
    assert read(database, "SELECT stopped_at FROM instance") == [(None,)] * ROUNDS


def check_the_start(path: Path, database: Path, kept: list[str]) -> None:
    """Look at what a crash left to a daemon that has just started: bindings that serve on."""
    assert read(database, "SELECT id FROM connection") == []
    assert read(database, "SELECT id FROM client WHERE disconnected_at IS NULL") == []
    with Client(path) as client:
        for destination in kept:
            assert save(client, "e")
            found = client.find_dest(destination)
            assert found is not None
            found.close()


@pytest.mark.slow
def test_the_write_ahead_log_does_not_grow_without_bound(path: Path, tmp_path: Path) -> None:
    """Under a load that never pauses the log starts over, again and again."""
    database = tmp_path / "cache.db"
    log = Path(f"{database}-wal")
    written = highest = 0
    with Daemon(path, "--ttl-limit", "1", database=database), Client(path) as client:
        number = 0
        while written < 12 * WAL_LIMIT:
            for _ in range(5):
                properties = bytes([33 + number % 90]) * 60_000
                assert client.save_dest(1, f"d{number}", properties, "e")
                written += len(properties)
                number += 1
            highest = max(highest, log.stat().st_size)
            time.sleep(0.1)  # the pace: what comes in a second is a few times the limit
    assert WAL_LIMIT < highest < 10 * WAL_LIMIT


def test_a_clean_stop_leaves_one_file_and_no_connection(path: Path, tmp_path: Path) -> None:
    """After SIGTERM the end is on record, nothing is connected, and no log lies about."""
    database = tmp_path / "data" / "cache.db"
    database.parent.mkdir()
    with Daemon(path, database=database) as daemon, Client(path) as client:
        assert save(client, "e")
        assert client.save_dest(300, "d", "q", "e")
        daemon.terminate()
    assert [each.name for each in database.parent.iterdir()] == ["cache.db"]
    assert read(database, "SELECT id FROM connection") == []
    assert read(database, "SELECT destination FROM binding") == [(b"d",)]
    assert read(database, "SELECT id FROM client WHERE disconnected_at IS NULL") == []
    ((started_at, stopped_at),) = read(database, "SELECT started_at, stopped_at FROM instance")
    assert started_at < stopped_at <= time.time() + 1
    lost = "SELECT value FROM counter WHERE name = 'connections_lost'"
    assert read(database, lost) == [(1,)]
