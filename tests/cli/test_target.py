"""The daemon or the database file that a command works on."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from scache import NotNow, ProtocolError, Refused, TimedOut, Unavailable, errors
from scache.settings.declarations import default_socket
from tests.support.as_user import as_user
from tests.support.commands import run_command
from tests.support.looking import Capture, StubDaemon, failure, run

pytestmark = pytest.mark.usefixtures("narrow")


def test_target_socket_is_option_then_variable_then_default(
    daemon: StubDaemon, filled: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--socket`` wins over SCACHE_SOCKET; with ``--database`` no daemon is asked."""
    daemon.file = filled
    run(capsys, "sql", "SELECT 1")
    monkeypatch.setenv("SCACHE_SOCKET", "/from/variable")
    run(capsys, "sql", "SELECT 1")
    run(capsys, "sql", "SELECT 1", "--socket", "/from/option")
    assert daemon.asked == [str(default_socket()), "/from/variable", "/from/option"]
    run(capsys, "sql", "SELECT 1", "--database", filled)
    assert len(daemon.asked) == 3


@pytest.mark.parametrize("command", ["dump", "sql x", "stats", "events", "purge --all"])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("no daemon answers at s"), errors.EXIT_SOCKET),
        (Refused("only root may look"), errors.EXIT_REFUSED),
        (ProtocolError("malformed"), errors.EXIT_SOCKET),
        (TimedOut("no answer in time"), errors.EXIT_NOT_NOW),
        (NotNow("no snapshot now", "memory"), errors.EXIT_NOT_NOW),
    ],
    ids=["unavailable", "refused", "malformed", "late", "not now"],
)
def test_target_error_of_daemon_is_one_line(
    daemon: StubDaemon, capsys: Capture, command: str, error: Exception, code: int
) -> None:
    """The exit code tells an absent daemon, a refusal, and a server of another kind apart."""
    daemon.error = error
    ended, sentence = failure(capsys, *command.split())
    assert (ended, str(error) in sentence) == (code, True)


def test_command_out_of_memory_is_one_line(daemon: StubDaemon, capsys: Capture) -> None:
    """It is no bug to report."""
    daemon.error = MemoryError()
    assert failure(capsys, "stats") == (errors.EXIT_NOT_NOW, "out of memory")


@pytest.mark.parametrize(
    ("directory_mode", "who_may"),
    [(0o755, "its owner"), (0o700, "a user who may enter its directory")],
)
@pytest.mark.root
def test_target_without_permission_names_users_who_have_it(
    capsys: Capture, directory_mode: int, who_may: str
) -> None:
    """A user who cannot connect to the socket gets the exit code of a refusal."""
    with TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as daemon:
        path = Path(directory, "socket")
        daemon.bind(str(path))
        daemon.listen()
        path.chmod(0o600)
        path.parent.chmod(directory_mode)
        message = (
            f"cannot connect to the daemon at {path} (from --socket): permission denied; "
            f"run the command as root or as {who_may}"
        )
        refusal = (errors.EXIT_REFUSED, message)
        assert as_user(lambda: failure(capsys, "stats", "--socket", path)) == refusal


@pytest.mark.parametrize("command", ["dump", "sql x", "stats", "events"])
def test_target_is_a_socket_or_a_file(file: Path, capsys: Capture, command: str) -> None:
    """``--socket`` and ``--timeout`` are for a daemon, not for a file."""
    for option in ("--socket", "--timeout"):
        assert failure(capsys, *command.split(), option, "1", "--database", file) == (
            errors.EXIT_SETTINGS,
            f"{option} and --database exclude each other",
        )


@pytest.mark.parametrize("option", ["--socket", "--database"])
def test_target_name_must_not_be_empty(capsys: Capture, option: str) -> None:
    """An empty option may come from a variable that is not set."""
    assert failure(capsys, "stats", option, "") == (
        errors.EXIT_SETTINGS,
        f"{option} must be a path, not ''",
    )


@pytest.mark.parametrize("command", ["dump", "sql x", "stats", "events"])
def test_target_refuses_file_of_another_program(
    tmp_path: Path, capsys: Capture, command: str
) -> None:
    """A file that is not a database of scache is refused by every command."""
    path = tmp_path / "other"
    path.write_text("nonsense" * 100)
    code, sentence = failure(capsys, *command.split(), "--database", path)
    assert (code, "is not a SQLite database" in sentence) == (errors.EXIT_DATABASE, True)


def test_target_refuses_empty_file(tmp_path: Path, capsys: Capture) -> None:
    """The message says that no daemon has used the file yet."""
    path = tmp_path / "new"
    path.touch()
    code, sentence = failure(capsys, "stats", "--database", path)
    assert code == errors.EXIT_DATABASE
    assert sentence == f"the database {path} is empty: no daemon has used it yet"


@pytest.mark.parametrize("layout", ["table", "json", "jsonl", "csv"])
@pytest.mark.parametrize("command", ["dump event", "sql TABLE", "stats", "events"])
def test_command_writes_empty_cache_in_every_format(
    file: Path, capsys: Capture, command: str, layout: str
) -> None:
    """JSON is valid, and tables say that there are no rows."""
    words = [word.replace("TABLE", "SELECT * FROM event") for word in command.split()]
    out = run(capsys, *words, "--database", file, "--format", layout)
    if layout == "json":
        json.loads(out)
    if layout == "table" and command != "stats":
        assert out in ("(no rows)\n", "(no events)\n")


def test_command_help_has_examples(capsys: Capture) -> None:
    """The help of each command ends with examples."""
    for name in ("dump", "sql", "stats", "events", "check", "purge"):
        assert f"\n  Examples:\n    scache {name}" in run(capsys, name, "--help")


def test_command_imports_only_modules_that_it_needs(file: Path) -> None:
    """Reading a file imports neither the daemon nor the client nor the libraries for terminals."""
    script = (
        "import sys; from scache.cli.main import execute;"
        f"execute(['sql', '--database', {str(file)!r}, 'SELECT 1 AS x', '--format', 'csv']);"
        "print([m for m in sys.modules if m.startswith(('scache.daemon', 'scache.cache',"
        " 'scache.client', 'rich', 'prompt_toolkit'))])"
    )
    result = run_command(sys.executable, "-c", script)
    assert result.stdout == '"x"\n1\n[]\n'


def test_tools_dump_runs_scache_dump() -> None:
    """The script of a checkout only runs the command."""
    script = Path(__file__).parents[2] / "tools" / "dump"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").endswith('exec "$venv/bin/scache" dump "$@"\n')
