"""The file of a running daemon by another name, beside which there is no write-ahead log of its."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from scache import Client
from scache.cli.main import execute
from scache.errors import EXIT_DATABASE, EXIT_OK, DatabaseError
from scache.inspection.image import Image
from scache.store import LiveRows, files, names
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon
from tests.support.dialogue import eventually
from tests.support.starting import NAMESPACE
from tests.support.store_fixture import Opened, binding, read

Capture = pytest.CaptureFixture[str]

SENTENCE = (
    " is in use by a daemon under another name, and its latest changes are in the log beside that "
    "one: use that name, or ask the daemon (--socket)"
)
COUNT = "SELECT count(*) FROM binding"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Name what is to be another name of it."""
    return tmp_path / "other.db"


@pytest.fixture
def opened(file: Path) -> Iterator[Opened]:
    """Run on the file, with a binding that the log alone has."""
    with Opened(file) as opened:
        assert opened.run(opened.database.commit())
        LiveRows(opened.database.batch).save_binding(binding(1))
        assert opened.database.batch.commit()
        yield opened


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for a daemon that is about to start or to end."""
    monkeypatch.setattr(names, "PATIENCE", 0)


def bindings(file: Path) -> bytes | int | float | None:
    """Return how many bindings a file has, as a command sees it."""
    with Image.from_file(file) as image:
        ((count,),) = image.execute(COUNT).rows
    return count


@contextmanager
def held(file: Path, how: int) -> Iterator[int]:
    """Hold a lock on a file."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "command", [["check"], ["stats"], ["events"], ["dump"], ["sql", COUNT], ["dump", "--output"]]
)
def test_commands_refuse_a_hard_link_of_a_running_daemons_file(
    command: list[str], path: Path, file: Path, other: Path, tmp_path: Path, capsys: Capture
) -> None:
    """They say what to do; once the daemon has stopped, all of it is in the file itself."""
    if command[-1] == "--output":
        command = [*command, str(tmp_path / "dump.db")]
    with Daemon(path, database=file) as daemon, Client(path) as client:
        assert client.save_dest(60, "d", "q", "e")
        os.link(file, other)
        # Not even beside a log that another program has left there.
        for _ in range(2):
            assert execute([*command, "--database", str(other)]) == EXIT_DATABASE
            said = capsys.readouterr()
            assert said.out == ""
            assert said.err == f"scache: the database {other}{SENTENCE}\n"
            Path(f"{other}-wal").touch()
        Path(f"{other}-wal").unlink()
        assert execute([*command, "--database", str(file)]) == EXIT_OK
        assert daemon.terminate() == 0
    assert execute([*command, "--database", str(other)]) == EXIT_OK
    assert bindings(other) == 1


def through_a_link(file: Path, other: Path) -> Path:
    """Make a symbolic link."""
    other.symlink_to(file)
    return other


def through_a_directory(file: Path, other: Path) -> Path:
    """Make a symbolic link to its directory."""
    other.symlink_to(file.parent)
    return other / file.name


def through_a_descriptor(file: Path, _: Path) -> Path:
    """Find a descriptor of it."""
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if each.readlink() == file:
                return each
    raise AssertionError


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize("name", [through_a_link, through_a_directory, through_a_descriptor])
def test_a_link_leads_to_the_log(
    name: Callable[[Path, Path], Path], file: Path, other: Path
) -> None:
    """The log lies beside the file that the link leads to."""
    assert bindings(name(file, other)) == 1


@pytest.mark.usefixtures("opened")
def test_a_hard_link_that_the_daemon_does_not_use_is_no_obstacle(file: Path, other: Path) -> None:
    """By its own name the file is read, however many further ones it has."""
    os.link(file, other)
    assert bindings(file) == 1
    with pytest.raises(DatabaseError, match="under another name"):
        bindings(other)


@pytest.mark.usefixtures("opened")
def test_a_log_of_another_file_is_not_read(file: Path, other: Path) -> None:
    """A log and an index that are there, but that no connection has open, are not the daemon's."""
    os.link(file, other)
    for suffix in ("-wal", "-shm"):
        shutil.copy(f"{file}{suffix}", f"{other}{suffix}")
    with pytest.raises(DatabaseError, match="under another name"):
        bindings(other)


@pytest.mark.usefixtures("opened")
def test_a_file_that_was_moved_is_refused_without_its_log(file: Path, other: Path) -> None:
    """Its latest changes were left behind."""
    file.rename(other)
    with pytest.raises(DatabaseError, match="under another name"):
        bindings(other)
    Path(f"{file}-wal").rename(f"{other}-wal")
    Path(f"{file}-shm").rename(f"{other}-shm")
    assert bindings(other) == 1


def test_a_file_that_was_moved_is_whole_once_the_daemon_has_another(
    path: Path, file: Path, other: Path
) -> None:
    """The daemon makes its file anew, and lets the old one have all that is in the log."""
    with Daemon(path, database=file) as daemon, Client(path) as client:
        assert client.save_dest(60, "d", "q", "e")
        eventually(lambda: read(file, COUNT) == [(1,)])
        file.rename(other)
        daemon.wait_for_log("was made anew")
        assert bindings(other) == bindings(file) == 1


def test_a_bind_mount_is_refused(path: Path, file: Path, other: Path) -> None:
    """It is the same file, and the log is not beside it."""
    other.touch()
    with Daemon(path, database=file):
        command = f'mount --bind "{file}" "{other}" && exec "$@"'
        check = (*SCACHE, "check", "--database", other)
        done = run_command(*NAMESPACE, "sh", "-c", command, "sh", *check)
    assert done.returncode == EXIT_DATABASE, done.stderr
    assert done.stderr == f"scache: the database {other}{SENTENCE}\n"


def test_a_descriptor_of_a_deleted_file_is_refused(file: Path, other: Path) -> None:
    """What a link of proc(5) says is no name: there may be another file of it."""
    with Opened(file):
        pass
    shutil.copy(file, other)
    with other.open("rb") as deleted:
        other.unlink()
        name = Path(f"/proc/self/fd/{deleted.fileno()}")
        with pytest.raises(DatabaseError, match="leads to a file without a path here"):
            bindings(name)
        shutil.copy(file, f"{other} (deleted)")
        with pytest.raises(DatabaseError, match="leads to a file without a path here"):
            bindings(name)


def test_a_command_waits_for_a_daemon_that_starts(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon holds its file for a moment before it makes a log, and after it has removed it."""
    with Opened(file):
        pass
    monkeypatch.setattr(names, "PATIENCE", 60)
    with held(file, fcntl.LOCK_EX) as lock:
        waits: list[float] = []

        def release(seconds: float) -> None:
            waits.append(seconds)
            fcntl.flock(lock, fcntl.LOCK_UN)

        monkeypatch.setattr(time, "sleep", release)
        assert bindings(file) == 0
        assert len(waits) == 1


def test_a_daemon_waits_for_a_command_that_asks(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command asks for the lock by taking it for an instant."""
    file.touch()
    with held(file, fcntl.LOCK_SH) as lock:
        monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(lock, fcntl.LOCK_UN))
        os.close(files.claim(str(file)))


def test_a_dump_does_not_replace_a_file_that_a_daemon_holds(
    file: Path, other: Path, capsys: Capture
) -> None:
    """A dump that a daemon has just been started on does not look like its file yet."""
    with Opened(file):
        pass
    assert execute(["dump", "--database", str(file), "--output", str(other)]) == EXIT_OK
    with held(other, fcntl.LOCK_EX):
        code = execute(["dump", "--database", str(file), "--output", str(other)])
    assert code == EXIT_DATABASE
    assert capsys.readouterr().err == (
        f"scache: {other} is in use by a daemon: choose another name\n"
    )
