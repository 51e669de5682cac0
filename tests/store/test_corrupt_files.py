"""A database that is corrupt when a daemon starts on it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from scache import Client
from scache.errors import DatabaseError
from scache.store import files
from scache.store.live_rows import LiveRows
from tests.support.daemon import Daemon
from tests.support.database_files import (
    make_another_programs,
    make_database,
    names,
    overwrite_the_middle,
    truncate,
)
from tests.support.store_fixture import Opened, binding, read

STAMP = "20231114T221320Z"
"""`NOW`, as it stands in names of files."""


def beginning(file: Path, count: int) -> bytes:
    """Return the first bytes of a file."""
    return file.read_bytes()[:count]


def without_magic(file: Path) -> None:
    """Overwrite the first 16 bytes of a database: SQLite no longer recognizes its format."""
    make_database(file)
    with file.open("r+b") as bytes_of_it:
        bytes_of_it.write(b"\0" * 16)


CORRUPT = [overwrite_the_middle, truncate, without_magic]


class TestCorruptAtTheStart:
    @pytest.mark.parametrize("make", CORRUPT)
    def test_corrupt_file_is_set_aside(
        self, make: Callable[[Path], None], file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The file is renamed without a change, and the run starts with an empty database."""
        make(file)
        damaged = file.read_bytes()
        with Opened(file) as opened:
            aside = f"cache.db.corrupt-{STAMP}"
            assert names(file) >= {"cache.db", "cache.db-wal", "cache.db-shm", aside}
            assert (file.parent / aside).read_bytes() == damaged
            assert read(file, "SELECT count(*) FROM binding") == [(0,)]
            saved = LiveRows(opened.database.batch).save_binding(binding(1))
            assert saved is not None
            assert saved.added
            (record,) = caplog.records
            assert record.levelname == "WARNING"
            assert "is corrupt" in record.getMessage()
            assert f"it is kept as {file}.corrupt-{STAMP}" in record.getMessage()
            with pytest.raises(DatabaseError, match="another scache daemon uses"), Opened(file):
                pass

    def test_log_of_corrupt_file_is_set_aside_too(self, file: Path) -> None:
        """The write-ahead log and its index are renamed with the file, without a change."""
        make_database(file)
        with Opened(file) as opened:
            LiveRows(opened.database.batch).save_binding(binding(1))
            assert opened.database.batch.commit()
            for suffix in ("", "-wal", "-shm"):
                shutil.copy(f"{file}{suffix}", f"{file}.copy{suffix}")
        for suffix in ("", "-wal", "-shm"):
            Path(f"{file}.copy{suffix}").rename(f"{file}{suffix}")
        with file.open("r+b") as bytes_of_it:
            bytes_of_it.seek(file.stat().st_size // 2 // 4096 * 4096)
            bytes_of_it.write(b"\xa5" * 8192)
        log = Path(f"{file}-wal").read_bytes()
        assert log
        with Opened(file):
            aside = file.parent / f"cache.db.corrupt-{STAMP}"
            assert Path(f"{aside}-wal").read_bytes() == log
            assert Path(f"{aside}-shm").exists()
            assert read(file, "SELECT count(*) FROM binding") == [(0,)]
        assert Path(f"{aside}-wal").read_bytes() == log

    def test_set_aside_overwrites_no_file(self, file: Path) -> None:
        """A second corrupt file of the same second gets a number."""
        Path(f"{file}.corrupt-{STAMP}-wal").write_text("mine")
        for _ in range(2):
            truncate(file)
            with Opened(file):
                pass
            file.unlink()
        assert Path(f"{file}.corrupt-{STAMP}-wal").read_text() == "mine"
        for number in (2, 3):
            assert Path(f"{file}.corrupt-{STAMP}.{number}").stat().st_size > 0
        assert not Path(f"{file}.corrupt-{STAMP}").exists()

    @pytest.mark.parametrize("make", CORRUPT)
    def test_corrupt_file_is_refused_without_set_aside(
        self, make: Callable[[Path], None], file: Path
    ) -> None:
        """The error says what to do, and the file stays where it is, unchanged."""
        make(file)
        damaged = file.read_bytes()
        refused = pytest.raises(DatabaseError, match=r"is corrupt .*: move it away")
        with refused, Opened(file, set_aside=False):
            pass
        assert names(file) == {"cache.db"}
        assert file.read_bytes() == damaged

    @pytest.mark.parametrize(
        "make", [make_another_programs, lambda file: file.write_bytes(bytes(range(256)) * 99)]
    )
    def test_file_of_another_program_is_not_set_aside(
        self, make: Callable[[Path], None], file: Path
    ) -> None:
        """A file without the mark of scache is refused, and stays as it is."""
        make(file)
        with file.open("ab") as end:
            end.write(b"x" * 5000)
        before = file.read_bytes()
        with pytest.raises(DatabaseError), Opened(file):
            pass
        assert names(file) == {"cache.db"}
        assert file.read_bytes() == before

    def test_file_that_cannot_be_renamed_is_refused(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error says why the file cannot be set aside."""
        truncate(file)

        def rename(*_: object) -> None:
            raise PermissionError(13, "no")

        monkeypatch.setattr(Path, "rename", rename)
        refused = pytest.raises(DatabaseError, match="cannot be set aside: permission denied")
        with refused, Opened(file):
            pass

    def test_new_file_has_the_mark_of_scache(self, file: Path) -> None:
        """The mark is in the file itself, because a crash may lose the log."""
        with Opened(file):
            assert beginning(file, 72)[68:] == b"scac"

    def test_claim_is_on_the_file_that_has_the_name(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that is renamed between its open and its lock is not claimed."""
        file.touch()
        lock = fcntl.flock
        aside = Path(f"{file}.aside")

        def flock(descriptor: int, operation: int) -> None:
            lock(descriptor, operation)
            if not aside.exists():
                file.rename(aside)

        monkeypatch.setattr(fcntl, "flock", flock)
        descriptor = files.claim(str(file))
        try:
            assert os.fstat(descriptor).st_ino == file.stat().st_ino != aside.stat().st_ino
        finally:
            os.close(descriptor)

    def test_daemon_logs_one_warning_for_a_corrupt_file(self, path: Path, file: Path) -> None:
        """The daemon starts after the warning."""
        truncate(file)
        with Daemon(path, database=file) as daemon, Client(path) as client:
            assert client.save_dest(60, "d", "q", "e")
            warning, listening = daemon.log()
            assert "warning: the database" in warning
            assert "is corrupt" in warning
            assert "listening" in listening
