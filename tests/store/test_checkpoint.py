"""The write-ahead log: checkpoints under load, and readers that prevent them."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
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
from scache.store import checkpoint
from scache.store.database import Database
from scache.store.live_rows import LiveRows
from tests.support.dialogue import DEADLINE
from tests.support.store_fixture import Opened, connection, fault_of


def test_log_restarts_under_steady_load(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write-ahead log stays near its limit although there is always a current batch."""
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


def test_held_still_waits_for_a_cancelled_checkpoint(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread has finished a checkpoint before the database is held still."""
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


def test_starved_log_is_logged_once(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader that does not end makes the log grow; the end of that is logged, too."""
    monkeypatch.setattr(checkpoint, "WAL_LIMIT", 64 * 1024)
    monkeypatch.setattr(checkpoint, "STARVED_LOG", 8 * 64 * 1024)
    with Opened(file) as opened:
        db, rows = opened.database, LiveRows(opened.database.batch)
        opened.rows("PRAGMA journal_size_limit = 1000")

        def write(first: int) -> None:
            for row_id in range(first, first + 50):
                rows.save_connection(connection(row_id)._replace(properties=b"x" * 16_000))
                assert db.batch.commit()
                opened.run(db.checkpoint())
                assert not db.look_at_files()

        write(1)
        assert fault_of(db) is None
        with closing(sqlite3.connect(file, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM connection").fetchall()
            write(100)
            assert "until another program ends the transaction" in (fault_of(db) or "")
        write(200)
        assert fault_of(db) is None
        first, second = (record.getMessage() for record in caplog.records)
        assert "its write-ahead log has more than" in first
        assert "its log is short again" in second
