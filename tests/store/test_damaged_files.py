"""The files of a running daemon that other processes delete, replace or damage."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from scache import Client, Unavailable
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon, stopped
from tests.support.database_files import delete, delete_log, names
from tests.support.dialogue import eventually
from tests.support.peer import Parked, take
from tests.support.starting import AS_ROOT, NAMESPACE
from tests.support.store_fixture import locked, read


def stats(path: Path) -> str | None:
    """Return the fault of a daemon's database, as `scache stats` reports it."""
    done = run_command(*SCACHE, "stats", "--socket", path, "--format", "json")
    done.check_returncode()
    fault: str | None = json.loads(done.stdout)["database"]["fault"]
    return fault


@contextmanager
def failing_disk(daemon: Daemon) -> Iterator[None]:
    """Let every write(2) of a daemon fail, which is a disk I/O error for SQLite."""
    soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (soft, hard))


def counted(daemon: Daemon, text: str) -> int:
    """Return the number of lines of the log that contain a text."""
    return sum(text in line for line in daemon.log())


class TestRunning:
    """Serving continues after any change of the files, which is logged once."""

    @pytest.mark.parametrize("lose", [delete, delete_log])
    def test_lost_file_is_recreated_within_seconds(
        self, lose: Callable[[Path], None], path: Path, file: Path
    ) -> None:
        """Clients do not notice."""
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

    def test_file_of_a_second_daemon_in_its_place_is_not_written(
        self, path: Path, file: Path
    ) -> None:
        """Both daemons serve their clients, and the first one reports the fault."""
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

    def test_failing_writes_lose_nothing(self, path: Path, file: Path) -> None:
        """While writes fail, saves are refused, and finds succeed."""
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

    def test_stats_reports_a_locked_database(self, path: Path, file: Path) -> None:
        """The report has the state of the last commit."""
        with (
            Daemon(path, database=file) as daemon,
            Client(path) as client,
            Parked(client, 60, "e"),
            locked(file),
        ):
            assert not client.save_dest(60, "d", "q", "e")
            daemon.wait_for_log("cannot be written")
            assert "cannot be written (database is locked)" in (stats(path) or "")

    def test_truncated_file_is_logged_once(self, path: Path, file: Path) -> None:
        """Another program truncates the file, but each request is answered."""
        with Daemon(path, database=file) as daemon, Client(path) as client:
            with ExitStack() as stack:
                for number in range(100):
                    stack.enter_context(Parked(client, 60, f"{number}{'x' * 60_000}"))
                short = stack.enter_context(Parked(client, 3, "short"))
                eventually(lambda: not Path(f"{file}-wal").exists() or file.stat().st_size > 10**6)
                os.truncate(file, 0)
                os.truncate(f"{file}-wal", 0)
                for number in range(100):
                    found = client.find_endp(f"{number}{'x' * 60_000}")
                    if found is not None:
                        found.close()
                    client.save_dest(60, f"d{number}", "q" * 60_000, "e")
                daemon.wait_for_log("cannot be read")
                short.wait_for_end()
            assert "cannot be read" in (stats_or_none(path) or "cannot be read")
            assert counted(daemon, "cannot be read") == 1
            daemon.terminate()

    def test_truncated_index_ends_the_daemon(self, path: Path, file: Path) -> None:
        """The kernel sends SIGBUS for a page of a mapped file that no longer exists."""
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
    def test_file_system_that_turns_read_only_refuses_saves(
        self, path: Path, tmp_path: Path
    ) -> None:
        """The kernel remounts a broken disk read-only: finds still succeed."""
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
    """Return the fault; None also if stats fails."""
    try:
        return stats(path)
    except subprocess.CalledProcessError:
        return None
