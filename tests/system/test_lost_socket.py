"""A socket whose path disappears while the daemon runs."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from scache import Client
from scache.daemon.listening_socket import ListeningSocket
from scache.errors import EXIT_OK, EXIT_SOCKET
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon
from tests.support.descriptors import descriptors_of
from tests.support.dialogue import eventually
from tests.support.peer import Parked, take

MODE = 0o640


def remove(path: Path) -> None:
    """Remove the socket."""
    path.unlink()


def move(path: Path) -> None:
    """Move the socket to another name, under which it would still be reachable."""
    path.rename(path.with_name("moved"))


@pytest.mark.parametrize("lose", [remove, move])
def test_daemon_listens_anew_when_its_socket_is_removed(
    lose: Callable[[Path], None], path: Path
) -> None:
    """Connections and clients stay, and the new socket has the same mode and owner."""
    options = ("--max-idle", "0", "--socket-mode", f"{MODE:o}")
    with (
        Daemon(path, *options) as daemon,
        Client(path) as old,
        Parked(old, 60, "e") as parked,
        connected(path) as first,
    ):
        before = len(descriptors_of(daemon.pid))
        lose(path)
        daemon.wait_for_log(f"the socket {path} was removed, and is made anew")
        assert path.stat().st_mode & 0o777 == MODE
        with Client(path) as new, connected(path) as second:
            for own in (first, second):
                assert not new.save_endp(60, "own", "", own)
            take(new.find_endp("e"), parked)
        assert old.find_endp("e") is None
        eventually(lambda: len(descriptors_of(daemon.pid)) <= before)
        assert daemon.terminate() == EXIT_OK
    assert not path.exists()


def connected(path: Path) -> socket.socket:
    """Return a connection to the daemon, which the daemon does not cache."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock


def test_daemon_waits_for_a_removed_directory_of_its_socket(tmp_path: Path) -> None:
    """The log says once which directory is missing."""
    path = tmp_path / "directory" / "socket"
    path.parent.mkdir()
    with Daemon(path) as daemon:
        shutil.rmtree(path.parent)
        daemon.wait_for_log(f"there is no directory {path.parent}: make it first; trying again")
        path.parent.mkdir()
        daemon.wait_for_log("is made anew")
        with Client(path) as client:
            assert client.find_endp("e") is None
        assert sum("there is no directory" in line for line in daemon.log()) == 1


def test_default_socket_is_made_anew_with_its_directory(tmp_path: Path) -> None:
    """A program that cleans up directories has removed both."""
    path = tmp_path / "directory" / "socket"
    with closing(ListeningSocket(path, 0o600, (-1, -1), make_parent=True)) as sock:
        shutil.rmtree(path.parent)
        assert sock.loss() == "removed"
        sock.renew().close()
        assert sock.loss() is None
    assert not path.exists()


@pytest.mark.parametrize("kind", ["file", "socket", "link", "directory"])
def test_daemon_never_replaces_another_file_at_its_path(kind: str, path: Path) -> None:
    """When that file is removed, the daemon listens anew."""
    with Daemon(path) as daemon:
        _put(kind, other := path.with_name("other"))
        if kind == "directory":
            path.unlink()
        other.rename(path)
        daemon.wait_for_log(f"the socket {path} was replaced by another file")
        before = os.lstat(path)
        result = run_command(*SCACHE, "stats", "--socket", path)
        assert result.returncode == EXIT_SOCKET
        assert os.lstat(path).st_ino == before.st_ino
        assert not any("was removed" in line for line in daemon.log())
        path.rename(path.with_name("away"))
        daemon.wait_for_log("is made anew")
        with Client(path) as client:
            assert client.find_endp("e") is None


def _put(kind: str, path: Path) -> None:
    match kind:
        case "file":
            path.touch()
        case "link":
            path.symlink_to("nothing")
        case "directory":
            path.mkdir()
        case _:  # no process listens on it
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))


def test_daemon_goes_on_when_its_socket_is_back(path: Path) -> None:
    """The socket was moved away and another file was in its place."""
    with Daemon(path) as daemon:
        other, moved = path.with_name("other"), path.with_name("moved")
        other.touch()
        os.link(path, moved)
        other.rename(path)
        daemon.wait_for_log("was replaced by another file")
        moved.rename(path)
        daemon.wait_for_log(f"the socket {path} is back")
        with Client(path) as client:
            assert client.find_endp("e") is None
