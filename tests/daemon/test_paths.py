"""Links, FIFOs and files of other users, in a directory that all of them may write to.

All of it is refused, whether this machine's kernel does (fs.protected_symlinks) or not.
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
    """Make a directory as /tmp is one."""
    with private_directory() as directory:
        directory.chmod(0o1777)
        yield directory


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Name a file in a directory of ours alone."""
    (tmp_path / "ours").mkdir()
    return tmp_path / "ours" / "target"


def give(path: Path) -> Path:
    """Give what lies at a path, be it a link, to another user."""
    os.chown(path, UID, UID, follow_symlinks=False)
    return path


def link(path: Path, target: Path | str, *, ours: bool = False) -> Path:
    """Make a link of another user, or one of ours."""
    path.symlink_to(target)
    return path if ours else give(path)


@pytest.mark.root
class TestFollowed:
    def test_a_link_of_ours_is_followed(self, shared: Path, target: Path) -> None:
        """Also one to a link, and to what does not exist."""
        link(shared / "a", target, ours=True)
        link(shared / "b", "a", ours=True)
        link(target.parent / "c", f"{shared}/b", ours=True)
        assert followed(f"{target.parent}/../ours/./c") == str(target)

    def test_a_link_of_the_owner_of_the_directory_is_followed(
        self, shared: Path, target: Path
    ) -> None:
        """Who owns a directory may put anything there."""
        link(shared / "a", target)
        give(shared)
        assert followed(str(shared / "a")) == str(target)

    def test_a_link_in_a_directory_of_its_own_is_followed(self, target: Path) -> None:
        """Nobody but the owner of the directory has put it there."""
        link(target.parent / "a", target)
        assert followed(f"{target.parent}/a") == str(target)

    @pytest.mark.parametrize("mode", [0o1777, 0o1755, 0o777, 0o1770])
    @pytest.mark.parametrize("tail", ["", "/deeper", "/../deeper"])
    def test_a_link_of_another_user_is_refused(
        self, mode: int, tail: str, shared: Path, target: Path
    ) -> None:
        """At the end of the path or within it, and where a link of ours leads through it."""
        shared.chmod(mode)
        link(shared / "a", target.parent)
        link(target.parent / "b", f"{shared}/a{tail}", ours=True)
        for path in (f"{shared}/a{tail}", f"{target.parent}/b", f"{target.parent}/b/c"):
            with pytest.raises(UntrustedError, match=f"{shared}/a is a link of user {USER}, and"):
                followed(path)

    def test_links_in_a_circle_are_an_error(self, target: Path) -> None:
        """As many as the kernel would follow."""
        link(target, target.name, ours=True)
        with pytest.raises(OSError, match="Too many levels"):
            followed(str(target))

    def test_a_relative_path_stays_one(
        self, shared: Path, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As far as its links are relative."""
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
    """Put a link in the place."""
    return link(shared / "name", target)


def a_directory(shared: Path, target: Path) -> Path:
    """Put a link in the place of its directory."""
    return link(shared / "directory", target.parent) / target.name


def a_fifo(shared: Path, _: Path) -> Path:
    """Put a FIFO that nobody writes to in the place."""
    os.mkfifo(shared / "name", 0o666)
    (shared / "name").chmod(0o666)
    return give(shared / "name")


def a_hard_link(shared: Path, target: Path) -> Path:
    """Put a hard link to a file of ours in the place, as the kernel may allow."""
    if not target.exists():
        target.write_bytes(b"")
    os.link(target, shared / "name")
    return shared / "name"


def a_file(shared: Path, _: Path) -> Path:
    """Put a file of another user in the place."""
    (shared / "name").touch(0o666)
    return give(shared / "name")


PLACES = [a_link, a_directory, a_fifo, a_hard_link]


def said(code: int, *command: str | Path) -> str:
    """Run a command that fails with this code, without waiting for anybody; return its line."""
    done = run_command("timeout", "-k", "1", "60", *SCACHE, *map(str, command))
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.root
class TestCommands:
    @pytest.mark.parametrize("place", [*PLACES, a_file])
    def test_a_daemon_uses_no_file_of_another_user(
        self, place: Place, shared: Path, target: Path, path: Path
    ) -> None:
        """Nor does it make one where that user wants it to."""
        name = place(shared, target)
        existed = target.exists()
        line = said(EXIT_DATABASE, "serve", "--socket", path, "--database", name)
        assert f"cannot open the database {name}: " in line
        assert target.exists() == existed
        assert not existed or target.read_bytes() == b""

    @pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
    @pytest.mark.parametrize("place", [*PLACES[:1], *PLACES[2:], a_file])
    def test_a_daemon_uses_no_log_of_another_user(
        self, place: Place, suffix: str, shared: Path, target: Path, path: Path
    ) -> None:
        """SQLite would do what the log says."""
        database = shared / "cache.db"
        place(shared, target).rename(f"{database}{suffix}")
        line = said(EXIT_DATABASE, "serve", "--socket", path, "--database", database)
        assert f"{database}{suffix} is " in line or f"{database}{suffix} has " in line

    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("command", ["check", "events"])
    def test_a_command_reads_no_file_through_another_user(
        self, place: Place, command: str, shared: Path, target: Path
    ) -> None:
        """Whatever it would show, and whoever would see that."""
        with Opened(target):
            pass
        name = place(shared, target)
        line = said(EXIT_DATABASE, command, "--database", name)
        assert f"the database {name} " in line

    def test_a_command_reads_the_file_of_another_users_daemon(self, shared: Path) -> None:
        """Only links, FIFOs and hard links may be traps."""
        with Opened(shared / "cache.db"):
            pass
        give(shared / "cache.db")
        done = run_command(*SCACHE, "check", "--database", str(shared / "cache.db"))
        assert done.returncode == EXIT_OK, done.stderr

    @pytest.mark.parametrize("suffix", ["-wal", "-journal"])
    @pytest.mark.parametrize("place", [a_fifo, a_link, a_file])
    def test_a_command_reads_no_log_of_another_user(
        self, place: Place, suffix: str, shared: Path, target: Path
    ) -> None:
        """It would wait for a FIFO for ever."""
        with Opened(shared / "cache.db"):
            pass
        place(shared, target).rename(f"{shared}/cache.db{suffix}")
        line = said(EXIT_DATABASE, "check", "--database", shared / "cache.db")
        assert f"{shared}/cache.db{suffix} is " in line

    @pytest.mark.parametrize("place", [a_link, a_directory, a_fifo])
    def test_a_dump_goes_nowhere_through_another_user(
        self, place: Place, shared: Path, target: Path, tmp_path: Path
    ) -> None:
        """Not even to replace an earlier dump."""
        with Opened(tmp_path / "cache.db"):
            pass
        name = place(shared, target)
        line = said(EXIT_DATABASE, "dump", "--database", tmp_path / "cache.db", "--output", name)
        assert str(name) in line or str(name.parent) in line
        assert list(target.parent.iterdir()) == []

    def test_a_dump_replaces_the_name_of_a_hard_link_alone(
        self, shared: Path, target: Path, tmp_path: Path
    ) -> None:
        """The file that has another name as well stays."""
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
    def test_a_configuration_of_another_user_is_not_read(
        self, place: Place, shared: Path, target: Path
    ) -> None:
        """It would say which file becomes the database, and who is let in."""
        name = place(shared, target)
        line = said(EXIT_SETTINGS, "serve", "--show-config", "--config", name)
        assert line.startswith(f"scache: {name}: cannot be read: ")
        assert "other users may write to its directory" in line

    def test_a_corrupt_file_is_set_aside_in_its_own_directory(
        self, shared: Path, target: Path, path: Path
    ) -> None:
        """Beside the file that a link of ours leads to, where no link of another user can be."""
        target.write_bytes(b"\0" * 68 + b"scac" + b"\0" * 5000)
        name = link(shared / "name", target, ours=True)
        with Daemon(path, database=name) as daemon:
            assert "it is kept as" in daemon.log()[0]
        assert [each.name for each in shared.iterdir()] == ["name"]
        assert any(".corrupt-" in each.name for each in target.parent.iterdir())


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_a_daemon_does_not_wait_for_a_fifo(
    make: Callable[[Path], None], path: Path, tmp_path: Path
) -> None:
    """Wherever it lies, and whosever it is."""
    make(tmp_path / "cache.db")
    line = said(EXIT_DATABASE, "serve", "--socket", path, "--database", tmp_path / "cache.db")
    assert "is no regular file" in line or "is a directory" in line


def test_a_daemon_does_not_follow_a_link_of_proc(path: Path, tmp_path: Path) -> None:
    """SQLite would take its text for the name of a file."""
    with (tmp_path / "cache.db").open("wb") as file:
        (tmp_path / "cache.db").unlink()
        name = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        line = said(EXIT_DATABASE, "serve", "--socket", path, "--database", name)
    assert "it has another name here, or none" in line
    assert list(tmp_path.iterdir()) == []


def test_a_fifo_of_ours_is_waited_for(tmp_path: Path) -> None:
    """Until there is a writer, and then to the end."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def read_all() -> bytes:
        with os.fdopen(open_ours(str(fifo)), "rb") as file:
            return file.read()

    def write() -> bool:
        try:
            writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody has opened it to read
            return False
        os.write(writer, b"text")
        os.close(writer)
        return True

    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(read_all)
        eventually(write)
        assert reading.result() == b"text"


@pytest.mark.parametrize("source", ["pipe", "fifo", "link"])
def test_a_configuration_of_ours_may_come_from_anywhere(source: str, tmp_path: Path) -> None:
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
