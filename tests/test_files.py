"""The files of a database under a daemon: corrupt at its start, lost or starved while it runs."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from scache import Client
from scache.errors import DatabaseError
from scache.store import Database, LiveRows, database, files
from tests.commands import SCACHE, clean_environment
from tests.support.daemon import Daemon
from tests.support.dialogue import eventually
from tests.support.opened import NOW, Opened, read
from tests.support.parked import Parked
from tests.test_store import binding, connection
from tests.test_surroundings import (
    make_another_programs,
    make_database,
    overwrite_the_middle,
    take,
    truncate,
)

STAMP = "20231114T221320Z"
"""`NOW`, as it stands in names of files."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Name a database file, alone in its directory, that does not exist yet."""
    directory = tmp_path / "data"
    directory.mkdir()
    return directory / "cache.db"


def names(file: Path) -> set[str]:
    """Return what there is in the directory of a file."""
    return {each.name for each in file.parent.iterdir()}


def beginning(file: Path, count: int) -> bytes:
    """Return the first bytes of a file."""
    return file.read_bytes()[:count]


def without_magic(file: Path) -> None:
    """Overwrite the first words of a database of ours: SQLite takes it for no database."""
    make_database(file)
    with file.open("r+b") as bytes_of_it:
        bytes_of_it.write(b"\0" * 16)


CORRUPT = [overwrite_the_middle, truncate, without_magic]


class TestCorruptAtTheStart:
    @pytest.mark.parametrize("make", CORRUPT)
    def test_it_is_set_aside(
        self, make: Callable[[Path], None], file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The file has another name, not a byte of it has changed, and the run starts empty."""
        make(file)
        damaged = file.read_bytes()
        with Opened(file) as opened:
            aside = f"cache.db.corrupt-{STAMP}"
            assert names(file) >= {"cache.db", "cache.db-wal", "cache.db-shm", aside}
            assert (file.parent / aside).read_bytes() == damaged
            assert read(file, "SELECT count(*) FROM binding") == [(0,)]
            assert LiveRows(opened.database.batch).save_binding(binding(1)).added
            (record,) = caplog.records
            assert record.levelname == "WARNING"
            assert "is corrupt" in record.getMessage()
            assert f"it is kept as {file}.corrupt-{STAMP}" in record.getMessage()
            with pytest.raises(DatabaseError, match="another scache daemon uses"), Opened(file):
                pass

    def test_its_log_goes_with_it(self, file: Path) -> None:
        """What lies beside a corrupt file belongs to it, and is kept as it was."""
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

    def test_nothing_is_overwritten(self, file: Path) -> None:
        """The second file of the same moment gets a name of its own, and so does a log's."""
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
    def test_it_is_refused_if_that_is_wanted(
        self, make: Callable[[Path], None], file: Path
    ) -> None:
        """Whoever wants to see for himself is told, and finds it where it was."""
        make(file)
        damaged = file.read_bytes()
        with pytest.raises(DatabaseError, match="is corrupt .*move it away"):
            with Opened(file, set_aside=False):
                pass
        assert names(file) == {"cache.db"}
        assert file.read_bytes() == damaged

    @pytest.mark.parametrize(
        "make", [make_another_programs, lambda file: file.write_bytes(bytes(range(256)) * 99)]
    )
    def test_what_never_was_ours_keeps_its_name(
        self, make: Callable[[Path], None], file: Path
    ) -> None:
        """Only what bears our mark is moved, however broken the rest may be."""
        make(file)
        with file.open("ab") as end:
            end.write(b"x" * 5000)
        before = file.read_bytes()
        with pytest.raises(DatabaseError), Opened(file):
            pass
        assert names(file) == {"cache.db"}
        assert file.read_bytes() == before

    def test_a_directory_in_which_nothing_can_be_renamed(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where it cannot be set aside the daemon does not start, and says why."""
        truncate(file)

        def rename(*_: object) -> None:
            raise PermissionError(13, "no")

        monkeypatch.setattr(Path, "rename", rename)
        with pytest.raises(DatabaseError, match="cannot be set aside: permission denied"):
            with Opened(file):
                pass

    def test_a_file_has_our_mark_from_the_first_on(self, file: Path) -> None:
        """The mark is in the file itself, and not in a log that might be lost with a crash."""
        with Opened(file):
            assert beginning(file, 72)[68:] == b"scac"

    def test_a_claim_is_on_the_file_of_that_name(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that gets another name while we claim it is not taken for the one that we want."""
        file.touch()
        lock = files.fcntl.flock
        aside = Path(f"{file}.aside")

        def flock(descriptor: int, operation: int) -> None:
            lock(descriptor, operation)
            if not aside.exists():
                file.rename(aside)

        monkeypatch.setattr(files.fcntl, "flock", flock)
        descriptor = files.claim(str(file))
        try:
            assert os.fstat(descriptor).st_ino == file.stat().st_ino != aside.stat().st_ino
        finally:
            os.close(descriptor)

    def test_a_daemon_says_so_in_one_line(self, path: Path, file: Path) -> None:
        """The daemon starts, with one warning."""
        truncate(file)
        with Daemon(path, database=file) as daemon, Client(path) as client:
            assert client.save_dest(60, "d", "q", "e")
            warning, listening = daemon.log()
            assert "warning: the database" in warning
            assert "is corrupt" in warning
            assert "listening" in listening
