"""Other names of a running daemon's file, without its write-ahead log beside them."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from scache import Client
from scache.cli.main import execute
from scache.errors import EXIT_DATABASE, EXIT_OK, DatabaseError
from scache.inspection.image import Image
from scache.store import files, names
from scache.store.live_rows import LiveRows
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
# A process that reads an index loses SQLite's lock on it, by which a daemon in the same process is
# recognized. This happens in tests only.
REFUSED = "under another name|may lack its log"
COUNT = "SELECT count(*) FROM binding"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Return the path of another name."""
    return tmp_path / "other.db"


@pytest.fixture
def opened(file: Path) -> Iterator[Opened]:
    """Open the file, with a binding that is only in the log."""
    with Opened(file) as opened:
        assert opened.run(opened.database.commit())
        LiveRows(opened.database.batch).save_binding(binding(1))
        assert opened.database.batch.commit()
        yield opened


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for a daemon that starts or ends."""
    monkeypatch.setattr(names, "PATIENCE", 0)


def bindings(file: Path) -> bytes | int | float | None:
    """Return the number of bindings that a command finds in a file."""
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
    """The error says what to do. After the daemon has stopped, the file has all rows."""
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
    """Make a symbolic link to the directory of the file."""
    other.symlink_to(file.parent)
    return other / file.name


def through_a_descriptor(file: Path, _: Path) -> Path:
    """Return the path of a descriptor of the file."""
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if each.readlink() == file:
                return each
    raise AssertionError


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize("name", [through_a_link, through_a_directory, through_a_descriptor])
def test_symbolic_link_leads_to_the_log(
    name: Callable[[Path, Path], Path], file: Path, other: Path
) -> None:
    """The log is beside the target of the link."""
    assert bindings(name(file, other)) == 1


@pytest.mark.usefixtures("opened")
def test_file_can_be_read_by_the_name_that_the_daemon_uses(file: Path, other: Path) -> None:
    """It may have further hard links."""
    os.link(file, other)
    assert bindings(file) == 1
    with pytest.raises(DatabaseError, match=REFUSED):
        bindings(other)


@pytest.mark.usefixtures("opened")
def test_log_of_another_file_is_not_read(file: Path, other: Path) -> None:
    """A log and an index that no process has open are not those of the daemon."""
    os.link(file, other)
    for suffix in ("-wal", "-shm"):
        shutil.copy(f"{file}{suffix}", f"{other}{suffix}")
    with pytest.raises(DatabaseError, match=REFUSED):
        bindings(other)


@pytest.mark.usefixtures("opened")
def test_moved_file_without_its_log_is_refused(file: Path, other: Path) -> None:
    """Its latest changes are in the log."""
    file.rename(other)
    with pytest.raises(DatabaseError, match="under another name"):
        bindings(other)
    Path(f"{file}-wal").rename(f"{other}-wal")
    Path(f"{file}-shm").rename(f"{other}-shm")
    assert bindings(other) == 1


def test_moved_file_is_complete_when_the_daemon_has_recreated_its_own(
    path: Path, file: Path, other: Path
) -> None:
    """The daemon copies the log into the moved file first."""
    with Daemon(path, database=file) as daemon, Client(path) as client:
        assert client.save_dest(60, "d", "q", "e")
        eventually(lambda: read(file, COUNT) == [(1,)])
        file.rename(other)
        daemon.wait_for_log("was made anew")
        assert bindings(other) == bindings(file) == 1


def test_bind_mount_is_refused(path: Path, file: Path, other: Path) -> None:
    """It is the same file, but the log is not beside it."""
    other.touch()
    with Daemon(path, database=file):
        command = f'mount --bind "{file}" "{other}" && exec "$@"'
        check = (*SCACHE, "check", "--database", other)
        done = run_command(*NAMESPACE, "sh", "-c", command, "sh", *check)
    assert done.returncode == EXIT_DATABASE, done.stderr
    assert done.stderr == f"scache: the database {other}{SENTENCE}\n"


def test_descriptor_of_a_deleted_file_is_refused(file: Path, other: Path) -> None:
    """The text of the link in proc(5) is no path: another file may have that name."""
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


def test_command_waits_for_a_daemon_that_starts(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon locks its file shortly before it creates the log, and after it has removed it."""
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


def test_daemon_waits_for_a_command_that_tests_the_lock(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command takes the lock for an instant."""
    file.touch()
    with held(file, fcntl.LOCK_SH) as lock:
        monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(lock, fcntl.LOCK_UN))
        os.close(files.claim(str(file)))


def test_dump_does_not_replace_a_file_that_a_process_locks(
    file: Path, other: Path, capsys: Capture
) -> None:
    """The message names the process and its program, which need not be a daemon."""
    with Opened(file):
        pass
    assert execute(["dump", "--database", str(file), "--output", str(other)]) == EXIT_OK
    with held(other, fcntl.LOCK_EX):
        code = execute(["dump", "--database", str(file), "--output", str(other)])
    assert code == EXIT_DATABASE
    assert capsys.readouterr().err == (
        f"scache: {other} is locked by process {os.getpid()} ({program()}): choose another name\n"
    )


@pytest.mark.parametrize("how", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_lock_of_another_program_is_not_called_a_daemon(how: int, file: Path) -> None:
    """A backup may lock the file. The message names the program."""
    with Opened(file):
        pass
    with held(file, how):
        if how == fcntl.LOCK_SH:
            assert bindings(file) == 0
        else:
            with pytest.raises(DatabaseError, match=rf"is locked by process {os.getpid()} \("):
                bindings(file)
        with pytest.raises(DatabaseError) as caught:
            files.claim(str(file))
    assert str(caught.value) == (
        f"process {os.getpid()} ({program()}) holds a lock on the database {file}: start again "
        "when it has ended, or choose another --database"
    )


def program() -> str:
    """Return the name of this program as its command line has it."""
    return Path(Path("/proc/self/cmdline").read_text().split("\0")[0]).name


def test_lock_of_a_running_daemon_is_called_one(path: Path, file: Path) -> None:
    """The message names its process."""
    with Daemon(path, database=file) as daemon, pytest.raises(DatabaseError) as caught:
        files.claim(str(file))
    assert str(caught.value).startswith(
        f"another scache daemon uses the database {file} (process {daemon.pid}): stop it"
    )


def test_lock_of_a_daemon_that_starts_is_called_one(file: Path) -> None:
    """It has locked the file, and has not opened it in SQLite yet."""
    code = "import fcntl, sys; f = open(sys.argv[2], 'a'); fcntl.flock(f, 2); print(flush=True); "
    script = file.with_name("scache")
    script.write_text(f"{code} sys.stdin.read()")
    command = [sys.executable, str(script), "serve", str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(DatabaseError, match="another scache daemon uses"):
            files.claim(str(file))
        process.communicate()
