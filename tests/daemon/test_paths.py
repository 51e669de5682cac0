"""Links, FIFOs and files of other users in a directory that other users may write to.

The daemon and the commands refuse them, also if the kernel does not (fs.protected_symlinks).
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from scache.errors import EXIT_DATABASE, EXIT_OK, EXIT_SETTINGS
from scache.unix.namespace import user_name
from scache.unix.paths import UntrustedError, followed, open_ours
from tests.support.as_user import UID
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon
from tests.support.dialogue import eventually
from tests.support.postfix_setup import private_directory
from tests.support.store_fixture import Opened

USER = user_name(UID)


@pytest.fixture
def shared() -> Iterator[Path]:
    """Make a directory with the mode of /tmp."""
    with private_directory() as directory:
        directory.chmod(0o1777)
        yield directory


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Return the path of a file in a directory that only this user may write to."""
    (tmp_path / "ours").mkdir()
    return tmp_path / "ours" / "target"


def give(path: Path) -> Path:
    """Give a file or a link to another user."""
    os.chown(path, UID, UID, follow_symlinks=False)
    return path


def link(path: Path, target: Path | str, *, ours: bool = False) -> Path:
    """Make a link that belongs to another user, or to this one."""
    path.symlink_to(target)
    return path if ours else give(path)


@pytest.mark.root
class TestFollowed:
    def test_own_link_is_followed(self, shared: Path, target: Path) -> None:
        """A link to a link is followed, and so is a link to a file that does not exist."""
        link(shared / "a", target, ours=True)
        link(shared / "b", "a", ours=True)
        link(target.parent / "c", f"{shared}/b", ours=True)
        assert followed(f"{target.parent}/../ours/./c") == str(target)

    def test_link_of_the_owner_of_the_directory_is_followed(
        self, shared: Path, target: Path
    ) -> None:
        """The owner of a directory can replace any file in it."""
        link(shared / "a", target)
        give(shared)
        assert followed(str(shared / "a")) == str(target)

    def test_link_of_another_user_in_a_private_directory_is_followed(self, target: Path) -> None:
        """Only the owner of the directory can have created it."""
        link(target.parent / "a", target)
        assert followed(f"{target.parent}/a") == str(target)

    @pytest.mark.parametrize("mode", [0o1777, 0o1755, 0o777, 0o1770])
    @pytest.mark.parametrize("tail", ["", "/deeper", "/../deeper"])
    def test_link_of_another_user_is_refused(
        self, mode: int, tail: str, shared: Path, target: Path
    ) -> None:
        """The link may be the last part of a path, another part, or part of a link's target."""
        shared.chmod(mode)
        link(shared / "a", target.parent)
        link(target.parent / "b", f"{shared}/a{tail}", ours=True)
        for path in (f"{shared}/a{tail}", f"{target.parent}/b", f"{target.parent}/b/c"):
            with pytest.raises(UntrustedError, match=f"{shared}/a is a link of user {USER}, and"):
                followed(path)

    def test_loop_of_links_is_an_error(self, target: Path) -> None:
        """The limit is that of the kernel."""
        link(target, target.name, ours=True)
        with pytest.raises(OSError, match="Too many levels"):
            followed(str(target))

    def test_relative_path_stays_relative(
        self, shared: Path, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The targets of the links are relative, too."""
        monkeypatch.chdir(target.parent)
        link(target.parent / "a", "target", ours=True)
        link(target.parent / "b", "../../x", ours=True)
        assert followed("a") == "target"
        assert followed("b") == "../../x"
        assert followed("./none/../x") == "none/../x"
        link(shared / "a", target)
        with pytest.raises(UntrustedError):
            followed(os.path.relpath(shared / "a"))


Place = Callable[[Path, Path], Path]


def a_link(shared: Path, target: Path) -> Path:
    """Create a link at the path."""
    return link(shared / "name", target)


def a_directory(shared: Path, target: Path) -> Path:
    """Create a link in place of the directory."""
    return link(shared / "directory", target.parent) / target.name


def a_fifo(shared: Path, _: Path) -> Path:
    """Create a FIFO without a writer at the path."""
    os.mkfifo(shared / "name", 0o666)
    (shared / "name").chmod(0o666)
    return give(shared / "name")


def a_hard_link(shared: Path, target: Path) -> Path:
    """Create a hard link to a file of this user at the path."""
    if not target.exists():
        target.write_bytes(b"")
    os.link(target, shared / "name")
    return shared / "name"


def a_file(shared: Path, _: Path) -> Path:
    """Create a file of another user at the path."""
    (shared / "name").touch(0o666)
    return give(shared / "name")


PLACES = [a_link, a_directory, a_fifo, a_hard_link]


def said(code: int, *command: str | Path) -> str:
    """Run a command that fails with this code and does not block; return its message."""
    done = run_command("timeout", "-k", "1", "60", *SCACHE, *map(str, command))
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.root
class TestCommands:
    @pytest.mark.parametrize("place", [*PLACES, a_file])
    def test_daemon_uses_no_database_of_another_user(
        self, place: Place, shared: Path, target: Path, path: Path
    ) -> None:
        """It creates no file at the target of a link either."""
        name = place(shared, target)
        existed = target.exists()
        line = said(EXIT_DATABASE, "serve", "--socket", path, "--database", name)
        assert f"cannot open the database {name}: " in line
        assert target.exists() == existed
        assert not existed or target.read_bytes() == b""

    @pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
    @pytest.mark.parametrize("place", [*PLACES[:1], *PLACES[2:], a_file])
    def test_daemon_uses_no_log_of_another_user(
        self, place: Place, suffix: str, shared: Path, target: Path, path: Path
    ) -> None:
        """SQLite would apply the log to the database."""
        database = shared / "cache.db"
        place(shared, target).rename(f"{database}{suffix}")
        line = said(EXIT_DATABASE, "serve", "--socket", path, "--database", database)
        assert f"{database}{suffix} is " in line or f"{database}{suffix} has " in line

    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("command", ["check", "events"])
    def test_command_reads_no_database_through_a_link_of_another_user(
        self, place: Place, command: str, shared: Path, target: Path
    ) -> None:
        """The same holds for a FIFO and a hard link."""
        with Opened(target):
            pass
        name = place(shared, target)
        line = said(EXIT_DATABASE, command, "--database", name)
        assert f"the database {name} " in line

    def test_command_reads_the_database_of_another_users_daemon(self, shared: Path) -> None:
        """Only links, FIFOs and hard links are refused."""
        with Opened(shared / "cache.db"):
            pass
        give(shared / "cache.db")
        done = run_command(*SCACHE, "check", "--database", str(shared / "cache.db"))
        assert done.returncode == EXIT_OK, done.stderr

    @pytest.mark.parametrize("suffix", ["-wal", "-journal"])
    @pytest.mark.parametrize("place", [a_fifo, a_link, a_file])
    def test_command_reads_no_log_of_another_user(
        self, place: Place, suffix: str, shared: Path, target: Path
    ) -> None:
        """It would block on a FIFO without a writer."""
        with Opened(shared / "cache.db"):
            pass
        place(shared, target).rename(f"{shared}/cache.db{suffix}")
        line = said(EXIT_DATABASE, "check", "--database", shared / "cache.db")
        assert f"{shared}/cache.db{suffix} is " in line

    @pytest.mark.parametrize("place", [a_link, a_directory, a_fifo])
    def test_dump_is_not_written_through_a_link_of_another_user(
        self, place: Place, shared: Path, target: Path, tmp_path: Path
    ) -> None:
        """This holds if an earlier dump would be replaced, too."""
        with Opened(tmp_path / "cache.db"):
            pass
        name = place(shared, target)
        line = said(EXIT_DATABASE, "dump", "--database", tmp_path / "cache.db", "--output", name)
        assert str(name) in line or str(name.parent) in line
        assert list(target.parent.iterdir()) == []

    def test_dump_replaces_only_one_name_of_a_file_with_hard_links(
        self, shared: Path, target: Path, tmp_path: Path
    ) -> None:
        """The file stays under its other name."""
        with Opened(tmp_path / "cache.db"):
            pass
        dump = [*SCACHE, "dump", "--database", str(tmp_path / "cache.db"), "--output"]
        assert run_command(*dump, str(target)).returncode == EXIT_OK
        before = target.read_bytes()
        os.link(target, shared / "name")
        with closing(sqlite3.connect(tmp_path / "cache.db")) as database:
            database.execute("DELETE FROM setting")
            database.commit()
        assert run_command(*dump, str(shared / "name")).returncode == EXIT_OK
        assert target.read_bytes() == before
        assert (shared / "name").read_bytes() != before

    @pytest.mark.parametrize("place", [*PLACES, a_file])
    def test_configuration_of_another_user_is_not_read(
        self, place: Place, shared: Path, target: Path
    ) -> None:
        """It would choose the database and the users that may connect."""
        name = place(shared, target)
        line = said(EXIT_SETTINGS, "serve", "--show-config", "--config", name)
        assert line.startswith(f"scache: {name}: cannot be read: ")
        assert "other users may write to its directory" in line

    def test_corrupt_database_is_set_aside_in_the_directory_of_a_links_target(
        self, shared: Path, target: Path, path: Path
    ) -> None:
        """No other user can create a link there."""
        target.write_bytes(b"\0" * 68 + b"scac" + b"\0" * 5000)
        name = link(shared / "name", target, ours=True)
        with Daemon(path, database=name) as daemon:
            assert "it is kept as" in daemon.log()[0]
        assert [each.name for each in shared.iterdir()] == ["name"]
        assert any(".corrupt-" in each.name for each in target.parent.iterdir())


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_daemon_refuses_a_fifo_or_directory_as_database(
    make: Callable[[Path], None], path: Path, tmp_path: Path
) -> None:
    """It does not block on the FIFO, even if the FIFO belongs to its own user."""
    make(tmp_path / "cache.db")
    line = said(EXIT_DATABASE, "serve", "--socket", path, "--database", tmp_path / "cache.db")
    assert "is no regular file" in line or "is a directory" in line


def test_daemon_does_not_follow_a_link_of_proc_to_a_deleted_file(
    path: Path, tmp_path: Path
) -> None:
    """SQLite would use the text of the link as a path."""
    with (tmp_path / "cache.db").open("wb") as file:
        (tmp_path / "cache.db").unlink()
        name = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        line = said(EXIT_DATABASE, "serve", "--socket", path, "--database", name)
    assert "leads to a file without a path here" in line
    assert list(tmp_path.iterdir()) == []


def test_open_ours_waits_for_the_writer_of_an_own_fifo(tmp_path: Path) -> None:
    """The text is then read up to the end of the stream."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def read_all() -> bytes:
        with os.fdopen(open_ours(str(fifo)), "rb") as file:
            return file.read()

    def write() -> bool:
        try:
            writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # no process has opened it for reading
            return False
        os.write(writer, b"text")
        os.close(writer)
        return True

    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(read_all)
        eventually(write)
        assert reading.result() == b"text"


@pytest.mark.parametrize("source", ["pipe", "fifo", "link"])
def test_own_configuration_is_read_from_a_pipe_a_fifo_or_a_link(
    source: str, tmp_path: Path
) -> None:
    """A shell's process substitution is a link to a pipe."""
    file, fifo = tmp_path / "config.toml", tmp_path / "fifo"
    file.write_text("max_idle = 4711\n")
    serve = " ".join([*SCACHE, "serve --show-config --config"])
    match source:
        case "pipe":
            script = f"{serve} <(cat {file})"
        case "fifo":
            os.mkfifo(fifo)
            script = f"cat {file} >{fifo} & {serve} {fifo}; wait"
        case _:
            (tmp_path / "link").symlink_to(file)
            script = f"{serve} {tmp_path}/link"
    done = subprocess.run(
        ["timeout", "60", "bash", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == EXIT_OK, done.stderr
    assert "max_idle = 4711" in done.stdout
