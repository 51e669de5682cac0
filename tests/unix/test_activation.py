"""The listening socket that a supervisor passes (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from scache.errors import EXIT_SOCKET
from tests.support.commands import SCACHE, clean_environment
from tests.support.wire import DEADLINE, Wire

_START = """
import os, sys

names, count, *rest = sys.argv[1:]
descriptors, command = rest[: int(count)], rest[int(count) :]
copies = [os.dup(int(each)) for each in descriptors]
for number, copy in enumerate(copies, 3):
    os.dup2(copy, number)
    os.set_inheritable(number, True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": names}
os.execvp(command[0], command)
"""


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    """Listen at a path, as a supervisor does."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "activated"))
        sock.listen()
        yield sock


def start(
    *sockets: socket.socket, names: str = "", options: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start the daemon with these sockets as descriptors from 3 on."""
    numbers = [str(sock.fileno()) for sock in sockets]
    command = (sys.executable, "-c", _START, names, str(len(sockets)), *numbers, *SCACHE, "serve")
    return subprocess.Popen(
        [*command, *options],
        env=clean_environment(),
        pass_fds=[sock.fileno() for sock in sockets],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_daemon_serves_an_activated_socket_and_leaves_its_path(listening: socket.socket) -> None:
    """The supervisor goes on listening after the daemon has stopped."""
    with start(listening) as process:
        path = Path(listening.getsockname())
        with Wire(path) as client:
            client.announcement()
        process.terminate()
        _, log = process.communicate(timeout=DEADLINE)
    assert f"listening on {path}" in log
    assert "warning" not in log
    assert process.returncode == 0
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(path))


@pytest.mark.parametrize("same", [True, False])
def test_daemon_warns_of_an_activated_socket_that_its_settings_do_not_name(
    same: bool, listening: socket.socket
) -> None:
    """Clients of the path that the settings name would find no daemon there."""
    path = Path(listening.getsockname())
    named = path if same else path.with_name("named")
    with start(listening, options=["--socket", str(named)]) as process:
        with Wire(path) as client:
            client.announcement()
        process.terminate()
        _, log = process.communicate(timeout=DEADLINE)
    warning = f"warning: socket = {named} is ignored, because the supervisor passed {path}"
    assert (warning in log) == (not same)


@pytest.mark.parametrize("replaced", [False, True])
def test_daemon_warns_of_an_activated_socket_that_is_not_at_its_path(
    replaced: bool, listening: socket.socket
) -> None:
    """The supervisor keeps listening on a socket whose file was renamed or replaced."""
    path = Path(listening.getsockname())
    moved = path.rename(path.with_name("moved"))
    reason = "another file has its place" if replaced else "it was removed or renamed"
    with socket.socket(socket.AF_UNIX) as another:
        if replaced:
            another.bind(str(path))
            another.listen()
        with start(listening) as process:
            with Wire(moved) as client:
                client.announcement()
            process.terminate()
            _, log = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert f"is not at its path {path} any more ({reason}), so clients cannot reach" in log


def test_daemon_chooses_the_activated_socket_by_its_name(listening: socket.socket) -> None:
    """FileDescriptorName=scache marks the one to serve, of several."""
    other, _ = socket.socketpair()
    with other, _, start(other, listening, names="other:scache") as process:
        with Wire(Path(listening.getsockname())) as client:
            client.announcement()
        process.terminate()
        process.communicate(timeout=DEADLINE)
    assert process.returncode == 0


def make_stream(tmp_path: Path) -> socket.socket:
    """Return a UNIX socket that does not listen."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "other"))
    return sock


def make_datagram(_: Path) -> socket.socket:
    """Return a UNIX socket for datagrams."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def make_tcp(_: Path) -> socket.socket:
    """Return a TCP socket that listens."""
    return socket.create_server(("127.0.0.1", 0))


@pytest.mark.parametrize("make", [make_stream, make_datagram, make_tcp])
def test_daemon_refuses_another_kind_of_activated_socket(make: object, tmp_path: Path) -> None:
    """The message names the descriptor and says what the socket unit should have."""
    assert callable(make)
    with make(tmp_path) as sock, start(sock) as process:
        _, log = process.communicate(timeout=DEADLINE)
    assert "descriptor 3 is not a listening UNIX stream socket" in log
    assert process.returncode == EXIT_SOCKET


def test_daemon_refuses_an_activated_abstract_socket() -> None:
    """It has no file mode, so any user could connect."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("")  # the kernel chooses a name
        sock.listen()
        with start(sock) as process:
            _, log = process.communicate(timeout=DEADLINE)
    assert "descriptor 3 is an abstract socket" in log
    assert process.returncode == EXIT_SOCKET


def test_daemon_refuses_several_activated_sockets_without_names(listening: socket.socket) -> None:
    """It cannot know which of them to serve."""
    with start(listening, listening, names="a:b") as process:
        _, log = process.communicate(timeout=DEADLINE)
    assert "the supervisor passed 2 sockets" in log
    assert process.returncode == EXIT_SOCKET


def test_daemon_ignores_variables_for_another_process(tmp_path: Path) -> None:
    """LISTEN_PID names the process that the sockets are for."""
    environment = clean_environment(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
    path = tmp_path / "socket"
    with subprocess.Popen(
        [*SCACHE, "serve", "--socket", str(path)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert f"listening on {path}" in process.stderr.readline()
        process.terminate()
        process.communicate(timeout=DEADLINE)


@pytest.mark.parametrize("kind", ["removed", "replaced"])
def test_activated_daemon_ends_when_the_socket_of_its_supervisor_is_lost(
    kind: str, listening: socket.socket
) -> None:
    """Only the supervisor can make it anew."""
    path = Path(listening.getsockname())
    with start(listening) as process:
        assert process.stderr is not None
        assert "listening on" in process.stderr.readline()
        if kind == "replaced":
            other = path.with_name("other")
            other.touch()
            other.rename(path)
        else:
            path.unlink()
        log = process.stderr.read()
    assert process.returncode == EXIT_SOCKET
    assert f"the socket {path}, which the supervisor made, was {kind}" in log
    assert path.exists() == (kind == "replaced")
