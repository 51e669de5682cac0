"""The start of the daemon on its socket: paths, modes, other daemons, and shortage."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from scache import Client, Unavailable
from scache.daemon import listening_socket
from scache.daemon.listener import Listener
from scache.daemon.poller import Poller
from scache.errors import EXIT_DATABASE, EXIT_SOCKET, SocketError
from scache.unix import fchownat
from scache.unix.closing import Closer
from tests.support.commands import SCACHE, clean_environment
from tests.support.daemon import Daemon
from tests.support.dialogue import DEADLINE, eventually
from tests.support.peer import Parked, take
from tests.support.starting import AS_ROOT, UNPRIVILEGED, refused, unchanged


class TestSocket:
    def test_socket_path_has_107_bytes_at_most(self, tmp_path: Path) -> None:
        """A path of 108 bytes is refused; the message has its length."""
        longest = tmp_path / ("x" * (107 - len(bytes(tmp_path)) - 1))
        with unchanged(tmp_path):
            line = refused(Path(f"{longest}x"), ":memory:", EXIT_SOCKET)
        assert "108 bytes" in line
        with Daemon(longest):
            assert longest.is_socket()

    def test_daemon_does_not_make_a_missing_directory(self, tmp_path: Path) -> None:
        """The message names the directory, which is not made."""
        with unchanged(tmp_path):
            line = refused(tmp_path / "missing" / "s", ":memory:", EXIT_SOCKET)
        assert f"there is no directory {tmp_path}/missing" in line

    def test_daemon_refuses_a_directory_without_write_permission(self, tmp_path: Path) -> None:
        """The message says that the permission is missing."""
        directory = tmp_path / "closed"
        directory.mkdir(mode=0o555)
        line = refused(directory / "s", ":memory:", EXIT_SOCKET, *UNPRIVILEGED)
        assert "permission denied" in line

    def test_daemon_refuses_the_socket_of_a_live_daemon(self, path: Path) -> None:
        """The first daemon keeps its socket and goes on serving."""
        with Daemon(path), Client(path) as client, Parked(client, 60, "e") as parked:
            with unchanged(path.parent):
                assert "another daemon listens" in refused(path, ":memory:", EXIT_SOCKET)
            take(client.find_endp("e"), parked)

    def test_socket_with_a_full_backlog_is_in_use(self, path: Path) -> None:
        """A full backlog does not make a socket stale."""
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
    def test_daemon_does_not_replace_a_file_that_is_not_a_socket(
        self, make: Callable[[Path], None], path: Path
    ) -> None:
        """A file, a directory and a link at the path stay as they are."""
        make(path)
        with unchanged(path.parent):
            assert "is not a socket" in refused(path, ":memory:", EXIT_SOCKET)

    def test_daemon_replaces_a_stale_socket(self, path: Path) -> None:
        """The socket that a killed daemon leaves does not stop the next one."""
        with Daemon(path) as daemon:
            daemon.kill()
        assert path.is_socket()
        with Daemon(path), Client(path) as client:
            assert client.find_endp("e") is None

    def test_daemon_removes_its_socket_at_its_end(self, path: Path) -> None:
        """An orderly stop removes the socket."""
        with Daemon(path) as daemon:
            assert daemon.terminate() == 0
        assert not path.exists()

    def test_daemon_does_not_remove_the_socket_of_another_daemon(self, path: Path) -> None:
        """At its end a daemon leaves the socket that has replaced its own."""
        other = path.with_name("other")
        with Daemon(path) as first, Daemon(other), Client(other) as client:
            assert client.find_endp("e") is None  # connects before the path is gone
            other.rename(path)
            assert first.terminate() == 0
            assert path.is_socket()
            assert client.find_endp("e") is None

    def test_socket_has_the_mode_and_owner_of_the_settings(self, path: Path) -> None:
        """The settings are socket_mode and socket_owner."""
        uid, gid = (12345, 23456) if AS_ROOT else (os.geteuid(), os.getegid())
        options = ("--socket-mode", "0660", "--socket-owner", f"{uid}:{gid}")
        with Daemon(path, *options):
            status = path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o660, uid, gid)

    @pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o000])
    def test_socket_has_its_mode_from_the_first_moment(
        self, mode: int, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The umask has no influence on the mode."""
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
    def test_daemon_never_changes_the_owner_behind_a_link(
        self, moment: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The owner of the directory cannot use a link to become the owner of another file."""
        victim, chown = tmp_path / "victim", fchownat.chown
        victim.touch()

        def swap() -> None:
            path.rename(path.with_name("moved"))
            path.symlink_to(victim)

        class Swapped(socket.socket):
            def bind(self, address: str) -> None:  # type: ignore[override]
                super().bind(address)
                swap()

        def swap_and_chown(handle: int, uid: int, gid: int) -> None:
            swap()
            chown(handle, uid, gid)

        before = victim.stat()
        uid, gid = (12345, 23456) if AS_ROOT else (os.geteuid(), os.getegid())
        if moment == "bind":
            monkeypatch.setattr(socket, "socket", Swapped)
            with pytest.raises(SocketError, match="another process has replaced the socket"):
                listening_socket.ListeningSocket(path, 0o600, (uid, gid))
        else:
            monkeypatch.setattr(fchownat, "chown", swap_and_chown)
            with closing(listening_socket.ListeningSocket(path, 0o600, (uid, gid))):
                assert path.with_name("moved").stat().st_uid == uid
        assert victim.stat() == before
        assert path.is_symlink()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_client_is_accepted_when_descriptors_are_free_again(number: int, path: Path) -> None:
    """The client waits, whether the limit is that of the process or of the machine."""
    said: list[str] = []

    class Full:
        """A socket whose accept(2) fails three times for lack of descriptors."""

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
    """Return True if a daemon answers on this socket."""
    with suppress(Unavailable), Client(path) as client:
        return client.find_endp("e") is None
    return False


@pytest.mark.parametrize("shared", ["socket", "database"])
def test_one_of_four_daemons_that_start_at_once_serves(shared: str, tmp_path: Path) -> None:
    """Only one daemon gets a socket or a file that four daemons want at the same moment."""
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
