"""The socket that a command connects to, and its message if no daemon answers there."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from scache import errors
from scache.settings.declarations import default_socket
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon
from tests.support.looking import Capture, StubDaemon, failure, run
from tests.support.scripted import hang, saying, serving, then


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name a configuration file in SCACHE_CONFIG."""
    path = tmp_path / "scache.toml"
    path.write_text('socket = "/from/file"\nttl_limit = 60\n')
    monkeypatch.setenv("SCACHE_CONFIG", str(path))
    return path


def test_daemon_socket_is_option_then_variable_then_file(
    daemon: StubDaemon,
    filled: Path,
    config: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The order is that of ``scache serve``."""
    daemon.file = filled
    run(capsys, "sql", "SELECT 1")
    config.write_text("ttl_limit = 60\n")
    run(capsys, "sql", "SELECT 1")
    config.write_text('socket = "/from/file"\n')
    monkeypatch.setenv("SCACHE_SOCKET", "/from/variable")
    run(capsys, "sql", "SELECT 1")
    run(capsys, "sql", "SELECT 1", "--socket", "/from/option")
    assert daemon.asked == ["/from/file", str(default_socket()), "/from/variable", "/from/option"]


@pytest.mark.parametrize("command", ["dump", "sql x", "stats", "events", "check", "purge --all"])
@pytest.mark.parametrize(
    ("variables", "text", "sentence"),
    [
        ({"SCACHE_SOKET": "/x"}, "", "there is no environment variable SCACHE_SOKET, did you mean"),
        ({"SCACHE_CONFIG": ""}, "", "SCACHE_CONFIG must be a path, not ''"),
        ({"SCACHE_SOCKET": ""}, "", "SCACHE_SOCKET must be a path, not ''"),
        ({}, "soket = '/x'", "there is no setting 'soket', did you mean socket?"),
        ({}, "socket = 5", "socket must be a path, not 5"),
        ({}, "socket", "is not TOML"),
    ],
)
def test_daemon_socket_refuses_settings_that_serve_refuses(
    config: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    variables: dict[str, str],
    text: str,
    sentence: str,
) -> None:
    """A misspelled name does not silently mean the default socket."""
    config.write_text(text)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, said = failure(capsys, *command.split())
    assert (code, sentence in said) == (errors.EXIT_SETTINGS, True)


def test_daemon_socket_option_and_file_need_no_configuration(
    daemon: StubDaemon, filled: Path, config: Path, capsys: Capture
) -> None:
    """A configuration file that this user cannot read is no obstacle then."""
    config.unlink()
    daemon.file = filled
    assert failure(capsys, "sql", "SELECT 1")[0] == errors.EXIT_SETTINGS
    run(capsys, "sql", "SELECT 1", "--socket", "s")
    run(capsys, "sql", "SELECT 1", "--database", filled)


@pytest.mark.parametrize(
    ("variables", "arguments", "origin"),
    [
        ({}, ["--socket", "PATH"], "from --socket"),
        ({"SCACHE_SOCKET": "PATH"}, [], "from environment variable SCACHE_SOCKET"),
        ({"SCACHE_CONFIG": "CONFIG"}, [], "from file CONFIG"),
    ],
)
@pytest.mark.parametrize("command", ["dump", "sql x", "stats", "events", "check", "purge --all"])
def test_absent_daemon_message_names_path_and_origin(
    tmp_path: Path, command: str, variables: dict[str, str], arguments: list[str], origin: str
) -> None:
    """The exit code is 3."""
    path, config = tmp_path / "none", tmp_path / "scache.toml"
    config.write_text(f'socket = "{path}"\n')
    origin = origin.replace("CONFIG", str(config))
    names = {"PATH": str(path), "CONFIG": str(config)}
    result = run_command(
        *SCACHE,
        *command.split(),
        *(names.get(each, each) for each in arguments),
        stdout=subprocess.PIPE,
        **{name: names[value] for name, value in variables.items()},
    )
    assert result.returncode == errors.EXIT_SOCKET
    assert result.stderr == (
        f"scache: cannot connect to the daemon at {path} ({origin}): "
        "there is no such file; start `scache serve`, or name another --socket\n"
    )


def test_absent_daemon_message_names_default_socket() -> None:
    """The default depends on the user and on XDG_RUNTIME_DIR."""
    result = run_command(*SCACHE, "stats", XDG_RUNTIME_DIR="/nowhere")
    said = {
        True: "/run/scache/scache.sock (the default for root): ",
        False: "/nowhere/scache.sock (the default, in XDG_RUNTIME_DIR): ",
    }
    assert f"cannot connect to the daemon at {said[os.geteuid() == 0]}" in result.stderr


def a_file(path: Path) -> None:
    """Make a regular file."""
    path.touch()


def a_stale_socket(path: Path) -> None:
    """Make a socket whose server has ended."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()


def a_link_to_itself(path: Path) -> None:
    """Make a symbolic link that leads nowhere."""
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (a_file, "it is no socket but a regular file; name another"),
        (Path.mkdir, "it is no socket but a directory; name another"),
        (os.mkfifo, "it is no socket but a named pipe; name another"),
        (a_stale_socket, "connection refused, because no process listens on it; start `scache"),
        (a_link_to_itself, "Too many levels of symbolic links; name another"),
    ],
)
def test_path_without_listener_is_explained(
    tmp_path: Path, capsys: Capture, make: Callable[[Path], object], reason: str
) -> None:
    """A path that is no socket is not reported as a daemon that has ended."""
    path = tmp_path / "x"
    make(path)
    code, said = failure(capsys, "stats", "--socket", path)
    assert code == errors.EXIT_SOCKET
    assert said.startswith(f"cannot connect to the daemon at {path} (from --socket): {reason}")


def test_path_in_missing_directory_is_explained(tmp_path: Path, capsys: Capture) -> None:
    """The directory is named."""
    _, said = failure(capsys, "stats", "--socket", tmp_path / "none" / "s")
    assert f": there is no directory {tmp_path / 'none'}; start `scache serve`" in said


def test_datagram_socket_is_named_as_another_service(tmp_path: Path, capsys: Capture) -> None:
    """The socket of syslog is one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "log"))
        _, said = failure(capsys, "stats", "--socket", tmp_path / "log")
    assert "it is a socket of another type, of another service; name another --socket" in said


@contextmanager
def another_service(path: Path, serve: Callable[[socket.socket], object]) -> Iterator[None]:
    """Serve each client of a socket by a function, in threads of this process."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def accept() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client, suppress(OSError):  # the client may be gone
                    serve(client)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("command", ["stats", "purge --all --yes", "events --follow"])
@pytest.mark.parametrize(
    ("serve", "ends_with"),
    [
        (lambda client: client.sendall(b"220 mail.example.org ESMTP\r\n"), errors.EXIT_SOCKET),
        (lambda client: client.shutdown(socket.SHUT_RDWR), errors.EXIT_SOCKET),
        (lambda _: time.sleep(0.3), errors.EXIT_NOT_NOW),
    ],
    ids=["speaks", "hangs-up", "is-silent"],
)
def test_another_service_is_named_by_its_process(
    tmp_path: Path,
    capsys: Capture,
    command: str,
    serve: Callable[[socket.socket], object],
    ends_with: int,
) -> None:
    """It may speak another protocol, hang up, or stay silent."""
    path = tmp_path / "s"
    program = Path("/proc/self/comm").read_text(encoding="utf-8").rstrip()
    with another_service(path, serve):
        options = ("--socket", path, "--timeout", "0.2")
        code, said = failure(capsys, *command.split(), *options)
    assert code == ends_with
    assert f"at {path} (from --socket) " in said
    assert f"; process {os.getpid()} ({program}) listens there" in said
    assert "name another --socket" in said


@pytest.mark.parametrize(
    ("answer", "advised"),
    [(b"220 mail.example.org ESMTP\r\n", False), (b"status\0001\0\0", True)],
    ids=["another service", "no inline mode"],
)
def test_other_users_are_advised_only_if_they_may_help(
    path: Path, capsys: Capture, answer: bytes, advised: bool
) -> None:
    """An earlier daemon has no inline mode for a client that it does not serve."""
    with serving(path, then(saying(answer), hang)):
        _, said = failure(capsys, "stats", "--socket", path)
    assert ("or run the command as a user of its allow_uids" in said) == advised


def test_silent_daemon_is_waited_for_as_long_as_timeout(tmp_path: Path) -> None:
    """After 2 s a line on stderr says that the command waits for the daemon."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        start = time.monotonic()
        command = [*SCACHE, "stats", "--socket", str(path), "--timeout", "2.5"]
        result = run_command(*command)
        took = time.monotonic() - start
    first, second = result.stderr.splitlines()
    assert first == f"scache: waiting for the daemon at {path} (from --socket), for up to 2.5 s"
    assert "did not answer within 2.5 s; process " in second
    assert second.endswith("and if it is busy, raise --timeout")
    assert took >= 2.5


def test_daemon_that_answers_is_not_announced(tmp_path: Path) -> None:
    """Nothing is written to stderr."""
    with Daemon(tmp_path / "s") as daemon:
        result = run_command(*SCACHE, "stats", "--socket", daemon.path)
    assert (result.returncode, result.stderr) == (errors.EXIT_OK, "")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
@pytest.mark.parametrize(
    "option", ["stats --timeout", "stats --watch", "events --follow --interval", "purge --timeout"]
)
def test_seconds_are_a_number_above_zero(
    tmp_path: Path, capsys: Capture, option: str, value: str
) -> None:
    """Each option that takes seconds refuses the same values."""
    code, said = failure(capsys, *option.split(), value, "--socket", tmp_path / "s")
    assert code == errors.EXIT_SETTINGS
    assert re.search("must be a number of seconds above 0 and at most 1000000000, not ", said)
