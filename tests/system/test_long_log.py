"""A write-ahead log that cannot start over, because another program reads for a long time."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from scache import Client
from scache.store.batch import COMMIT_INTERVAL
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon
from tests.support.dialogue import eventually

_LONG = "x" * 30_000


def write(client: Client, megabytes: int) -> None:
    """Make the log longer by about this much; the database itself does not grow."""
    for _ in range(megabytes // 3):
        assert all(client.save_many((60, "e", _LONG, 0) for _ in range(100)))
        time.sleep(2 * COMMIT_INTERVAL)  # what is found within one commit is not written
        for found in client.find_many(["e"] * 100):
            assert found is not None
            found.close()


def figures_of(path: Path) -> Any:  # noqa: ANN401 - of JSON
    """Return the figures about the database."""
    done = run_command(*SCACHE, "stats", "--socket", path, "--format", "json")
    return json.loads(done.stdout)["database"]


@pytest.mark.slow
def test_log_that_a_reader_keeps_from_starting_over_is_a_fault(path: Path, file: Path) -> None:
    """The size is in the statistics from the start, and a warning and a fault come at 32 MiB."""
    with Daemon(path, database=file) as daemon, Client(path) as client:
        with closing(sqlite3.connect(file, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM binding").fetchall()
            write(client, 9)
            before = figures_of(path)
            assert 2 << 20 < before["log_bytes"] < 32 << 20
            assert before["fault"] is None
            write(client, 36)
            daemon.wait_for_log("its write-ahead log has more than 32 MiB and grows until another")
            figures = figures_of(path)
            assert 32 << 20 < figures["log_bytes"] <= Path(f"{file}-wal").stat().st_size
            assert "its write-ahead log has more than 32 MiB" in figures["fault"]
            table = run_command(*SCACHE, "stats", "--socket", path, "--format", "table").stdout
            assert re.search(r", write-ahead log \d\d\.\d MB, ", table)

        def is_short() -> bool:
            client.save_dest(60, "d", "", "e")
            return any("its log is short again" in line for line in daemon.log())

        eventually(is_short)
        assert figures_of(path)["log_bytes"] < 32 << 20
