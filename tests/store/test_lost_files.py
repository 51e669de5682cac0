"""Files of an open database that are deleted, moved or replaced."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from scache.errors import DatabaseError
from scache.store import checkpoint
from scache.store.database import Database
from scache.store.files import Files
from scache.store.live_rows import LiveRows
from tests.support.database_files import (
    delete,
    delete_alone,
    delete_index,
    delete_log,
    make_another_programs,
    make_database,
    move_away,
    names,
)
from tests.support.store_fixture import NOW, Opened, binding, connection, fault_of, read

IDS = "SELECT id FROM connection UNION SELECT id FROM binding ORDER BY id"


def saved(opened: Opened, row_id: int) -> None:
    """Save a connection and a binding, and commit them."""
    rows = LiveRows(opened.database.batch)
    rows.save_connection(connection(row_id))
    rows.save_binding(binding(row_id + 1, b"d%d" % row_id))
    assert opened.database.batch.commit()


def recreate(opened: Opened) -> None:
    """Assert that the loss of the file is noticed, and that the file is made anew."""
    assert opened.database.look_at_files()
    assert opened.run(opened.database.renew())


def ids(path: Path | str) -> list[int]:
    """Return the ids of the rows that another program sees in a file."""
    return [row[0] for row in read(path, IDS)]


LOSSES = [delete, delete_alone, move_away, delete_log, delete_index]


class TestLost:
    @pytest.mark.parametrize("lose", LOSSES)
    def test_lost_file_is_recreated(
        self, lose: Callable[[Path], None], file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The new file has all rows, those of the current batch included, and serving continues."""
        with Opened(file) as opened:
            db = opened.database
            file.chmod(0o640)
            saved(opened, 1)
            assert not db.look_at_files()
            rows = LiveRows(db.batch)
            rows.take_connection(connection(1))
            rows.save_connection(connection(3))
            lose(file)
            rows.save_connection(connection(4))
            assert db.look_at_files()
            assert db.look_at_files()
            assert db.fault is not None
            assert "made anew" in db.fault
            rows.save_connection(connection(5))
            assert opened.run(db.renew())
            assert fault_of(db) is None
            assert not db.look_at_files()
            rows.save_connection(connection(6))
            assert [row[0] for row in opened.rows(IDS)] == [2, 3, 4, 5, 6]
            assert db.batch.commit()
            assert ids(file) == [2, 3, 4, 5, 6]
            assert read(file, "PRAGMA integrity_check") == [(b"ok",)]
            assert file.stat().st_mode & 0o777 == 0o640
            with pytest.raises(DatabaseError, match="another scache daemon uses"), Opened(file):
                pass
            opened.run(db.stop(NOW))
        assert names(file) - {"cache.db.old"} == {"cache.db"}
        assert read(file, "SELECT stopped_at FROM instance") == [(NOW,)]
        assert [record.getMessage().split(": ")[-1] for record in caplog.records] == [
            caplog.records[0].getMessage().split(": ")[-1],
            f"the database {file} was made anew; nothing was lost",
        ]

    def test_moved_file_has_all_committed_rows(self, file: Path) -> None:
        """The file that was moved without its log is completed before the log is deleted."""
        with Opened(file) as opened:
            saved(opened, 1)
            move_away(file)
            recreate(opened)
            saved(opened, 3)
            assert ids(f"{file}.old") == [1, 2]
            assert ids(file) == [1, 2, 3, 4]

    def test_file_of_another_program_in_its_place_is_not_written(
        self, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Serving continues meanwhile; the file is recreated when the other one is deleted."""
        with Opened(file) as opened:
            db = opened.database
            saved(opened, 1)
            delete(file)
            make_another_programs(file)
            theirs = file.read_bytes()
            for _ in range(3):
                recreate(opened)
            assert db.fault is not None
            assert "another file was put in its place" in db.fault
            saved(opened, 3)
            assert [row[0] for row in opened.rows(IDS)] == [1, 2, 3, 4]
            opened.run(db.checkpoint())
            assert file.read_bytes() == theirs
            assert len(caplog.records) == 1
            delete_alone(file)
            recreate(opened)
            assert ids(file) == [1, 2, 3, 4]

    def test_log_is_not_applied_to_a_file_in_its_place(self, file: Path, tmp_path: Path) -> None:
        """The log is deleted when another database is moved to the name."""
        backup = tmp_path / "backup.db"
        make_database(backup)
        with Opened(file) as opened:
            saved(opened, 1)
            backup.rename(file)
            assert names(file) == {"cache.db", "cache.db-wal", "cache.db-shm"}
            assert opened.database.look_at_files()
            assert names(file) == {"cache.db"}
            assert read(file, "SELECT count(*) FROM binding") == [(100,)]
            saved(opened, 3)
            assert [row[0] for row in opened.rows(IDS)] == [1, 2, 3, 4]
            assert read(file, "SELECT count(*) FROM binding") == [(100,)]
            file.unlink()
            recreate(opened)
            assert ids(file) == [1, 2, 3, 4]

    def test_stop_does_not_write_to_a_file_in_its_place(self, file: Path) -> None:
        """A daemon that stops does not change the file of another program under the name."""
        with Opened(file) as opened:
            saved(opened, 1)
            delete(file)
            make_another_programs(file)
            theirs = file.read_bytes()
            assert opened.database.look_at_files()
            opened.run(opened.database.stop(NOW))
        assert names(file) == {"cache.db"}
        assert file.read_bytes() == theirs

    def test_file_that_is_moved_back_is_used(self, file: Path) -> None:
        """Moving the file away and back has no effect."""
        with Opened(file) as opened:
            saved(opened, 1)
            move_away(file)
            assert opened.database.look_at_files()
            Path(f"{file}.old").rename(file)
            assert opened.run(opened.database.renew())
            assert opened.database.fault is None
            saved(opened, 3)
            assert ids(file) == [1, 2, 3, 4]

    def test_lost_directory_is_logged_once(
        self, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Each attempt to recreate the file fails until the directory exists again."""
        with Opened(file) as opened:
            db = opened.database
            saved(opened, 1)
            shutil.rmtree(file.parent)
            assert db.look_at_files()
            for _ in range(3):
                assert not opened.run(db.renew())
            assert db.fault is not None
            assert "No such file or directory" in db.fault
            saved(opened, 3)
            assert len(caplog.records) == 2
            file.parent.mkdir()
            assert opened.run(db.renew())
            assert ids(file) == [1, 2, 3, 4]

    def test_files_behind_a_link_are_watched(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The log is beside the target of the link, not beside the link."""
        link = tmp_path / "link.db"
        link.symlink_to(file)
        monkeypatch.setattr(checkpoint, "WAL_LIMIT", 0)
        with Opened(link) as opened:
            saved(opened, 1)
            assert not opened.database.look_at_files()
            assert opened.database.wal.is_long
            delete(file)
            recreate(opened)
            assert link.is_symlink()
            assert ids(link) == [1, 2]

    def test_database_in_memory_has_no_files(self) -> None:
        """No loss and no log is reported."""
        with Opened(":memory:") as opened:
            assert not opened.database.is_file
            assert not opened.database.look_at_files()
            assert not opened.database.wal.is_long


def test_recreation_is_not_cancelled_by_a_stop(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that is stopped meanwhile leaves a complete file."""
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
