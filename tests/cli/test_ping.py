"""``scache ping``: its exit codes, and the line for monitors."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from scache import errors
from scache.cli.main import execute
from tests.support.as_user import as_user
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon, stopped
from tests.support.looking import Capture, failure, run
from tests.support.postfix_scache import PostfixScache
from tests.support.postfix_setup import private_directory
from tests.support.scripted import hang, saying, serving, then

Server = Callable[[Path], AbstractContextManager[None]]


@pytest.fixture
def running(path: Path) -> Iterator[Daemon]:
    """Run a daemon."""
    with Daemon(path) as daemon:
        yield daemon


def test_ping_prints_one_line(running: Daemon, capsys: Capture) -> None:
    """It names the socket and the time of the answer."""
    said = run(capsys, "ping", "--socket", running.path)
    assert re.fullmatch(rf"the daemon at {running.path} answers \(after \d+\.\d{{3}} s\)\n", said)


def test_ping_for_nagios_prints_one_line(running: Daemon, capsys: Capture) -> None:
    """The figures of a plugin stand behind a bar."""
    said = run(capsys, "ping", "--nagios", "--socket", running.path)
    assert re.fullmatch(rf"SCACHE OK - {running.path} answers \| time=\d+\.\d{{3}}s\n", said)


def test_ping_takes_the_socket_from_the_environment(running: Daemon) -> None:
    """The other commands do that as well."""
    assert run_command(*SCACHE, "ping", SCACHE_SOCKET=str(running.path)).returncode == 0


@contextmanager
def listening(path: Path, backlog: int, clients: int = 0) -> Iterator[None]:
    """Listen without accepting; connect this number of clients."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(path))
        server.listen(backlog)
        for _ in range(clients):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        yield


@contextmanager
def a_silent_server(path: Path) -> Iterator[None]:
    """Listen, and never answer."""
    with listening(path, 5):
        yield


@contextmanager
def a_mail_server(path: Path) -> Iterator[None]:
    """Greet as another service does, and wait for its commands."""
    with serving(path, then(saying(b"220 mail.example.org ESMTP\r\n"), hang)):
        yield


@contextmanager
def a_full_backlog(path: Path) -> Iterator[None]:
    """Listen, with no room for another client."""
    with listening(path, 0, 1):
        yield


@contextmanager
def a_stopped_daemon(path: Path) -> Iterator[None]:
    """Run a daemon that is stopped."""
    with Daemon(path) as daemon, stopped(daemon.pid):
        yield


@contextmanager
def a_file(path: Path) -> Iterator[None]:
    """Make a regular file."""
    path.touch()
    yield


@contextmanager
def nothing(_: Path) -> Iterator[None]:
    """Make nothing."""
    yield


@contextmanager
def a_daemon_with_a_client(path: Path) -> Iterator[None]:
    """Run a daemon at its limit on clients."""
    with Daemon(path, "--max-clients", "1"), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert client.recv(1)
        yield


@pytest.mark.parametrize(
    ("server", "code", "text"),
    [
        (a_silent_server, errors.EXIT_NOT_NOW, "did not answer within 0.4 s"),
        (a_mail_server, errors.EXIT_SOCKET, "does not answer as a scache daemon"),
        (a_full_backlog, errors.EXIT_NOT_NOW, "did not answer within 0.4 s"),
        (a_stopped_daemon, errors.EXIT_NOT_NOW, "did not answer within 0.4 s"),
        (a_file, errors.EXIT_SOCKET, "it is no socket but a regular file"),
        (nothing, errors.EXIT_SOCKET, "there is no such file"),
        (a_daemon_with_a_client, errors.EXIT_REFUSED, "does not serve this client: limit: clients"),
    ],
)
def test_ping_without_answer_is_one_sentence_in_time(
    path: Path, capsys: Capture, server: Server, code: int, text: str
) -> None:
    """A monitor gets the same sentence as the line of a plugin, and exit code 2."""
    options = ("--timeout", "0.4", "--socket", str(path))
    with server(path):
        begin = time.monotonic()
        ended, sentence = failure(capsys, "ping", *options)
        assert time.monotonic() - begin < 2
        assert (ended, text in sentence) == (code, True)
        assert execute(["ping", "--nagios", *options]) == 2
    said = capsys.readouterr()
    assert said.err == ""
    (line,) = said.out.splitlines()
    assert line.startswith("SCACHE CRITICAL - ")
    assert text in line


def test_ping_gives_up_after_a_second(path: Path) -> None:
    """This is the default of ``--timeout``."""
    with a_silent_server(path):
        begin = time.monotonic()
        result = run_command(*SCACHE, "ping", "--socket", path)
        assert 1 <= time.monotonic() - begin < 4
    assert (result.returncode, result.stdout) == (errors.EXIT_NOT_NOW, "")
    assert "did not answer within 1 s" in result.stderr


def test_ping_for_nagios_escapes_the_bar(tmp_path: Path, capsys: Capture) -> None:
    """It would begin the figures."""
    assert execute(["ping", "--nagios", "--socket", str(tmp_path / "a|b\n")]) == 2
    assert rf"{tmp_path}/a\x7cb\n (from" in capsys.readouterr().out


def test_ping_for_nagios_reports_wrong_settings(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty variable is one."""
    monkeypatch.setenv("SCACHE_SOCKET", "")
    assert execute(["ping", "--nagios"]) == 2
    assert "SCACHE CRITICAL - SCACHE_SOCKET must be a path" in capsys.readouterr().out


@pytest.mark.root
@pytest.mark.parametrize("options", [("--allow-uids", "0"), ("--socket-mode", "0600")])
def test_ping_of_a_user_who_is_not_permitted(capsys: Capture, options: tuple[str, str]) -> None:
    """The daemon does not serve the user, or the socket does not let the user in."""
    with private_directory() as directory:
        path = directory / "socket"
        modes = () if "--socket-mode" in options else ("--socket-mode", "0666")
        with Daemon(path, *options, *modes):
            code, _ = as_user(lambda: failure(capsys, "ping", "--socket", path))
            assert code == errors.EXIT_REFUSED
            assert execute(["ping", "--socket", str(path)]) == errors.EXIT_OK


@pytest.mark.postfix
def test_ping_of_postfix_scache(capsys: Capture) -> None:
    """Its answer to another request is enough."""
    with PostfixScache() as postfix:
        run(capsys, "ping", "--socket", Path(os.fspath(postfix.path)))
