"""Bad surroundings: one clear line and an exit code at the start, and going on while running."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from scache import Client, Found, Unavailable
from scache.daemon import listening_socket
from scache.daemon.listener import Listener
from scache.daemon.poller import Poller
from scache.errors import EXIT_DATABASE, EXIT_SOCKET, SocketError
from scache.store import COMMIT_INTERVAL, FAULT_RETRY_INTERVAL
from scache.unix.closing import Closer
from tests.support.commands import SCACHE, clean_environment, listening, run_command
from tests.support.daemon import Daemon
from tests.support.dialogue import DEADLINE, eventually
from tests.support.peer import Parked
from tests.support.store_fixture import NOW, Opened, locked, read

SOME_DESCRIPTOR = 0

AS_ROOT = os.geteuid() == 0

UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if AS_ROOT else ()
"""Runs a command for which modes of files count, even if it is root's."""

NAMESPACE = ("unshare", "--mount", *(() if AS_ROOT else ("--map-root-user",)))
"""Runs a command whose mounts nobody else sees, and which go when it ends."""


def refused(socket_path: Path, database: Path | str, code: int, *prefix: str | Path) -> str:
    """Start a daemon that must not start; return its one line."""
    options = ("--socket", socket_path, "--database", database)
    done = run_command(*prefix, *SCACHE, "serve", *options)
    assert done.stdout == ""
    assert done.stderr.startswith("scache: ")
    assert done.stderr.count("\n") == 1
    assert done.returncode == code, done.stderr
    return done.stderr


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Return all there is in a directory: names, modes and bytes."""
    return {
        str(each): (each.lstat().st_mode, each.read_bytes() if each.is_file() else b"")
        for each in directory.rglob("*")
    }


@contextmanager
def unchanged(directory: Path) -> Iterator[None]:
    """Hold that what is done in here changes nothing in a directory."""
    before = contents(directory)
    yield
    assert contents(directory) == before


class TestSocket:
    def test_a_path_of_107_bytes_is_the_longest(self, tmp_path: Path) -> None:
        """A path of 107 bytes works; one more is refused, and named with its length."""
        longest = tmp_path / ("x" * (107 - len(bytes(tmp_path)) - 1))
        with unchanged(tmp_path):
            line = refused(Path(f"{longest}x"), ":memory:", EXIT_SOCKET)
        assert "108 bytes" in line
        with Daemon(longest):
            assert longest.is_socket()

    def test_a_missing_directory(self, tmp_path: Path) -> None:
        """A directory that is not there is not made."""
        with unchanged(tmp_path):
            line = refused(tmp_path / "missing" / "s", ":memory:", EXIT_SOCKET)
        assert f"there is no directory {tmp_path}/missing" in line

    def test_a_directory_that_may_not_be_written(self, tmp_path: Path) -> None:
        """Without the permission to make the socket there is none."""
        directory = tmp_path / "closed"
        directory.mkdir(mode=0o555)
        line = refused(directory / "s", ":memory:", EXIT_SOCKET, *UNPRIVILEGED)
        assert "permission denied" in line

    def test_a_live_daemon_is_left_in_peace(self, path: Path) -> None:
        """A socket that somebody listens on stays his, and he goes on serving."""
        with Daemon(path), Client(path) as client, Parked(client, 60, "e") as parked:
            with unchanged(path.parent):
                assert "another daemon listens" in refused(path, ":memory:", EXIT_SOCKET)
            take(client.find_endp("e"), parked)

    def test_a_listener_that_is_too_busy_to_answer_is_alive(self, path: Path) -> None:
        """A socket whose backlog is full is no stale one."""
        with ExitStack() as stack:
            busy = stack.enter_context(socket.socket(socket.AF_UNIX))
            busy.bind(str(path))
            busy.listen(0)
            with suppress(BlockingIOError):
                while True:
                    waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                    waiting.setblocking(False)
                    waiting.connect(str(path))
            with unchanged(path.parent):
                assert "another daemon listens" in refused(path, ":memory:", EXIT_SOCKET)

    @pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("/")])
    def test_what_is_no_socket_is_not_replaced(
        self, make: Callable[[Path], None], path: Path
    ) -> None:
        """A file, a directory or a link in the place of the socket stays."""
        make(path)
        with unchanged(path.parent):
            assert "is not a socket" in refused(path, ":memory:", EXIT_SOCKET)

    def test_a_stale_socket_is_replaced(self, path: Path) -> None:
        """What a daemon that was killed leaves behind is no obstacle for the next."""
        with Daemon(path) as daemon:
            daemon.kill()
        assert path.is_socket()
        with Daemon(path), Client(path) as client:
            assert client.find_endp("e") is None

    def test_the_socket_goes_with_the_daemon(self, path: Path) -> None:
        """A daemon that stops takes its socket away."""
        with Daemon(path) as daemon:
            assert daemon.terminate() == 0
        assert not path.exists()

    def test_a_socket_that_is_another_daemons_by_now_is_not_taken_away(self, path: Path) -> None:
        """Who finds another socket in the place of his own leaves it there."""
        with Daemon(path) as first:
            path.unlink()
            with Daemon(path), Client(path) as client:
                assert first.terminate() == 0
                assert client.find_endp("e") is None

    def test_mode_and_owner_are_as_set(self, path: Path) -> None:
        """The socket belongs to whom the settings say, with the mode that they say."""
        uid, gid = (12345, 23456) if AS_ROOT else (os.geteuid(), os.getegid())
        options = ("--socket-mode", "0660", "--socket-owner", f"{uid}:{gid}")
        with Daemon(path, *options):
            status = path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o660, uid, gid)

    @pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o000])
    def test_the_socket_never_has_another_mode(
        self, mode: int, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """From its first moment the socket has the mode that was set, whatever the umask."""
        modes = []

        class Watched(socket.socket):
            def bind(self, address: str) -> None:  # type: ignore[override]
                super().bind(address)
                modes.append(stat.S_IMODE(os.lstat(address).st_mode))

        monkeypatch.setattr(socket, "socket", Watched)
        umask = os.umask(0o027)
        try:
            with closing(listening_socket.ListeningSocket(path, mode, (-1, -1))):
                modes.append(stat.S_IMODE(path.stat().st_mode))
        finally:
            assert os.umask(umask) == 0o027
        assert modes == [mode, mode]
        assert not path.exists()

    @pytest.mark.parametrize("moment", ["bind", "chown"])
    def test_a_link_in_its_place_gives_nothing_away(
        self, moment: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who owns the directory, and is to own the socket, gets no file of somebody else."""
        victim, chown = tmp_path / "victim", os.chown
        victim.touch()

        def swap() -> None:
            path.rename(path.with_name("moved"))
            path.symlink_to(victim)

        class Swapped(socket.socket):
            def bind(self, address: str) -> None:  # type: ignore[override]
                super().bind(address)
                swap()

        def swap_and_chown(name: str, uid: int, gid: int) -> None:
            swap()
            chown(name, uid, gid)

        before = victim.stat()
        uid, gid = (12345, 23456) if AS_ROOT else (os.geteuid(), os.getegid())
        if moment == "bind":
            monkeypatch.setattr(socket, "socket", Swapped)
            with pytest.raises(SocketError, match="another process has replaced the socket"):
                listening_socket.ListeningSocket(path, 0o600, (uid, gid))
        else:
            monkeypatch.setattr(os, "chown", swap_and_chown)
            with closing(listening_socket.ListeningSocket(path, 0o600, (uid, gid))):
                assert path.with_name("moved").stat().st_uid == uid
        assert victim.stat() == before
        assert path.is_symlink()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_client_that_cannot_be_accepted_waits(number: int, path: Path) -> None:
    """Be it for the limit of the process or of the machine: it is accepted once it can be."""
    said: list[str] = []

    class Full:
        """The socket of a machine that has no descriptor left, three times."""

        def __init__(self, sock: socket.socket) -> None:
            self._socket = sock
            self.fileno = sock.fileno
            self.close, self.detach = sock.close, sock.detach

        def accept(self) -> tuple[socket.socket, object]:
            if len(said) < 3:
                raise OSError(number, os.strerror(number))
            return self._socket.accept()

    async def accept() -> bytes:
        accepted = asyncio.Event()
        clients = []

        def on_client(client: socket.socket) -> None:
            clients.append(client)
            accepted.set()

        loop = asyncio.get_running_loop()
        listening = listening_socket.ListeningSocket(path, 0o600, (-1, -1))
        listening.socket = Full(listening.socket)  # type: ignore[assignment]
        poller = Poller(loop)
        closer = Closer()
        accepting = Listener(listening, loop, poller, on_client, said.append, closer)
        accepting.start()
        with closing(poller), closing(accepting), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.send(b"hello")
            async with asyncio.timeout(DEADLINE):
                await accepted.wait()
            with clients[0] as served:
                return served.recv(10)

    assert asyncio.run(accept()) == b"hello"
    assert said == [f"cannot accept a client now ({os.strerror(number)}), trying again"] * 3


def answers(path: Path) -> bool:
    """Return whether a daemon answers on this socket, which may not listen yet."""
    with suppress(Unavailable), Client(path) as client:
        return client.find_endp("e") is None
    return False


@pytest.mark.parametrize("shared", ["socket", "database"])
def test_of_daemons_that_start_at_once_one_serves(shared: str, tmp_path: Path) -> None:
    """Four that want the same socket, or the same file, at the same moment: one gets it."""
    with ExitStack() as stack:
        processes = {}
        for number in range(4):
            own = tmp_path / f"{number}"
            socket_path = tmp_path / "socket" if shared == "socket" else own
            database = tmp_path / "cache.db" if shared == "database" else ":memory:"
            process = subprocess.Popen(
                [*SCACHE, "serve", "--socket", socket_path, "--database", database],
                env=clean_environment(),
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes[process] = socket_path
        eventually(lambda: sum(each.poll() is not None for each in processes) == 3)
        (serving,) = (path for each, path in processes.items() if each.poll() is None)
        eventually(lambda: answers(serving))
        code = EXIT_SOCKET if shared == "socket" else EXIT_DATABASE
        for process in processes:
            if process.poll() is not None:
                assert process.returncode == code
                assert process.stderr is not None
                assert process.stderr.read().count("\n") == 1


def make_database(file: Path, user_version: int | None = None) -> None:
    """Leave a database of an earlier run, of a few dozen pages."""
    with Opened(file) as opened:
        for number in range(100):
            values = f"{number}, 'd{number}', 'e', '{'x' * 1000}', {NOW}, {NOW * 2}, 1"
            opened.rows(f"INSERT INTO binding VALUES ({values})")
        opened.run(opened.database.stop(NOW))
    if user_version is not None:
        read(file, f"PRAGMA user_version = {user_version}")


def overwrite_the_middle(file: Path) -> None:
    """Put two pages of garbage into a database."""
    make_database(file)
    with file.open("r+b") as bytes_of_it:
        bytes_of_it.seek(file.stat().st_size // 2 // 4096 * 4096)
        bytes_of_it.write(b"\xa5" * 8192)


def truncate(file: Path) -> None:
    """Cut a database in half."""
    make_database(file)
    os.truncate(file, file.stat().st_size // 2 + 100)


def make_another_programs(file: Path) -> None:
    """Make a database with which we have nothing to do."""
    with closing(sqlite3.connect(file)) as other:
        other.executescript("PRAGMA journal_mode = WAL; CREATE TABLE connection (mine);")


def make_newer(file: Path) -> None:
    """Make a database of a version that does not exist yet."""
    make_database(file, user_version=9999)


class TestDatabase:
    @pytest.mark.parametrize(
        ("make", "text"),
        [
            (Path.mkdir, "is a directory"),
            (lambda file: file.write_text("hello\n"), "is not a SQLite database"),
            (lambda file: file.write_bytes(bytes(range(256)) * 99), "is not a SQLite database"),
            (overwrite_the_middle, "is corrupt"),
            (truncate, "is corrupt"),
            (make_another_programs, "is a database of another program"),
            (make_newer, "was made by a newer version of scache"),
        ],
        ids=["directory", "text", "bytes", "overwritten", "truncated", "another", "newer"],
    )
    def test_what_is_no_database_of_ours_is_left_alone(
        self, make: Callable[[Path], None], text: str, path: Path, tmp_path: Path
    ) -> None:
        """Whatever else is there is refused by what it is, and not a byte of it changes."""
        file = tmp_path / "data" / "cache.db"
        file.parent.mkdir()
        make(file)
        with unchanged(tmp_path):
            assert text in refused(path, file, EXIT_DATABASE, "env", "SCACHE_ON_CORRUPT=refuse")

    def test_a_missing_directory(self, path: Path, tmp_path: Path) -> None:
        """A directory that is not there is not made."""
        with unchanged(tmp_path):
            line = refused(path, tmp_path / "missing" / "cache.db", EXIT_DATABASE)
        assert f"there is no directory {tmp_path}/missing" in line

    @pytest.mark.parametrize("mode", [0o000, 0o400])
    def test_a_file_that_may_not_be_read_or_written(
        self, mode: int, path: Path, tmp_path: Path
    ) -> None:
        """Without the permission to read and write its file the daemon does not start."""
        file = tmp_path / "cache.db"
        make_database(file)
        file.chmod(mode)
        line = refused(path, file, EXIT_DATABASE, *UNPRIVILEGED)
        assert "permission denied" in line

    def test_a_directory_that_may_not_be_written(self, path: Path, tmp_path: Path) -> None:
        """SQLite keeps files beside the database: it has to be able to make them."""
        file = tmp_path / "data" / "cache.db"
        file.parent.mkdir()
        make_database(file)
        file.parent.chmod(0o555)
        with unchanged(tmp_path):
            line = refused(path, file, EXIT_DATABASE, *UNPRIVILEGED)
        assert "its directory" in line

    def test_a_file_in_use_by_another_daemon(self, path: Path, tmp_path: Path) -> None:
        """Two daemons never share a file, and the first one notices nothing."""
        file = tmp_path / "cache.db"
        with Daemon(path, database=file), Client(path) as client:
            line = refused(tmp_path / "other", file, EXIT_DATABASE)
            assert "another scache daemon uses" in line
            assert client.save_dest(60, "d", "q", "e")
        assert not (tmp_path / "other").exists()

    @pytest.mark.slow
    def test_a_file_that_another_program_keeps_locked(self, path: Path, tmp_path: Path) -> None:
        """A start waits a little for a lock, and then says who is in the way."""
        file = tmp_path / "cache.db"
        make_database(file)
        with locked(file):
            assert "locked by another program" in refused(path, file, EXIT_DATABASE)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Name a directory to mount a disk on; fail if this machine does not let us mount."""
    directory = tmp_path / "disk"
    directory.mkdir()
    attempt = subprocess.run(
        on_a_disk(directory, "true", "true"), capture_output=True, text=True, check=False
    )
    if attempt.returncode != 0:
        pytest.fail(
            "this test mounts a disk in a namespace of its own, and this machine does not let it: "
            f"run it as root, or allow unprivileged user namespaces ({attempt.stderr.strip()})"
        )
    return directory


def on_a_disk(directory: Path, prepare: str, *command: str) -> list[str]:
    """Return a command that runs another where a disk of a megabyte is mounted and prepared."""
    script = f'mount -t tmpfs -o size=1m none "$0" && (cd "$0" && {prepare}) && exec "$@"'
    return [*NAMESPACE, "sh", "-c", script, str(directory), *command]


FILL = "cat /dev/zero >ballast 2>&-; true"
READ_ONLY = 'mount -o remount,bind,ro "$PWD"'


class TestDisk:
    @pytest.mark.parametrize("there_already", [True, False])
    @pytest.mark.parametrize(
        ("state", "text"), [(FILL, "disk"), (READ_ONLY, "read-only")], ids=["full", "read-only"]
    )
    def test_a_disk_that_takes_nothing(
        self, state: str, text: str, there_already: bool, path: Path, disk: Path, tmp_path: Path
    ) -> None:
        """On a full or a read-only disk the daemon does not start, and says which it is."""
        prepare = state
        if there_already:
            make_database(tmp_path / "cache.db")
            prepare = f'cp "{tmp_path}/cache.db" . && {state}'
        line = refused(path, disk / "cache.db", EXIT_DATABASE, *on_a_disk(disk, prepare))
        assert text in line

    def test_a_disk_that_the_log_fills(self, path: Path, disk: Path) -> None:
        """It cannot be copied without room, so that less in the cache does not end the fault."""
        options = ("--socket", str(path), "--database", str(disk / "cache.db"))
        command = on_a_disk(disk, "head -c 300000 /dev/zero >ballast", *SCACHE, "serve", *options)
        with listening(command) as (process, _), Client(path) as client:
            labels = ["d"]
            while client.save_dest(60, labels[-1], "q" * 30_000, "e"):
                time.sleep(2 * COMMIT_INTERVAL)  # or one batch would have more than the disk
                labels.append(f"d{len(labels)}")
            client.purge(destinations=labels)
            for _ in range(5):
                time.sleep(2 * FAULT_RETRY_INTERVAL)
                assert not client.save_dest(60, "d", "q", "e")
            Path(f"/proc/{process.pid}/root{disk}/ballast").unlink()
            eventually(lambda: client.save_dest(60, "d", "q", "e"))

    def test_a_disk_that_is_full_for_a_while(self, path: Path, disk: Path, tmp_path: Path) -> None:
        """While the disk refuses, saves fail and finds work; in the end nothing was lost."""
        options = ("--socket", str(path), "--database", str(disk / "cache.db"))
        command = on_a_disk(disk, "true", *SCACHE, "serve", *options)
        with ExitStack() as stack:
            process, _ = stack.enter_context(listening(command))
            client = stack.enter_context(Client(path))
            kept = [stack.enter_context(Parked(client, 60, f"e{number}")) for number in range(3)]
            accepted = ["d"]
            assert client.save_dest(60, "d", "q", "e0")

            def save() -> bool:
                name = f"d{len(accepted)}"
                taken = client.save_dest(60, name, "q" * 30_000, "e2")
                accepted.extend([name] * taken)
                return taken

            inside = Path(f"/proc/{process.pid}/root{disk}")
            fill(inside / "ballast")
            eventually(lambda: not save())
            assert not client.save_endp(60, "e", "p", SOME_DESCRIPTOR)
            take(client.find_dest("d"), kept[0])
            take(client.find_endp("e1"), kept[1])
            (inside / "ballast").unlink()
            eventually(save)
            eventually(lambda: endpoints_and_destinations(inside, tmp_path) == (["e2"], accepted))
            take(client.find_dest(accepted[-1]), kept[2])
            process.terminate()
            assert process.wait(DEADLINE) == 0
            assert process.stderr is not None
            log = process.stderr.read()
        assert log.count("the database cannot be written now") == 1
        assert log.count("the database can be written again; nothing was lost") == 1


def take(found: Found | None, parked: Parked) -> None:
    """Have found a connection, which is this one."""
    assert found is not None
    with found.socket() as connection:
        connection.sendall(b"it is me")
    assert parked.peer.recv(8) == b"it is me"


def fill(ballast: Path) -> None:
    """Write until the disk is full."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(ballast).free == 0


def endpoints_and_destinations(directory: Path, to: Path) -> tuple[list[str], list[str]]:
    """Return what is connected and bound in a database that cannot be opened where it lies."""
    for name in ("cache.db", "cache.db-wal"):
        shutil.copy(directory / name, to / name)
    tables = ("SELECT endpoint FROM connection", "SELECT destination FROM binding")
    endpoints, destinations = (read(to / "cache.db", f"{sql} ORDER BY id") for sql in tables)
    return [row[0].decode() for row in endpoints], [row[0].decode() for row in destinations]


def test_a_file_that_is_locked_for_a_while(path: Path, tmp_path: Path) -> None:
    """While somebody else writes, the answer is no at once, and what expires is closed in time."""
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
