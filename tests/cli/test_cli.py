"""The command line: one line for each error, an exit code that is documented, no traceback."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from scache import Client, ProtocolError, __version__, errors
from scache.cli.daemon_log import FloodFilter, LineFormatter
from scache.cli.main import EXIT_INTERRUPTED, execute
from scache.escape import one_line
from scache.settings.declarations import SETTINGS, Settings
from tests.support.commands import SCACHE, clean_environment, listening, run_command
from tests.support.daemon import Daemon
from tests.support.wire import DEADLINE, Wire, encode

Run = Callable[[Settings], int]


@pytest.fixture(autouse=True)
def _own_log_level(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no test see another's log level."""
    monkeypatch.setattr(logging, "raiseExceptions", True)
    logger = logging.getLogger("scache")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Put a function in the place of the daemon's own ``run``."""

    def replace(run: Run) -> None:
        module = types.ModuleType("scache.daemon")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "scache.daemon", module)

    return replace


@pytest.fixture
def served(daemon: Callable[[Run], None]) -> list[Settings]:
    """Collect the settings of each daemon that would have run."""
    seen: list[Settings] = []

    def run(settings: Settings) -> int:
        seen.append(settings)
        return errors.EXIT_OK

    daemon(run)
    return seen


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that refuses this command line as a matter of settings."""
    assert execute(arguments) == errors.EXIT_SETTINGS
    output = capsys.readouterr()
    assert output.out == ""
    prefix, _, sentence = output.err.partition(" ")
    assert prefix == "scache:"
    assert sentence.count("\n") == 1
    assert sentence.endswith("\n")
    return sentence.rstrip("\n")


class TestSources:
    """Where a setting may come from, and who goes first."""

    def test_each_source_goes_before_the_next(
        self, served: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The command line goes before the environment, that before the file and the default."""
        file = tmp_path / "scache.toml"
        file.write_text("ttl_limit = 10\nmax_idle = 20\nstatus_interval = 30\n")
        monkeypatch.setenv("SCACHE_TTL_LIMIT", "11")
        monkeypatch.setenv("SCACHE_MAX_IDLE", "21")
        assert execute(["serve", "--config", str(file), "--ttl-limit", "12"]) == errors.EXIT_OK
        (settings,) = served
        assert settings == Settings(ttl_limit=12, max_idle=21, status_interval=30)

    def test_every_setting_has_an_option(self, served: list[Settings], tmp_path: Path) -> None:
        """All that a daemon can be told can be told on the command line."""
        line = (
            f"serve --socket {tmp_path}/s --database {tmp_path}/d --ttl-limit 1.5 --max-idle 0"
            " --status-interval 2 --exchange-timeout 3 --socket-mode 0660 --socket-owner 1:2"
            " --no-announce --log-level error --on-corrupt refuse"
        )
        assert execute(line.split()) == errors.EXIT_OK
        (settings,) = served
        assert settings == Settings(
            socket=tmp_path / "s",
            database=f"{tmp_path}/d",
            on_corrupt="refuse",
            ttl_limit=1.5,
            max_idle=0,
            status_interval=2,
            exchange_timeout=3,
            socket_mode=0o660,
            socket_owner="1:2",
            announce=False,
            log_level="error",
        )

    def test_every_setting_has_a_variable(
        self, served: list[Settings], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each may be given in the environment, in the words of the command line."""
        for setting in SETTINGS:
            monkeypatch.setenv(setting.variable, setting.default)
        monkeypatch.setenv("SCACHE_SOCKET", "s")
        for variable in ("SCACHE_SOCKET_OWNER", "SCACHE_USER"):
            monkeypatch.setenv(variable, "")
        monkeypatch.setenv("SCACHE_ANNOUNCE", "no")
        assert execute(["serve"]) == errors.EXIT_OK
        assert served == [Settings(socket=Path("s"), announce=False)]

    def test_an_option_takes_back_what_a_variable_says(
        self, served: list[Settings], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Even a switch and an owner can be set back to what they are by default."""
        monkeypatch.setenv("SCACHE_ANNOUNCE", "false")
        monkeypatch.setenv("SCACHE_SOCKET_OWNER", "1:2")
        assert execute(["serve", "--announce", "--socket-owner", ""]) == errors.EXIT_OK
        assert served == [Settings()]

    def test_a_variable_names_the_file(
        self, served: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SCACHE_CONFIG is to the environment what --config is to the command line."""
        file = tmp_path / "scache.toml"
        file.write_text('ttl_limit = 7\nsocket_mode = "0666"\nannounce = false\n')
        monkeypatch.setenv("SCACHE_CONFIG", str(file))
        assert execute(["serve"]) == errors.EXIT_OK
        assert served == [Settings(ttl_limit=7, socket_mode=0o666, announce=False)]


class TestShowConfig:
    """``--show-config`` says each value and where it came from."""

    def test_names_the_origin_of_each_value(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every line is a setting, its value, and the source that won."""
        file = tmp_path / "scache.toml"
        file.write_text("max_idle = 20\nttl_limit = 1\n")
        monkeypatch.setenv("SCACHE_TTL_LIMIT", "60")
        options = ["--log-level", "debug", "--no-announce", "--config", str(file)]
        assert execute(["serve", *options, "--show-config"]) == errors.EXIT_OK
        shown = dict(line.split("  # ") for line in capsys.readouterr().out.splitlines())
        origins = {line.rstrip(): origin for line, origin in shown.items()}
        assert origins["ttl_limit = 60"] == "environment variable SCACHE_TTL_LIMIT"
        assert origins["max_idle = 20"] == f"file {file}"
        assert origins['log_level = "debug"'] == "command line"
        assert origins["announce = false"] == "command line"
        assert origins['database = ":memory:"'] == "default"
        assert len(origins) == len(SETTINGS)

    def test_output_is_a_configuration_file(
        self, capsys: pytest.CaptureFixture[str], served: list[Settings], tmp_path: Path
    ) -> None:
        """What it prints, given as --config, makes the same settings."""
        odd = tmp_path / 'a "b" \\ c\nd é'
        options = ["--socket", str(odd), "--socket-mode", "640", "--ttl-limit", "0.1"]
        assert execute(["serve", *options, "--show-config"]) == errors.EXIT_OK
        file = tmp_path / "scache.toml"
        file.write_text(capsys.readouterr().out, encoding="utf-8")
        assert set(tomllib.loads(file.read_text(encoding="utf-8"))) == {s.name for s in SETTINGS}
        assert execute(["serve", "--config", str(file)]) == errors.EXIT_OK
        assert served == [Settings(socket=odd, socket_mode=0o640, ttl_limit=0.1)]

    def test_starts_nothing(
        self, capsys: pytest.CaptureFixture[str], served: list[Settings]
    ) -> None:
        """It shows and ends: no daemon runs."""
        assert execute(["serve", "--show-config"]) == errors.EXIT_OK
        assert capsys.readouterr().err == ""
        assert served == []


class TestRefusals:
    """Every mistake is one line that names what is wrong, and exit code 2."""

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--ttl"], "--ttl"),
            (["extra"], "extra"),
            (["--ttl-limit"], "--ttl-limit"),
            (["--ttl-limit", "abc"], "--ttl-limit must be a number of seconds above 0"),
            (["--max-idle", "nan"], "--max-idle must be a number of seconds from 0"),
            (["--socket-mode", "9"], "--socket-mode must be an octal mode"),
            (["--socket-owner", "no-such-user"], "--socket-owner names a user that does not"),
            (["--log-level", "loud"], "--log-level must be one of debug, info, warning, error"),
            (["--socket", ""], "--socket must be a path, not ''"),
            (["--a\nb"], r"--a\nb"),
            (["--ttl-limit", "\x1b[2J"], r"\x1b[2J"),
        ],
    )
    def test_command_line(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
    ) -> None:
        """An option that does not exist, or has a value that makes no sense, is named."""
        assert sentence in refused(capsys, "serve", *arguments)

    def test_unknown_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A command that does not exist is named."""
        assert "'sevre'" in refused(capsys, "sevre")

    @pytest.mark.parametrize(
        ("variable", "value", "sentence"),
        [
            ("SCACHE_TTL_LIMIT", "0", "SCACHE_TTL_LIMIT must be a number of seconds above 0"),
            ("SCACHE_ANNOUNCE", "maybe", "SCACHE_ANNOUNCE must be true or false, not 'maybe'"),
            ("SCACHE_DATABASE", "", "SCACHE_DATABASE must be a path, not ''"),
            ("SCACHE_TTLLIMIT", "5", "there is no environment variable SCACHE_TTLLIMIT, did you"),
            ("SCACHE_", "", "there is no environment variable SCACHE_"),
        ],
    )
    def test_environment(
        self,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        variable: str,
        value: str,
        sentence: str,
    ) -> None:
        """A variable that begins like ours is ours, or an error."""
        monkeypatch.setenv(variable, value)
        assert refused(capsys, "serve").startswith(sentence)

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("ttl-limit = 5", "there is no setting 'ttl-limit', did you mean ttl_limit?"),
            ("[serve]\nttl_limit = 5", "there is no setting 'serve'"),
            ('ttl_limit = "5"', "ttl_limit must be a number of seconds"),
            ("ttl_limit = true", "ttl_limit must be a number of seconds"),
            ("ttl_limit = inf", "ttl_limit must be a number of seconds"),
            ("socket_mode = 660", "socket_mode must be an octal mode"),
            ("socket = 5", "socket must be a path, not 5"),
            ("announce = 1", "announce must be true or false, not 1"),
            ("socket_owner = 0", "socket_owner must be USER or USER:GROUP"),
            ("log_level = 2000-01-01", "log_level must be one of"),
            ("ttl_limit = ", "is not TOML: "),
            ("ttl_limit = 1\nttl_limit = 2", "is not TOML: "),
            ("x = " + "[" * 100_000, "is not TOML: "),
            ("x = " + "1" * 10_000, "is not TOML: "),
        ],
    )
    def test_file(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, sentence: str
    ) -> None:
        """A key that does not exist, or has a value of a wrong type, is named with its file."""
        file = tmp_path / "scache.toml"
        file.write_text(text)
        assert refused(capsys, "serve", "--config", str(file)).startswith(f"{file}: {sentence}")

    def test_file_that_is_missing(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """A file that was named must be there."""
        file = tmp_path / "none.toml"
        sentence = refused(capsys, "serve", "--config", str(file))
        assert sentence == f"{file}: cannot be read: No such file or directory"

    def test_file_that_is_a_directory(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """A directory is told from a file."""
        sentence = refused(capsys, "serve", "--config", str(tmp_path))
        assert sentence == f"{tmp_path}: cannot be read: Is a directory"

    def test_file_that_is_not_text(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """Bytes that are no UTF-8 are no configuration."""
        file = tmp_path / "scache.toml"
        file.write_bytes(b"\xff\xfe")
        assert "is not TOML" in refused(capsys, "serve", "--config", str(file))

    def test_a_mistake_counts_even_if_it_is_overridden(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is wrong today would bite when the option that hides it is taken away."""
        monkeypatch.setenv("SCACHE_TTL_LIMIT", "abc")
        assert "SCACHE_TTL_LIMIT" in refused(capsys, "serve", "--ttl-limit", "5")


class TestEnds:
    """How a command ends, whatever its daemon does."""

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (errors.SocketError, errors.EXIT_SOCKET),
            (errors.DatabaseError, errors.EXIT_DATABASE),
            (errors.SettingsError, errors.EXIT_SETTINGS),
        ],
    )
    @pytest.mark.parametrize("grouped", [False, True])
    def test_a_daemon_that_cannot_start(
        self,
        capsys: pytest.CaptureFixture[str],
        daemon: Callable[[Run], None],
        error: type[errors.StartupError],
        code: int,
        grouped: bool,
    ) -> None:
        """Its sentence is the line, its exit code the exit code, even out of a task group."""

        def run(_: Settings) -> int:
            if grouped:
                raise ExceptionGroup("tasks", [error("the sky is down: wait")])
            raise error("the sky is down: wait")

        daemon(run)
        assert execute(["serve"]) == code
        assert capsys.readouterr().err == "scache: the sky is down: wait\n"

    @pytest.mark.parametrize("level", ["info", "debug"])
    def test_an_unforeseen_exception(
        self, capsys: pytest.CaptureFixture[str], daemon: Callable[[Run], None], level: str
    ) -> None:
        """It is told in one line and asked to be reported; debug adds the traceback."""

        def run(_: Settings) -> int:
            raise LookupError("nothing\nthere")

        daemon(run)
        assert execute(["serve", "--log-level", level]) == errors.EXIT_FAILURE
        first, *rest = capsys.readouterr().err.splitlines()
        assert first == r"scache: unforeseen LookupError: nothing\nthere (please report it)"
        assert bool(rest) == (level == "debug")

    def test_an_interrupt(
        self, capsys: pytest.CaptureFixture[str], daemon: Callable[[Run], None]
    ) -> None:
        """Ctrl-C before the daemon minds signals ends it without a word."""

        def run(_: Settings) -> int:
            raise KeyboardInterrupt

        daemon(run)
        assert execute(["serve"]) == EXIT_INTERRUPTED
        assert capsys.readouterr().err == ""

    def test_the_exit_code_is_that_of_the_daemon(self, daemon: Callable[[Run], None]) -> None:
        """What the daemon returns is what the process ends with."""
        daemon(lambda _: 7)
        assert execute(["serve"]) == 7


class TestHelp:
    """Help and version, which depend on nothing."""

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The version is one line."""
        assert execute(["--version"]) == errors.EXIT_OK
        assert capsys.readouterr().out == f"scache {__version__}\n"

    @pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
    def test_help_names_the_commands(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str]
    ) -> None:
        """A person who types nothing but the name is told what there is."""
        assert execute(arguments) == errors.EXIT_OK
        assert "serve" in capsys.readouterr().out

    def test_help_of_serve_works_in_bad_surroundings(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who got a variable wrong can still read which ones there are."""
        monkeypatch.setenv("SCACHE_NONSENSE", "1")
        monkeypatch.setenv("SCACHE_CONFIG", "/nowhere/scache.toml")
        assert execute(["serve", "--help"]) == errors.EXIT_OK
        text = capsys.readouterr().out
        assert all(setting.option in text for setting in SETTINGS)

    @pytest.mark.parametrize("line", ["--help", "--version", "serve --help", "serve --show-config"])
    def test_a_reader_that_is_gone(self, line: str) -> None:
        """Output into a closed pipe ends the command without a word."""
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as nobody:
            result = run_command(*SCACHE, *line.split(), stdout=nobody)
        assert result.stderr == ""
        assert result.returncode == -signal.SIGPIPE

    def test_shows_without_loading_a_daemon(self) -> None:
        """Nothing that only a running daemon needs is imported to read options."""
        heavy = "'anyio', 'asyncio', 'aiosqlite', 'sqlite3', 'tomllib', 'scache.daemon'"
        script = f"import sys, scache.cli; sys.exit(' '.join({{{heavy}}} & set(sys.modules)))"
        assert run_command(sys.executable, "-c", script).stderr.strip() == ""

    def test_serves_without_loading_what_others_need(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A daemon imports the libraries that it stands on, and no module that it does not call."""
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
        assert not packages & (
            for_others | {"http", "email", "multiprocessing", "trio", "argparse"}
        )


def imported(log: str) -> set[str]:
    """Return the modules that ``-X importtime`` reports."""
    return {line.rpartition("|")[2].strip() for line in log.splitlines() if "|" in line}


class TestLog:
    """The log lines of a daemon."""

    @pytest.mark.parametrize(
        ("level", "line"),
        [
            (logging.INFO, "scache[42]: hello you"),
            (logging.WARNING, "scache[42]: warning: hello you"),
            (logging.ERROR, "scache[42]: error: hello you"),
            (logging.DEBUG, "scache[42]: debug: hello you"),
        ],
    )
    def test_names_process_and_level(self, level: int, line: str) -> None:
        """A line says who speaks, and how bad it is unless it is mere information."""
        attributes = {"levelno": level, "levelname": logging.getLevelName(level), "process": 42}
        record = logging.makeLogRecord(attributes | {"msg": "hello %s", "args": ("you",)})
        assert LineFormatter().format(record) == line

    @pytest.mark.parametrize("level", ["INFO", "DEBUG"])
    def test_keeps_tracebacks_for_debug(self, level: str) -> None:
        """An exception is told in the line; where it came from is for those who ask."""
        logging.getLogger("scache").setLevel(level)
        try:
            raise LookupError("a\nb")
        except LookupError:
            record = logging.makeLogRecord({"msg": "oh", "exc_info": sys.exc_info()})
        first, *rest = LineFormatter().format(record).splitlines()
        assert first.endswith(r"oh: LookupError: a\nb")
        assert bool(rest) == (level == "DEBUG")

    def test_of_a_flood_there_are_some_lines_and_the_number_of_the_others(self) -> None:
        """Ten from one place in ten seconds; who logs is told nothing."""

        def logged(second: float, place: int = 1) -> str | None:
            attributes = {"msg": "odd", "args": (), "created": second, "lineno": place}
            record = logging.makeLogRecord(attributes)
            return LineFormatter().format(record).partition("odd")[2] if flood(record) else None

        flood = FloodFilter().filter
        last = " (at most 10 like it are logged in 10 s)"
        assert [logged(100 + each / 10) for each in range(60)] == [""] * 9 + [last] + [None] * 50
        assert logged(105, 2) == ""
        assert logged(110) == " (50 more like it were not logged)"
        assert [logged(111) for _ in range(10)] == [""] * 8 + [last] + [None]
        assert logged(50) == " (1 more like it were not logged)", "the clock was set back"
        assert logged(70) == ""

    def test_clients_do_not_flood_the_log(self, path: Path) -> None:
        """Hundreds that send nonsense make a few lines, the last of which tells of the others."""
        with Daemon(path) as daemon:
            for _ in range(100):
                with Wire(path) as client:
                    client.announcement()
                    client.send(encode([(b"request", b"nonsense")]))
                    assert client.receive_message() == [(b"status", b"1")]
            assert daemon.terminate() == 0
        lines = [line for line in daemon.log() if "malformed" in line]
        assert 10 <= len(lines) <= 20
        assert "at most 10 like it are logged in 10 s" in lines[9]

    def test_a_record_is_a_line(self) -> None:
        """Labels hold any bytes, but no line break or terminal sequence of theirs gets out."""
        assert one_line("a\nb\x1b[2J\udcff é") == r"a\nb\x1b[2J\udcff é"

    def test_a_broken_stderr_is_nothing_to_die_of(self, tmp_path: Path) -> None:
        """A daemon whose log nobody reads any more goes on, and ends with 0 when it is asked."""
        command = (*SCACHE, "serve", "--socket", str(tmp_path / "s"))
        with listening(command) as (process, _):
            assert process.stderr is not None
            process.stderr.close()
            process.terminate()
            assert process.wait() == errors.EXIT_OK

    def test_no_connection_ever_becomes_stderr(self) -> None:
        """Where a standard descriptor is closed, /dev/null takes its number."""
        script = (
            "import os; from scache.cli.daemon_log import occupy_standard_descriptors as occupy;"
            "occupy(); print([os.readlink(f'/proc/self/fd/{n}') for n in (0, 2)])"
        )
        closed = 'exec "$0" -c "$1" 0<&- 2>&-'
        result = run_command("sh", "-c", closed, sys.executable, script)
        assert result.stdout == "['/dev/null', '/dev/null']\n"


def test_a_module_runs_like_the_command(tmp_path: Path) -> None:
    """``python -m scache`` is the command, and the log says where it listens and on what."""
    socket = tmp_path / "s"
    with listening((*SCACHE, "serve", "--socket", str(socket))) as (process, lines):
        prefix = f"scache[{process.pid}]: "
        assert lines == [f"{prefix}listening on {socket}, database :memory:\n"]
        process.terminate()
        assert process.wait() == errors.EXIT_OK


def test_standard_output_stays_empty(tmp_path: Path) -> None:
    """A daemon that cannot start says so on stderr and nowhere else."""
    socket = str(tmp_path / "missing" / "s")
    result = run_command(*SCACHE, "serve", "--socket", socket, stdout=subprocess.PIPE)
    assert result.returncode == errors.EXIT_SOCKET
    assert result.stdout == ""
    assert result.stderr.startswith("scache: ")
    assert result.stderr.count("\n") == 1


def test_nobody_reads_the_log(path: Path) -> None:
    """A daemon whose log nobody reads serves on, and stops when it is told to."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as log, os.fdopen(writing, "wb") as stderr:
        command = [*SCACHE, "serve", "--socket", str(path)]
        with subprocess.Popen(command, env=clean_environment(), stderr=stderr) as daemon:
            assert b"listening" in log.readline()
            os.set_blocking(stderr.fileno(), False)
            with suppress(BlockingIOError):
                while True:
                    os.write(stderr.fileno(), b"x" * 65536)
            os.set_blocking(stderr.fileno(), True)
            with Client(path) as client:
                for number in range(10):
                    with pytest.raises(ProtocolError):
                        client.save_dest(0, f"{number}", "", "")
                    client.close()
                assert client.save_dest(60, "a", "", "b")
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(DEADLINE) == 0
