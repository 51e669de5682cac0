"""The command line: one line for each error, a documented exit code, no traceback."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scache import __version__, errors
from scache.cli.main import EXIT_INTERRUPTED, execute
from scache.settings.declarations import SETTINGS, Settings
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon, DaemonProcess
from tests.support.looking import Capture, ReplaceDaemon
from tests.support.store_fixture import NOW, Opened


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.SocketError, errors.EXIT_SOCKET),
        (errors.DatabaseError, errors.EXIT_DATABASE),
        (errors.SettingsError, errors.EXIT_SETTINGS),
    ],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_startup_error_is_one_line_and_its_exit_code(
    capsys: Capture,
    replace_daemon: ReplaceDaemon,
    error: type[errors.StartupError],
    code: int,
    grouped: bool,
) -> None:
    """So it is for an error that a task group has wrapped."""

    def run(_: Settings) -> int:
        if grouped:
            raise ExceptionGroup("tasks", [error("the sky is down: wait")])
        raise error("the sky is down: wait")

    replace_daemon(run)
    assert execute(["serve"]) == code
    assert capsys.readouterr().err == "scache: the sky is down: wait\n"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        ImportError(f"_sqlite3.so: cannot open shared object file: {os.strerror(errno.EMFILE)}"),
    ],
    ids=["open", "dlopen"],
)
def test_lack_of_descriptors_names_the_limit(
    capsys: Capture, replace_daemon: ReplaceDaemon, error: Exception
) -> None:
    """An import fails with the text of dlopen(3), without its error number."""

    def run(_: Settings) -> int:
        raise error

    replace_daemon(run)
    assert execute(["serve"]) == errors.EXIT_NOT_NOW
    text = "scache: out of descriptors: raise the limit on open files (ulimit -n)\n"
    assert capsys.readouterr().err == text


@pytest.mark.parametrize("level", ["info", "debug"])
def test_unforeseen_exception_asks_for_a_report(
    capsys: Capture, replace_daemon: ReplaceDaemon, level: str
) -> None:
    """It is one line; at the log level debug a traceback follows."""

    def run(_: Settings) -> int:
        raise LookupError("nothing\nthere")

    replace_daemon(run)
    assert execute(["serve", "--log-level", level]) == errors.EXIT_FAILURE
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == r"scache: unforeseen LookupError: nothing\nthere (please report it)"
    assert bool(rest) == (level == "debug")


def test_interrupt_before_daemon_handles_signals_is_silent(
    capsys: Capture, replace_daemon: ReplaceDaemon
) -> None:
    """The exit code is that of an interrupt."""

    def run(_: Settings) -> int:
        raise KeyboardInterrupt

    replace_daemon(run)
    assert execute(["serve"]) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == ""


def test_serve_returns_exit_code_of_daemon(replace_daemon: ReplaceDaemon) -> None:
    """The process ends with the value that the daemon returned."""
    replace_daemon(lambda _: 7)
    assert execute(["serve"]) == 7


def test_version_is_one_line(capsys: Capture) -> None:
    """It has the name of the program and its version."""
    assert execute(["--version"]) == errors.EXIT_OK
    assert capsys.readouterr().out == f"scache {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_commands(capsys: Capture, arguments: list[str]) -> None:
    """It is shown without arguments as well."""
    assert execute(arguments) == errors.EXIT_OK
    said = capsys.readouterr().out
    assert "serve" in said
    assert "..." not in said.partition("Commands:")[2], "each summary fits a line"


def test_missing_choice_is_one_line(capsys: Capture) -> None:
    """Click lists the choices on lines of their own."""
    assert execute(["unit"]) == errors.EXIT_SETTINGS
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("Choose from: service, socket, exporter")


def test_help_of_serve_works_with_wrong_variables(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who has set a wrong variable can still read the names of the settings."""
    monkeypatch.setenv("SCACHE_NONSENSE", "1")
    monkeypatch.setenv("SCACHE_CONFIG", "/nowhere/scache.toml")
    assert execute(["serve", "--help"]) == errors.EXIT_OK
    text = capsys.readouterr().out
    assert all(setting.option in text for setting in SETTINGS)


@pytest.mark.parametrize("line", ["--help", "--version", "serve --help", "serve --show-config"])
def test_closed_pipe_ends_command_silently(line: str) -> None:
    """The process ends by SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        result = run_command(*SCACHE, *line.split(), stdout=closed)
    assert result.stderr == ""
    assert result.returncode == -signal.SIGPIPE


def test_cli_imports_nothing_of_a_running_daemon() -> None:
    """Reading options takes little time."""
    heavy = {"anyio", "asyncio", "aiosqlite", "sqlite3", "tomllib", "prometheus_client"}
    heavy |= {"scache.daemon", "scache.screens"}
    script = f"import sys, scache.cli; sys.exit(' '.join({heavy} & set(sys.modules)))"
    assert run_command(sys.executable, "-c", script).stderr.strip() == ""


def test_daemon_imports_only_libraries_that_it_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries of the client, of the commands and of the tests are not loaded."""
    bare = imported(run_command(sys.executable, "-X", "importtime", "-c", "pass").stderr)
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    with Daemon(tmp_path / "socket") as daemon:
        log = "\n".join(daemon.log())
    modules = imported(log) - bare
    packages = {name.partition(".")[0] for name in modules}
    assert "scache.daemon.server" in modules
    assert "scache.client" not in modules
    libraries = {"scache", "click", "anyio", "aiosqlite", "sniffio", "typing_extensions"}
    assert packages - sys.stdlib_module_names - {"org"} <= libraries
    for_others = {"json", "csv", "tomllib", "difflib", "readline", "shutil", "tempfile"}
    assert not packages & (for_others | {"http", "email", "multiprocessing", "trio", "argparse"})


@pytest.mark.parametrize("line", ["stats", "dump", "check", "events", "sql 'SELECT 1'"])
def test_command_that_reads_a_file_imports_no_async_libraries(line: str, tmp_path: Path) -> None:
    """They would add half of the time that the command takes."""
    file = tmp_path / "cache.db"
    with Opened(file) as opened:
        opened.run(opened.database.stop(NOW))
    command = (sys.executable, "-X", "importtime", "-m", "scache", *shlex.split(line))
    result = run_command(*command, "--database", file)
    assert result.returncode == errors.EXIT_OK, result.stderr
    assert "scache.inspection.image" in imported(result.stderr)
    assert not imported(result.stderr) & {"asyncio", "anyio", "aiosqlite"}


def imported(log: str) -> set[str]:
    """Return the modules that ``-X importtime`` reports."""
    return {line.rpartition("|")[2].strip() for line in log.splitlines() if "|" in line}


def test_module_runs_as_the_command(tmp_path: Path) -> None:
    """``python -m scache`` is the command; the log says what it serves, and how to look inside."""
    socket = tmp_path / "s"
    with DaemonProcess((*SCACHE, "serve", "--socket", str(socket))) as daemon:
        prefix = f"scache[{daemon.pid}]: "
        look = f"scache stats --socket {socket}"
        text = f"listening on {socket}, database :memory:; look inside with `{look}`"
        assert daemon.log() == [f"{prefix}{text}"]
        assert daemon.terminate() == errors.EXIT_OK


def test_failed_start_writes_only_to_stderr(tmp_path: Path) -> None:
    """The message is one line."""
    socket = str(tmp_path / "missing" / "s")
    result = run_command(*SCACHE, "serve", "--socket", socket, stdout=subprocess.PIPE)
    assert result.returncode == errors.EXIT_SOCKET
    assert result.stdout == ""
    assert result.stderr.startswith("scache: ")
    assert result.stderr.count("\n") == 1
