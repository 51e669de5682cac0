"""A database file that cannot be written, because the disk is full or the file is locked."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from scache import Client
from scache.errors import EXIT_DATABASE
from scache.store.batch import COMMIT_INTERVAL, FAULT_RETRY_INTERVAL
from tests.support.daemon import Daemon
from tests.support.database_files import make_database
from tests.support.dialogue import eventually
from tests.support.peer import Parked, take
from tests.support.starting import NAMESPACE, refused
from tests.support.store_fixture import locked, read

SOME_DESCRIPTOR = 0


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Make a directory to mount a disk on; fail if this machine allows no mount."""
    directory = tmp_path / "disk"
    directory.mkdir()
    attempt = subprocess.run(
        on_a_disk(directory, "true", "true"), capture_output=True, text=True, check=False
    )
    if attempt.returncode != 0:
        pytest.fail(
            "this test mounts a disk in a namespace of its own, which is not permitted: "
            f"run it as root, or allow unprivileged user namespaces ({attempt.stderr.strip()})"
        )
    return directory


def on_a_disk(directory: Path, prepare: str, *command: str) -> list[str]:
    """Return a command that mounts and prepares a disk of a megabyte, then runs another."""
    script = f'mount -t tmpfs -o size=1m none "$0" && (cd "$0" && {prepare}) && exec "$@"'
    return [*NAMESPACE, "sh", "-c", script, str(directory), *command]


FILL = "cat /dev/zero >ballast 2>&-; true"
READ_ONLY = 'mount -o remount,bind,ro "$PWD"'


class TestDisk:
    @pytest.mark.parametrize("there_already", [True, False])
    @pytest.mark.parametrize(
        ("state", "text"), [(FILL, "disk"), (READ_ONLY, "read-only")], ids=["full", "read-only"]
    )
    def test_daemon_refuses_a_disk_that_rejects_writes(
        self, state: str, text: str, there_already: bool, path: Path, disk: Path, tmp_path: Path
    ) -> None:
        """The message says if the disk is full or read-only."""
        prepare = state
        if there_already:
            make_database(tmp_path / "cache.db")
            prepare = f'cp "{tmp_path}/cache.db" . && {state}'
        line = refused(path, disk / "cache.db", EXIT_DATABASE, *on_a_disk(disk, prepare))
        assert text in line

    def test_fault_lasts_while_the_log_fills_the_disk(self, path: Path, disk: Path) -> None:
        """A checkpoint needs room for the log, so a purge of the cache does not end the fault."""
        prefix = on_a_disk(disk, "head -c 300000 /dev/zero >ballast")
        with (
            Daemon(path, database=disk / "cache.db", prefix=prefix) as daemon,
            Client(path) as client,
        ):
            labels = ["d"]
            while client.save_dest(60, labels[-1], "q" * 30_000, "e"):
                time.sleep(2 * COMMIT_INTERVAL)  # or one batch would be larger than the disk
                labels.append(f"d{len(labels)}")
            client.purge(destinations=labels)
            for _ in range(5):
                time.sleep(2 * FAULT_RETRY_INTERVAL)
                assert not client.save_dest(60, "d", "q", "e")
            Path(f"/proc/{daemon.pid}/root{disk}/ballast").unlink()
            eventually(lambda: client.save_dest(60, "d", "q", "e"))

    def test_full_disk_fails_saves_and_loses_nothing(
        self, path: Path, disk: Path, tmp_path: Path
    ) -> None:
        """While the disk is full, saves fail and finds work; later the daemon catches up."""
        prefix = on_a_disk(disk, "true")
        with ExitStack() as stack:
            daemon = stack.enter_context(Daemon(path, database=disk / "cache.db", prefix=prefix))
            client = stack.enter_context(Client(path))
            kept = [stack.enter_context(Parked(client, 60, f"e{number}")) for number in range(3)]
            accepted = ["d"]
            assert client.save_dest(60, "d", "q", "e0")

            def save() -> bool:
                name = f"d{len(accepted)}"
                taken = client.save_dest(60, name, "q" * 30_000, "e2")
                accepted.extend([name] * taken)
                return taken

            inside = Path(f"/proc/{daemon.pid}/root{disk}")
            fill(inside / "ballast")
            eventually(lambda: not save())
            assert not client.save_endp(60, "e", "p", SOME_DESCRIPTOR)
            take(client.find_dest("d"), kept[0])
            take(client.find_endp("e1"), kept[1])
            (inside / "ballast").unlink()
            eventually(save)
            eventually(lambda: endpoints_and_destinations(inside, tmp_path) == (["e2"], accepted))
            take(client.find_dest(accepted[-1]), kept[2])
            assert daemon.terminate() == 0
        log = "\n".join(daemon.log())
        assert log.count("the database cannot be written now") == 1
        assert log.count("the database can be written again; nothing was lost") == 1


def fill(ballast: Path) -> None:
    """Write to a file until the disk is full."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(ballast).free == 0


def endpoints_and_destinations(directory: Path, to: Path) -> tuple[list[str], list[str]]:
    """Return the live endpoints and destinations of a database, read from a copy of its files."""
    for name in ("cache.db", "cache.db-wal"):
        shutil.copy(directory / name, to / name)
    tables = ("SELECT endpoint FROM connection", "SELECT destination FROM binding")
    endpoints, destinations = (read(to / "cache.db", f"{sql} ORDER BY id") for sql in tables)
    return [row[0].decode() for row in endpoints], [row[0].decode() for row in destinations]


def test_locked_file_fails_requests_at_once_and_delays_no_expiry(
    path: Path, tmp_path: Path
) -> None:
    """Requests fail while another program writes; connections expire and are closed in time."""
    file = tmp_path / "cache.db"
    with (
        Daemon(path, database=file) as daemon,
        Client(path) as client,
        Parked(client, 60, "long") as long,
        Parked(client, 2, "short") as short,
    ):
        assert client.save_dest(60, "d", "q", "long")
        with locked(file):
            assert not client.save_endp(60, "e", "p", SOME_DESCRIPTOR)
            assert not client.save_dest(60, "x", "q", "e")
            assert client.find_endp("long") is None
            assert client.find_dest("d") is None
            short.wait_for_end()
            daemon.wait_for_log("the database cannot be written now")
        daemon.wait_for_log("the database can be written again; nothing was lost")
        eventually(lambda: read(file, "SELECT endpoint FROM connection") == [(b"long",)])
        with Parked(client, 60, "new"):
            take(client.find_dest("d"), long)
            assert client.find_endp("short") is None
            eventually(lambda: read(file, "SELECT endpoint FROM connection") == [(b"new",)])
