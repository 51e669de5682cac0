"""The runs of a daemon on one database: ids, recovery, and an orderly end."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from scache.daemon import maintenance
from scache.daemon.auto_reset_event import AutoResetEvent
from scache.errors import DatabaseError
from scache.model import Peer
from scache.store import ids
from scache.store.database import Database
from scache.store.live_rows import LiveRows
from tests.support.dialogue import DEADLINE
from tests.support.store_fixture import NOW, Opened, binding, connection, read


class TestRuns:
    @pytest.mark.parametrize("crash", [True, False])
    @pytest.mark.parametrize("taken", [0, 3, ids.ID_RESERVE // 2 - 1, ids.ID_RESERVE + 7])
    def test_ids_are_not_used_again(self, taken: int, crash: bool, file: Path) -> None:
        """An id of an earlier run is not used again, even if that run crashed."""
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

    def test_crash_loses_connections_and_keeps_bindings(self, file: Path) -> None:
        """The next run keeps the bindings that have not expired, and no other rows."""
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

    def test_orderly_end_is_recorded(self, file: Path) -> None:
        """A run that stops leaves no connection and no log."""
        with Opened(file) as opened:
            rows = LiveRows(opened.database.batch)
            rows.save_connection(connection(1))
            rows.save_binding(binding(2))
            opened.run(opened.database.stop(NOW))
        assert [each.name for each in file.parent.iterdir()] == [file.name]
        assert read(file, "SELECT id FROM connection") == []
        assert read(file, "SELECT id FROM binding") == [(2,)]
        assert read(file, "SELECT stopped_at FROM instance") == [(NOW,)]

    def test_second_daemon_is_refused(self, file: Path) -> None:
        """The file of a running daemon is not changed."""
        with Opened(file):
            with pytest.raises(DatabaseError, match="another scache daemon uses"), Opened(file):
                pass
            assert read(file, "SELECT count(*) FROM instance") == [(1,)]


def test_batch_of_the_start_is_committed(file: Path) -> None:
    """Writes that precede the task `maintenance.commit` are committed, too."""

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
