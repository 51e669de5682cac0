"""The files of a database under a daemon: corrupt at its start, lost or starved while it runs."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from scache import Client, Unavailable
from scache.errors import DatabaseError
from scache.inspection.image import Image
from scache.store import Database, LiveRows, checkpoint, complete, files, load
from tests.store.test_live_rows import binding, connection
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon, stopped
from tests.support.database_files import (
    make_another_programs,
    make_database,
    overwrite_the_middle,
    truncate,
)
from tests.support.dialogue import eventually
from tests.support.peer import Parked, take
from tests.support.starting import AS_ROOT, NAMESPACE
from tests.support.store_fixture import NOW, Opened, locked, no_space, read

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
            saved = LiveRows(opened.database.batch).save_binding(binding(1))
            assert saved is not None
            assert saved.added
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
        refused = pytest.raises(DatabaseError, match=r"is corrupt .*: move it away")
        with refused, Opened(file, set_aside=False):
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
        refused = pytest.raises(DatabaseError, match="cannot be set aside: permission denied")
        with refused, Opened(file):
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

    def test_a_daemon_says_so_in_one_line(self, path: Path, file: Path) -> None:
        """The daemon starts, with one warning."""
        truncate(file)
        with Daemon(path, database=file) as daemon, Client(path) as client:
            assert client.save_dest(60, "d", "q", "e")
            warning, listening = daemon.log()
            assert "warning: the database" in warning
            assert "is corrupt" in warning
            assert "listening" in listening


def saved(opened: Opened, row_id: int) -> None:
    """Save a connection and a binding, and commit them."""
    rows = LiveRows(opened.database.batch)
    rows.save_connection(connection(row_id))
    rows.save_binding(binding(row_id + 1, b"d%d" % row_id))
    assert opened.database.batch.commit()


def fault_of(opened: Database) -> str | None:
    """Return what is wrong now, which mypy takes for what was wrong before."""
    return opened.fault


IDS = "SELECT id FROM connection UNION SELECT id FROM binding ORDER BY id"


def delete(file: Path) -> None:
    """Delete a database and what lies beside it."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{file}{suffix}").unlink()


def delete_alone(file: Path) -> None:
    """Delete a database and forget its log."""
    file.unlink()


def move_away(file: Path) -> None:
    """Rename a database and forget its log."""
    file.rename(f"{file}.old")


def delete_log(file: Path) -> None:
    """Delete what looks like litter."""
    Path(f"{file}-wal").unlink()


def delete_index(file: Path) -> None:
    """Delete the index of the log."""
    Path(f"{file}-shm").unlink()


LOSSES = [delete, delete_alone, move_away, delete_log, delete_index]


class TestLost:
    @pytest.mark.parametrize("lose", LOSSES)
    def test_a_lost_file_is_made_anew(
        self, lose: Callable[[Path], None], file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """All that was cached is in the new file, what waits to be committed too, and goes on."""
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
            assert [row[0] for row in read(file, IDS)] == [2, 3, 4, 5, 6]
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

    def test_a_file_that_was_moved_is_whole(self, file: Path) -> None:
        """Whoever takes the file away has all that was committed, though he left the log."""
        with Opened(file) as opened:
            saved(opened, 1)
            move_away(file)
            assert opened.database.look_at_files()
            assert opened.run(opened.database.renew())
            saved(opened, 3)
            assert [row[0] for row in read(f"{file}.old", IDS)] == [1, 2]
            assert [row[0] for row in read(file, IDS)] == [1, 2, 3, 4]

    def test_what_is_put_in_its_place_is_left_alone(
        self, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Another's file is never written; what is cached goes on, and once it is gone, anew."""
        with Opened(file) as opened:
            db = opened.database
            saved(opened, 1)
            delete(file)
            make_another_programs(file)
            theirs = file.read_bytes()
            for _ in range(3):
                assert db.look_at_files()
                assert opened.run(db.renew())
            assert db.fault is not None
            assert "another file was put in its place" in db.fault
            saved(opened, 3)
            assert [row[0] for row in opened.rows(IDS)] == [1, 2, 3, 4]
            opened.run(db.checkpoint())
            assert file.read_bytes() == theirs
            assert len(caplog.records) == 1
            delete_alone(file)
            assert db.look_at_files()
            assert opened.run(db.renew())
            assert [row[0] for row in read(file, IDS)] == [1, 2, 3, 4]

    def test_our_log_is_not_left_to_another(self, file: Path, tmp_path: Path) -> None:
        """A database that is moved into the place of ours does not get our log for its own."""
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
            assert opened.database.look_at_files()
            assert opened.run(opened.database.renew())
            assert [row[0] for row in read(file, IDS)] == [1, 2, 3, 4]

    def test_an_end_without_a_file_writes_to_nobodys(self, file: Path) -> None:
        """A daemon that stops while another's file is in the place of its own leaves that alone."""
        with Opened(file) as opened:
            saved(opened, 1)
            delete(file)
            make_another_programs(file)
            theirs = file.read_bytes()
            assert opened.database.look_at_files()
            opened.run(opened.database.stop(NOW))
        assert names(file) == {"cache.db"}
        assert file.read_bytes() == theirs

    def test_a_file_that_comes_back(self, file: Path) -> None:
        """Who puts the file back where it was has changed nothing."""
        with Opened(file) as opened:
            saved(opened, 1)
            move_away(file)
            assert opened.database.look_at_files()
            Path(f"{file}.old").rename(file)
            assert opened.run(opened.database.renew())
            assert opened.database.fault is None
            saved(opened, 3)
            assert [row[0] for row in read(file, IDS)] == [1, 2, 3, 4]

    def test_a_directory_that_is_gone(self, file: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Where there is no place for a file it is tried again, and said once."""
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
            assert [row[0] for row in read(file, IDS)] == [1, 2, 3, 4]

    def test_a_file_behind_a_link(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A link to a database is as good as its name: its log is watched where it lies."""
        link = tmp_path / "link.db"
        link.symlink_to(file)
        monkeypatch.setattr(checkpoint, "WAL_LIMIT", 0)
        with Opened(link) as opened:
            saved(opened, 1)
            assert not opened.database.look_at_files()
            assert opened.database.wal.is_long
            delete(file)
            assert opened.database.look_at_files()
            assert opened.run(opened.database.renew())
            assert link.is_symlink()
            assert [row[0] for row in read(link, IDS)] == [1, 2]

    def test_a_database_in_memory_has_no_files(self) -> None:
        """What has no file cannot lose it."""
        with Opened(":memory:") as opened:
            assert not opened.database.is_file
            assert not opened.database.look_at_files()
            assert not opened.database.wal.is_long


def stats(path: Path) -> str | None:
    """Return what `scache stats` says is wrong with the database of a daemon."""
    done = run_command(*SCACHE, "stats", "--socket", path, "--format", "json")
    done.check_returncode()
    fault: str | None = json.loads(done.stdout)["database"]["fault"]
    return fault


@contextmanager
def failing_disk(daemon: Daemon) -> Iterator[None]:
    """Let every write(2) of a daemon fail: SQLite calls that a disk I/O error."""
    soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (soft, hard))


def counted(daemon: Daemon, text: str) -> int:
    """Return how many lines of the log have this."""
    return sum(text in line for line in daemon.log())


class TestRunning:
    """The live cache goes on, whatever is done to its files; it says so once, and recovers."""

    @pytest.mark.parametrize("lose", [delete, delete_log])
    def test_lost(self, lose: Callable[[Path], None], path: Path, file: Path) -> None:
        """What is lost is made anew within seconds, and nobody has noticed."""
        with (
            Daemon(path, database=file) as daemon,
            Client(path) as client,
            Parked(client, 60, "old") as old,
        ):
            assert client.save_dest(60, "d", "q", "old")
            eventually(lambda: read(file, "SELECT id FROM binding"))
            lose(file)
            with Parked(client, 60, "new") as new:
                daemon.wait_for_log("was made anew; nothing was lost")
                assert stats(path) is None
                eventually(lambda: len(read(file, "SELECT id FROM connection")) == 2)
                take(client.find_dest("d"), old)
                take(client.find_endp("new"), new)
            eventually(lambda: not read(file, "SELECT id FROM connection"))
            assert counted(daemon, "deleted") == counted(daemon, "anew; nothing") == 1
            assert daemon.terminate() == 0
        assert names(file) == {"cache.db"}

    def test_replaced(self, path: Path, file: Path) -> None:
        """Another daemon's file is its own: both go on, and the first says what is wrong."""
        with (
            Daemon(path, database=file) as daemon,
            Client(path) as client,
            Parked(client, 60, "e") as parked,
        ):
            other = path.with_name("other")
            with ExitStack() as stack:
                with stopped(daemon.pid):  # else it may make its file anew before
                    delete(file)
                    second = stack.enter_context(Daemon(other, database=file))
                theirs = stack.enter_context(Client(other))
                daemon.wait_for_log("another file was put in its place")
                assert "another file was put in its place" in (stats(path) or "")
                assert stats(other) is None
                assert theirs.save_dest(60, "theirs", "q", "e")
                assert client.save_dest(60, "ours", "q", "e")
                take(client.find_dest("ours"), parked)
                eventually(lambda: read(file, "SELECT id FROM binding"))
                assert second.terminate() == 0
            assert read(file, "SELECT destination FROM binding") == [(b"theirs",)]
            assert counted(daemon, "another file") == 1
            file.unlink()
            daemon.wait_for_log("was made anew")
            assert read(file, "SELECT destination FROM binding") == [(b"ours",)]

    def test_a_disk_with_errors(self, path: Path, file: Path) -> None:
        """While writes fail, saves are refused and finds work; in the end nothing was lost."""
        with (
            Daemon(path, database=file) as daemon,
            Client(path) as client,
            Parked(client, 60, "e") as parked,
            Parked(client, 60, "f"),
        ):
            eventually(lambda: len(read(file, "SELECT id FROM connection")) == 2)
            with failing_disk(daemon):
                eventually(lambda: not client.save_dest(60, "d", "q", "e"))
                daemon.wait_for_log("the database cannot be written now (disk I/O error)")
                take(client.find_endp("e"), parked)
            daemon.wait_for_log("the database can be written again; nothing was lost")
            eventually(lambda: client.save_dest(60, "d", "q", "f"))
            eventually(lambda: read(file, "SELECT endpoint FROM connection") == [(b"f",)])
            assert counted(daemon, "cannot be written") == counted(daemon, "written again") == 1
            assert stats(path) is None

    def test_locked_is_told_by_stats(self, path: Path, file: Path) -> None:
        """While another program keeps it locked, stats says so, as of the last commit."""
        with (
            Daemon(path, database=file) as daemon,
            Client(path) as client,
            Parked(client, 60, "e"),
            locked(file),
        ):
            assert not client.save_dest(60, "d", "q", "e")
            daemon.wait_for_log("cannot be written")
            assert "cannot be written (database is locked)" in (stats(path) or "")

    def test_emptied_under_us(self, path: Path, file: Path) -> None:
        """A file that somebody empties cannot be mended: it is said once, and all is answered."""
        with Daemon(path, database=file) as daemon, Client(path) as client:
            with ExitStack() as stack:
                for number in range(200):
                    stack.enter_context(Parked(client, 60, f"{number}{'x' * 60_000}"))
                short = stack.enter_context(Parked(client, 3, "short"))
                eventually(lambda: not Path(f"{file}-wal").exists() or file.stat().st_size > 10**6)
                os.truncate(file, 0)
                os.truncate(f"{file}-wal", 0)
                for number in range(200):
                    found = client.find_endp(f"{number}{'x' * 60_000}")
                    if found is not None:
                        found.close()
                    client.save_dest(60, f"d{number}", "q" * 60_000, "e")
                daemon.wait_for_log("cannot be read")
                short.wait_for_end()
            assert "cannot be read" in (stats_or_none(path) or "cannot be read")
            assert counted(daemon, "cannot be read") == 1
            daemon.terminate()

    def test_index_emptied_under_us(self, path: Path, file: Path) -> None:
        """The kernel ends whoever looks at a mapped file where it is no more."""
        with Daemon(path, database=file) as daemon, Client(path) as client:
            assert client.save_dest(60, "d", "q", "e")
            eventually(lambda: read(file, "SELECT endpoint FROM binding") == [(b"e",)])
            os.truncate(f"{file}-shm", 0)
            with suppress(Unavailable):
                client.save_dest(60, "other", "q", "e")
            assert daemon.wait() == -signal.SIGBUS
        with Daemon(path, database=file), Client(path) as client, Parked(client, 60, "e") as parked:
            take(client.find_dest("d"), parked)

    @pytest.mark.skipif(
        not AS_ROOT or shutil.which("mkfs.ext4") is None or not Path("/dev/loop-control").exists(),
        reason="makes a file system of its own and breaks it: needs root, mkfs.ext4 and loop",
    )
    def test_a_file_system_that_turns_read_only(self, path: Path, tmp_path: Path) -> None:
        """What the kernel does to a broken disk: saves are refused for good, finds work on."""
        image, disk = tmp_path / "image", tmp_path / "disk"
        disk.mkdir()
        with image.open("wb") as file:
            file.truncate(16 << 20)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        mount = 'mount -o loop "$0" "$1" && shift && exec "$@"'
        prefix = [*NAMESPACE, "sh", "-c", mount, str(image), str(disk)]
        with ExitStack() as stack:
            daemon = stack.enter_context(Daemon(path, database=disk / "cache.db", prefix=prefix))
            client = stack.enter_context(Client(path))
            kept = [stack.enter_context(Parked(client, 60, f"e{number}")) for number in range(3)]
            short = stack.enter_context(Parked(client, 3, "short"))
            assert client.save_dest(60, "d", "q", "e0")
            inside = Path(f"/proc/{daemon.pid}/root{disk}")
            eventually(lambda: (inside / "cache.db-wal").stat().st_size > 0)
            enter = ("nsenter", "--target", str(daemon.pid), "--mount")
            subprocess.run([*enter, "mount", "-o", "remount,abort", disk], check=True)
            with pytest.raises(OSError, match=r"Read-only|Input/output"):
                (inside / "new").touch()
            eventually(lambda: not client.save_dest(60, "x", "q", "e"))
            take(client.find_dest("d"), kept[0])
            take(client.find_endp("e1"), kept[1])
            eventually(lambda: stats(path))
            assert "it cannot be written" in (stats(path) or "")
            short.wait_for_end()
            take(client.find_endp("e2"), kept[2])
            assert daemon.terminate() == 0
        assert sum("the database cannot be written now" in line for line in daemon.log()) == 1


def stats_or_none(path: Path) -> str | None:
    """Return what stats says, if there is an image at all."""
    try:
        return stats(path)
    except subprocess.CalledProcessError:
        return None


def test_a_log_that_a_reader_keeps_from_starting_over(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader that never ends lets the log grow: that is said once, and is over after him."""
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


def test_what_was_recorded_during_a_fault_needs_no_further_request(file: Path) -> None:
    """The commit that ends a fault is followed by one of the events that had to wait."""
    with Opened(file) as opened:
        batch, rows = opened.database.batch, LiveRows(opened.database.batch)
        rows.save_connection(connection(1))
        with no_space():
            assert not batch.commit()
            opened.database.audit_log.find_missed("find_endp", NOW, 1, endpoint=b"e")
            assert not batch.commit()
        while not batch.commit():
            pass
        assert read(file, "SELECT kind FROM event") == [(b"find_endp",)]


def test_a_snapshot_during_a_lock_has_what_is_on_its_way_once() -> None:
    """A connection that was taken, though the database does not know it yet, is no obstacle."""
    with Opened(":memory:") as opened:
        LiveRows(opened.database.batch).save_connection(connection(1))
        with closing(load(opened.database.batch.serialize())) as copy:
            data = complete(copy, [connection(1)], [], {})
    with Image.from_bytes(data) as image:
        assert list(image.execute("SELECT id FROM connection").rows) == [(1,)]
