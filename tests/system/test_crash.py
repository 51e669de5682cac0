"""The database file under a running daemon: other programs read it, and kills do not damage it."""

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
from scache.store.checkpoint import WAL_LIMIT
from tests.support.daemon import Daemon
from tests.support.dialogue import DEADLINE, eventually
from tests.support.store_fixture import read

ROUNDS = 20
START_LIMIT = 30.0
"""Seconds that a start after a crash may take on a busy machine."""


ASK = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchone()[0])"


def ask(database: Path, sql: str) -> str:
    """Return the one value that a query gives in another program.

    The program is sqlite3, which administrators use. If it is not installed, it is another Python
    process, which uses the same locks and the same log.
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
    """Save a descriptor that has no peer; return True if the daemon accepted it."""
    with open(os.devnull, "rb") as something:  # noqa: PTH123
        return client.save_endp(ttl, endpoint, "properties", something)


@contextmanager
def traffic(path: Path) -> Iterator[list[int]]:
    """Make requests until the daemon is gone; yield a list that grows with them."""
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
    """Return every id of the three tables that share one sequence, with the row that it names."""
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
    """Wait until another connection sees a row."""
    eventually(lambda: read(database, sql))


def wait_for_more(done: list[int], count: int) -> None:
    """Wait for ``count`` more items in the list of `traffic`."""
    enough = len(done) + count
    eventually(lambda: len(done) >= enough)


def test_other_program_sees_cached_connections(path: Path, tmp_path: Path) -> None:
    """sqlite3 soon shows the row of a saved connection, and the file is sound."""
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


def test_file_is_sound_under_load(path: Path, tmp_path: Path) -> None:
    """A reader sees a sound database at any moment, and disturbs no request."""
    database = tmp_path / "cache.db"
    with Daemon(path, database=database) as daemon, traffic(path) as done:
        for _ in range(5):
            wait_for_more(done, 20)
            assert ask(database, "PRAGMA integrity_check") == "ok"
        daemon.terminate()
    assert ask(database, "PRAGMA integrity_check") == "ok"


@pytest.mark.slow
def test_file_is_sound_after_twenty_kills_under_load(path: Path, tmp_path: Path) -> None:
    """After each kill the start is quick, connections are gone, bindings stay, ids are new."""
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
    """Check a daemon that has started after a kill: it has no connection, and all bindings work."""
    assert read(database, "SELECT id FROM connection") == []
    assert read(database, "SELECT id FROM client WHERE disconnected_at IS NULL") == []
    with Client(path) as client:
        for destination in kept:
            assert save(client, "e")
            found = client.find_dest(destination)
            assert found is not None
            found.close()


@pytest.mark.slow
def test_write_ahead_log_is_bounded(path: Path, tmp_path: Path) -> None:
    """The log starts over again and again under a load that never pauses."""
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
            time.sleep(0.1)  # writes a few times the limit in a second
    assert WAL_LIMIT < highest < 10 * WAL_LIMIT


def test_orderly_stop_leaves_one_file_and_no_connection(path: Path, tmp_path: Path) -> None:
    """After SIGTERM the end is recorded, no client is connected, and the log is removed."""
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
