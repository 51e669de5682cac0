"""The commands that look inside: dump, sql, stats, events; and purge."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from scache import ProtocolError, Refused, Unavailable, errors
from scache.cli.commands.stats import Meter
from scache.cli.main import EXIT_INTERRUPTED, execute
from scache.cli.render.stats_screen import screen
from scache.cli.target import Target
from scache.client.sync import Client
from scache.settings.declarations import default_socket
from scache.vocabulary import REQUESTS
from tests.support.as_user import as_user
from tests.support.commands import SCACHE, clean_environment, run_command
from tests.support.daemon import Daemon
from tests.support.sample_database import NOW, ODD, Cached, filling
from tests.support.terminal import on_terminal

Capture = pytest.CaptureFixture[str]

TABLES = [
    "instance",
    "client",
    "connection",
    "binding",
    "counter",
    "event",
    "setting",
    "descriptor",
    "clock_step",
]
EMPTY = {"descriptor", "clock_step"}
"""Those that have no row in the file of the tests."""


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tables be as wide as this."""
    monkeypatch.setenv("COLUMNS", "60")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Name a database file that exists, and is empty."""
    path = tmp_path / "cache.db"
    with filling(path):
        pass
    return path


@pytest.fixture
def filled(file: Path) -> Path:
    """Fill that file with a little of everything."""
    with filling(file) as cached:
        fill(cached)
    return file


def fill(cached: Cached) -> None:
    """Make a small cache with a history."""
    cached.instance()
    cached.client(1, program=b"smtp")
    cached.client(2, pid=7, program=b"lmtp", disconnected_at=NOW + 5)
    for number, label in enumerate(ODD.values(), 10):
        cached.connection(number, label)
        cached.binding(number + 50, label, label)
    for number in range(1, 11):
        kind, status = ("find_dest", 2) if number % 2 else ("save_endp", 0)
        cached.event(
            kind,
            status,
            id=number,
            at=NOW + number * 60,
            destination=b"d%d.org" % number if number % 2 else None,
            endpoint=None if number % 2 else b"e%d.org:25" % number,
            client_id=1 + number % 2,
            connection_id=None if number % 2 else number,
        )
    cached.event("expired", id=11, at=NOW + 700, endpoint=b"e2.org:25", connection_id=2, age=1.5)
    cached.count(save_endp_ok=40, find_dest_ok=9, find_dest_fail=1, connections_found=9)
    cached.setting(audit_rows="100", ttl_limit="300", database="/var/cache.db", announce="true")


def run(capsys: Capture, *arguments: str | Path) -> str:
    """Return what a command says that succeeds."""
    assert execute(list(map(str, arguments))) == errors.EXIT_OK
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def failure(capsys: Capture, *arguments: str | Path) -> tuple[int, str]:
    """Return the exit code and the sentence of a command that fails."""
    code = execute(list(map(str, arguments)))
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("scache: ")
    assert output.err.count("\n") == 1
    return code, output.err.removeprefix("scache: ").rstrip()


class Live:
    """Stands for a live daemon: answers snapshots from a file."""

    def __init__(self) -> None:
        self.file: Path | None = None
        self.error: Exception | None = None
        self.asked: list[str] = []

    def snapshot(self, client: Client) -> int:
        """Return a sealed memfd, at an offset that means nothing, or raise what the test says."""
        self.asked.append(repr(client).split()[1])
        if self.error is not None:
            raise self.error
        assert self.file is not None
        descriptor = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(descriptor, self.file.read_bytes())
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        return descriptor


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Live:
    """Put a stand-in in the place of every daemon."""
    live = Live()

    def snapshot(client: Client) -> int:
        return live.snapshot(client)

    monkeypatch.setattr(Client, "snapshot", snapshot)
    return live


class TestTarget:
    """A live daemon, or a file."""

    def test_a_live_daemon_is_asked_on_its_socket(
        self, live: Live, filled: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The option goes before the variable, and that before the default; as serve has it."""
        live.file = filled
        run(capsys, "sql", "SELECT 1")
        monkeypatch.setenv("SCACHE_SOCKET", "/from/variable")
        run(capsys, "sql", "SELECT 1")
        run(capsys, "sql", "SELECT 1", "--socket", "/from/option")
        assert live.asked == [str(default_socket()), "/from/variable", "/from/option"]
        run(capsys, "sql", "SELECT 1", "--database", filled)
        assert len(live.asked) == 3

    @pytest.mark.parametrize("command", ["dump", "sql x", "stats", "events", "purge --all"])
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (Unavailable("no daemon answers at s"), errors.EXIT_SOCKET),
            (Refused("only root may look"), errors.EXIT_REFUSED),
            (ProtocolError("malformed"), errors.EXIT_SOCKET),
        ],
        ids=["unavailable", "refused", "malformed"],
    )
    def test_a_daemon_that_does_not_answer(
        self, live: Live, capsys: Capture, command: str, error: Exception, code: int
    ) -> None:
        """What is wrong is one line; whoever does not know the request is not one of ours."""
        live.error = error
        ended, sentence = failure(capsys, *command.split())
        assert (ended, str(error) in sentence) == (code, True)

    def test_nobody_answers(self, tmp_path: Path, capsys: Capture) -> None:
        """A socket without a daemon is told from a daemon that says no."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Client, "snapshot", lambda client: client.find_endp("x"), raising=False)
            code, sentence = failure(capsys, "stats", "--socket", tmp_path / "none")
        assert code == errors.EXIT_SOCKET
        assert sentence.startswith("cannot connect to the daemon at ")
        assert sentence.endswith("; start `scache serve`, or name another --socket")

    @pytest.mark.parametrize(
        ("directory_mode", "who_may"),
        [(0o755, "its owner"), (0o700, "a user who may enter its directory")],
    )
    @pytest.mark.root
    def test_a_user_who_may_not_connect(
        self, capsys: Capture, directory_mode: int, who_may: str
    ) -> None:
        """A user who may not connect to the socket is refused as well, and told who may."""
        with TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as daemon:
            path = Path(directory, "socket")
            daemon.bind(str(path))
            daemon.listen()
            path.chmod(0o600)
            path.parent.chmod(directory_mode)
            assert as_user(lambda: failure(capsys, "stats", "--socket", path)) == (
                errors.EXIT_REFUSED,
                f"cannot connect to the daemon at {path}: permission denied; "
                f"run the command as root or as {who_may}",
            )

    @pytest.mark.parametrize("command", ["dump", "sql x", "stats", "events"])
    def test_one_of_both(self, file: Path, capsys: Capture, command: str) -> None:
        """A socket and a file at once make no sense."""
        options = ("--socket", "s", "--database", file)
        assert failure(capsys, *command.split(), *options) == (
            errors.EXIT_SETTINGS,
            "--socket and --database exclude each other",
        )

    @pytest.mark.parametrize("option", ["--socket", "--database"])
    def test_an_empty_name(self, capsys: Capture, option: str) -> None:
        """A name without a character names nothing."""
        assert failure(capsys, "stats", option, "") == (
            errors.EXIT_SETTINGS,
            f"{option} must be a path, not ''",
        )

    @pytest.mark.parametrize("command", ["dump", "sql x", "stats", "events"])
    def test_a_file_of_somebody_else(self, tmp_path: Path, capsys: Capture, command: str) -> None:
        """A file that is none of ours is refused by every command."""
        path = tmp_path / "other"
        path.write_text("nonsense" * 100)
        code, sentence = failure(capsys, *command.split(), "--database", path)
        assert (code, "is not a SQLite database" in sentence) == (errors.EXIT_DATABASE, True)

    def test_an_empty_file(self, tmp_path: Path, capsys: Capture) -> None:
        """A file that has just been made is nobody else's."""
        path = tmp_path / "new"
        path.touch()
        code, sentence = failure(capsys, "stats", "--database", path)
        assert code == errors.EXIT_DATABASE
        assert sentence == f"the database {path} is empty: no daemon has used it yet"

    @pytest.mark.parametrize("layout", ["table", "json", "jsonl", "csv"])
    @pytest.mark.parametrize("command", ["dump event", "sql TABLE", "stats", "events"])
    def test_an_empty_cache(self, file: Path, capsys: Capture, command: str, layout: str) -> None:
        """Where there is nothing, every command says so in every format."""
        words = [word.replace("TABLE", "SELECT * FROM event") for word in command.split()]
        out = run(capsys, *words, "--database", file, "--format", layout)
        if layout == "json":
            json.loads(out)
        if layout == "table" and command != "stats":
            assert out in ("(no rows)\n", "(no events)\n")


class TestDump:
    def test_everything(self, filled: Path, capsys: Capture) -> None:
        """All tables, as one object."""
        dumped = json.loads(run(capsys, "dump", "--database", filled))
        assert list(dumped) == TABLES
        assert [row["id"] for row in dumped["event"]] == list(range(1, 12))
        assert dumped["setting"][0] == {"name": "announce", "value": "true"}

    def test_some(self, filled: Path, capsys: Capture) -> None:
        """Tables and views by name, each once, in the order that was asked for."""
        names = ["lifetime", "counter", "lifetime"]
        dumped = json.loads(run(capsys, "dump", "--database", filled, *names))
        assert list(dumped) == ["lifetime", "counter"]

    def test_lines(self, filled: Path, capsys: Capture) -> None:
        """Each line is an object, which names its table if there are several."""
        out = run(capsys, "dump", "--database", filled, "--format", "jsonl")
        tables = [json.loads(line)["table"] for line in out.splitlines()]
        assert list(dict.fromkeys(tables)) == [name for name in TABLES if name not in EMPTY]
        out = run(capsys, "dump", "--database", filled, "--format", "jsonl", "instance")
        assert json.loads(out)["version"] == "1.2.3"

    def test_tables(self, filled: Path, capsys: Capture) -> None:
        """Several tables have titles, and each fits 60 columns."""
        out = run(capsys, "dump", "--database", filled, "--format", "table")
        assert re.findall(r"^(\w+):$", out, re.MULTILINE) == TABLES
        assert max(map(len, out.splitlines())) <= 60

    def test_csv(self, filled: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
        """One table may be CSV, exact to the byte."""
        arguments = ["dump", "--database", str(filled), "--format", "csv", "live_connection"]
        assert execute(arguments) == errors.EXIT_OK
        text = capsysbinary.readouterr().out.decode("latin-1")
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        labels = [row[header.index("endpoint")].encode("latin-1") for row in rows]
        assert labels == list(ODD.values())

    @pytest.mark.parametrize("names", [[], ["event", "client"]])
    def test_csv_holds_one_table(self, filled: Path, capsys: Capture, names: list[str]) -> None:
        """Several tables in one CSV file would be none."""
        code, sentence = failure(capsys, "dump", "--database", filled, "--format", "csv", *names)
        assert (code, "name exactly one" in sentence) == (errors.EXIT_SETTINGS, True)

    def test_unknown_name(self, filled: Path, capsys: Capture) -> None:
        """Who errs in a name is told which there are."""
        code, sentence = failure(capsys, "dump", "--database", filled, "conn\nection")
        assert code == errors.EXIT_SETTINGS
        assert sentence.startswith(r"there is no table or view conn\nection: there are instance, ")

    def test_odd_names(self, file: Path, capsys: Capture) -> None:
        """The name of a table that is none of ours can neither drive a terminal nor break JSON."""
        name = 'a "b"\x1b[2J\n'
        with filling(file) as cached:
            cached.run(f"""CREATE TABLE "{name.replace('"', '""')}" AS SELECT 1 AS x""")
        out = run(capsys, "dump", "--database", file, "--format", "table")
        assert r'a "b"\x1b[2J\n:' in out.splitlines()
        assert json.loads(run(capsys, "dump", "--database", file))[name] == [{"x": 1}]
        rows = run(capsys, "dump", "--database", file, "--format", "jsonl").splitlines()
        assert {"table": name, "x": 1} in map(json.loads, rows)
        _, sentence = failure(capsys, "dump", "--database", file, "absent")
        assert r', a "b"\x1b[2J\n, ' in sentence

    def test_a_name_that_is_no_text(self, filled: Path, capsys: Capture) -> None:
        """Such a table is refused in a sentence, and keeps no other from being written."""
        with filling(filled) as cached:
            cached.run("CREATE TABLE named (x)")
        filled.write_bytes(filled.read_bytes().replace(b"named", b"nam\xff\xff"))
        assert run(capsys, "dump", "--database", filled, "event") != ""
        odd = os.fsdecode(b"nam\xff\xff")
        assert failure(capsys, "dump", "--database", filled, odd, "--format", "jsonl") == (
            errors.EXIT_SETTINGS,
            r"the name nam\udcff\udcff is not UTF-8 and cannot be asked for: name others",
        )

    def test_a_database_file(self, filled: Path, tmp_path: Path, capsys: Capture) -> None:
        """Everything goes to a file that the commands read again."""
        output = tmp_path / "dump.db"
        for _ in range(2):
            assert run(capsys, "dump", "--database", filled, "--output", output) == ""
        before, after = (run(capsys, "dump", "--database", each) for each in (filled, output))
        assert before == after

    def test_a_file_that_is_no_dump_stays(
        self, filled: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        """Nothing else is overwritten."""
        output = tmp_path / "precious"
        output.write_text("x")
        code, sentence = failure(capsys, "dump", "--database", filled, "--output", output)
        assert code == errors.EXIT_DATABASE
        assert sentence == f"{output} exists and is no dump of scache: choose another name"
        assert output.read_text() == "x"

    @pytest.mark.parametrize(
        ("more", "sentence"),
        [
            (["event"], "--output writes all tables: name no tables with it"),
            (["--format", "csv"], "--output writes a database file: it takes no --format"),
            (["--format", "json"], "--output writes a database file: it takes no --format"),
        ],
    )
    def test_a_file_holds_everything(
        self, filled: Path, tmp_path: Path, capsys: Capture, more: list[str], sentence: str
    ) -> None:
        """Neither a part of it nor another format can be written to a file."""
        output = tmp_path / "x"
        said = failure(capsys, "dump", "--database", filled, "--output", output, *more)
        assert said == (errors.EXIT_SETTINGS, sentence)
        assert not output.exists()


class TestSql:
    def test_a_statement(self, filled: Path, capsys: Capture) -> None:
        """Rows are objects when nobody looks."""
        sql = "SELECT id, endpoint FROM connection WHERE id < 12 ORDER BY id"
        assert json.loads(run(capsys, "sql", "--database", filled, sql)) == [
            {"id": 10, "endpoint": ODD["escape"].decode()},
            {"id": 11, "endpoint": ODD["newlines"].decode()},
        ]

    def test_a_table(self, filled: Path, capsys: Capture) -> None:
        """No label, however odd or long, breaks a line or goes beyond 60 columns."""
        sql = "SELECT id, endpoint, properties FROM connection ORDER BY id"
        lines = run(capsys, "sql", "--database", filled, "--format", "table", sql).splitlines()
        assert len(lines) == 2 + len(ODD)
        assert all(len(line) <= 60 and line.isprintable() for line in lines)
        assert lines[2].startswith(r"10  \x1b[2J\x1b]0;title\x07")
        assert r"[bold red]x[/] :smiley:" in lines[6]

    @pytest.mark.parametrize(
        ("given", "bound"),
        [
            ("5", 5),
            ("-5", -5),
            ("0", 0),
            ("-0", 0),
            ("007", "007"),
            ("007.5", "007.5"),
            ("+5", 5),
            ("0.5", 0.5),
            ("1.50", 1.5),
            ("-.5", -0.5),
            ("2.", 2.0),
            ("1e3", 1000.0),
            ("+1.25E-2", 0.0125),
            ("1e+300", 1e300),
            ("1e999", "1e999"),
            (".", "."),
            ("1e", "1e"),
            ("1.2.3", "1.2.3"),
            (" 5", " 5"),
            ("٣", "٣"),
            ("1_000", "1_000"),
            ("9223372036854775807", 2**63 - 1),
            ("9223372036854775808", "9223372036854775808"),
            ("9" * 5000, "9" * 5000),
            ("nan", "nan"),
            ("inf", "inf"),
            ("", ""),
            ("a=b", "a=b"),
            ("é", "é"),
        ],
    )
    def test_parameters(self, file: Path, capsys: Capture, given: str, bound: float | str) -> None:
        """What is written as a decimal number is one; all else is text."""
        sql = "SELECT typeof(:x) AS type, :x AS x"
        (row,) = json.loads(run(capsys, "sql", "--database", file, sql, "-p", f"x={given}"))
        kinds = {int: "integer", float: "real", str: "text"}
        assert row == {"type": kinds[type(bound)], "x": bound}

    def test_a_parameter_may_be_any_bytes(self, filled: Path, capsys: Capture) -> None:
        """Bytes that are no text are a blob, and find the label when they are cast."""
        sql = "SELECT id FROM connection WHERE endpoint = CAST(:e AS TEXT)"
        label = os.fsdecode(ODD["no UTF-8"])
        assert json.loads(run(capsys, "sql", "--database", filled, sql, "-p", f"e={label}")) == [
            {"id": 12}
        ]

    @pytest.mark.parametrize("given", ["x", "=5"])
    def test_a_parameter_without_a_name(self, file: Path, capsys: Capture, given: str) -> None:
        """A parameter has a name and a value."""
        code, sentence = failure(capsys, "sql", "--database", file, "SELECT 1", "-p", given)
        assert (code, "-p takes NAME=VALUE" in sentence) == (errors.EXIT_SETTINGS, True)

    @pytest.mark.parametrize(
        ("sql", "sentence"),
        [
            ("SELEC 1", 'near "SELEC": syntax error'),
            ("SELECT * FROM absent", "no such table: absent"),
            ("SELECT :absent", "the parameter absent has no value: add -p absent=..."),
            ("SELECT @absent", "add -p absent=..."),
            ("ATTACH 'x.db' AS x", "ATTACH and VACUUM are not allowed"),
            ("VACUUM INTO 'x.db'", "ATTACH and VACUUM are not allowed"),
            ("VACUUM", "ATTACH and VACUUM are not allowed"),
            ("SELECT ?", "a parameter needs a name: write :name instead of ?, and add -p name=..."),
            ("SELECT ?1", "the parameter 1 has no value: add -p 1=..."),
            ("SELECT '\udcff'", "the statement is not UTF-8: write such bytes as CAST("),
        ],
    )
    def test_errors(self, file: Path, capsys: Capture, sql: str, sentence: str) -> None:
        """What is wrong with a statement is one line, and exit code 2."""
        code, said = failure(capsys, "sql", "--database", file, sql)
        assert (code, sentence in said) == (errors.EXIT_SETTINGS, True)

    def test_changes_are_of_the_copy(self, filled: Path, capsys: Capture) -> None:
        """A statement may change what later statements see, and no more."""
        sql = "DELETE FROM connection WHERE id > 10; SELECT count(*) AS n FROM connection"
        out = run(capsys, "sql", "--database", filled, "--format", "table", sql)
        assert out.splitlines() == ["8 rows changed, in this copy alone", "n", "─", "1"]
        out = run(capsys, "sql", "--database", filled, "SELECT count(*) AS n FROM connection")
        assert json.loads(out) == [{"n": len(ODD)}]

    def test_statements_on_standard_input(self, filled: Path) -> None:
        """Without a statement they are read from a pipe, all of them, up to the first error."""
        command = [*SCACHE, "sql", "--database", str(filled), "--format", "jsonl"]
        sql = "SELECT ';' AS a;\n-- é;\nSELECT 2\n AS a; SELEC; SELECT 3 AS a;"
        result = subprocess.run(
            command,
            input=sql.encode(),
            capture_output=True,
            env=clean_environment(),
            check=False,
        )
        assert result.stdout == b'{"a": ";"}\n{"a": 2}\n'
        assert result.stderr == b'scache: near "SELEC": syntax error\n'
        assert result.returncode == errors.EXIT_SETTINGS

    def test_standard_input_that_is_no_text(self, filled: Path) -> None:
        """Bytes that are no UTF-8 are no SQL."""
        command = [*SCACHE, "sql", "--database", str(filled)]
        result = subprocess.run(
            command, input=b"\xff", capture_output=True, env=clean_environment(), check=False
        )
        assert b"not UTF-8" in result.stderr
        assert result.returncode == errors.EXIT_SETTINGS

    def test_rows_are_written_as_they_come(self, file: Path) -> None:
        """An endless result begins at once, and a reader that has seen enough ends it silently."""
        sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
        command = [*SCACHE, "sql", "--database", str(file), sql]
        for layout in ("table", "json", "jsonl", "csv"):
            with subprocess.Popen(
                [*command, "--format", layout],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=clean_environment(),
            ) as process:
                assert process.stdout is not None
                assert process.stderr is not None
                assert process.stdout.read(10)
                process.stdout.close()
                assert process.stderr.read() == b""
            assert process.returncode == -signal.SIGPIPE

    def test_a_terminal_gets_a_table(self, filled: Path) -> None:
        """On a terminal the format is a table that fits it."""
        sql = "SELECT id, endpoint FROM connection ORDER BY id"
        with on_terminal(*SCACHE, "sql", "--database", str(filled), sql) as terminal:
            text = re.sub(r"\x1b\[[\d;]*m", "", terminal.read_to_end())
        assert text.splitlines()[0].split() == ["id", "endpoint"]
        assert all(len(line) <= 60 and line.isprintable() for line in text.splitlines())


class TestEvents:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ("", range(1, 12)),
            ("--limit 3", [9, 10, 11]),
            ("--limit 0", []),
            ("--kind expired", [11]),
            ("--kind expired --kind save_endp --limit 2", [10, 11]),
            ("--endpoint e*.org:25", [2, 4, 6, 8, 10, 11]),
            ("--endpoint E*", []),
            ("--destination d[1-4]*", [1, 3]),
            ("--client 7", [1, 3, 5, 7, 9]),
            ("--client sm*", [2, 4, 6, 8, 10]),
            ("--since 2023-11-14T22:22:20Z", [9, 10, 11]),
            ("--since 2023-11-15T00:22:20.000+02:00", [9, 10, 11]),
            ("--since 2023-11-14T22:22:20.001", [10, 11]),
            ("--since 2023-11-15", []),
            ("--since 90s", []),
            ("--since 9999999d", range(1, 12)),
            (f"--since {'9' * 400}d", range(1, 12)),
            ("--since 0001-01-01T00:00:00+14:00", range(1, 12)),
            ("--since 9999-12-31T23:59:59-14:00", []),
            (f"--limit {2**63 - 1}", range(1, 12)),
            (f"--client {2**63 - 1}", []),
            ("--since 2023-11-14 --kind find_dest --client 7 --limit 2", [7, 9]),
        ],
    )
    def test_filters(
        self, filled: Path, capsys: Capture, options: str, expected: Sequence[int]
    ) -> None:
        """Only what fits everything that is given is told, the oldest first."""
        arguments = ["events", "--database", str(filled), *options.split()]
        assert [row["id"] for row in json.loads(run(capsys, *arguments))] == list(expected)

    @pytest.mark.parametrize(
        ("option", "sentence"),
        [
            ("--kind=find", "there is no kind 'find': there are save_endp, find_endp, "),
            ("--since=yesterday", "--since takes a time such as "),
            ("--since=10", "--since takes a time such as "),
            ("--limit=-1", "-1"),
            (f"--limit={2**63}", f"{2**63} is not in the range 0<=x<={2**63 - 1}"),
            (f"--client={2**63}", "no id is that large"),
            (f"--client={'9' * 5000}", "no id is that large"),
            ("--interval=0", "0"),
        ],
    )
    def test_options_that_make_no_sense(
        self, filled: Path, capsys: Capture, option: str, sentence: str
    ) -> None:
        """What no event can be, and what is no time, is named."""
        code, said = failure(capsys, "events", "--database", filled, option)
        assert (code, sentence in said) == (errors.EXIT_SETTINGS, True)

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("[2001:db8::1]:25", [1]),
            ("[2001:db8::1]:*", []),
            ("[[]2001:db8::*]:25", [1, 2]),
            ("[3]", [3, 4]),
        ],
    )
    def test_a_label_with_brackets(
        self, file: Path, capsys: Capture, pattern: str, expected: list[int]
    ) -> None:
        """It fits itself; in a pattern that does more, brackets mean what they mean in SQLite."""
        labels = (b"[2001:db8::1]:25", b"[2001:db8::2]:25", b"[3]", b"3", b"4")
        with filling(file) as cached:
            for number, label in enumerate(labels, 1):
                cached.client(number, program=label)
                cached.event(
                    "find_dest", 0, id=number, endpoint=label, destination=label, client_id=number
                )
        for option in ("--endpoint", "--destination", "--client"):
            assert execute(["events", "--database", str(file), option, pattern]) == errors.EXIT_OK
            told = json.loads(capsys.readouterr().out)  # a hint at the brackets may be on stderr
            assert [row["id"] for row in told] == expected

    def test_the_order_is_that_of_time(self, file: Path, capsys: Capture) -> None:
        """Within one write ids are in another order, even within a millisecond."""
        with filling(file) as cached:
            for number, after in enumerate((0.0003, 0.0002, 5, 0.0002, 0), 1):
                cached.event("lost", id=number, at=NOW + after)
        for options, expected in (((), [5, 2, 4, 1, 3]), (("--limit", "2"), [1, 3])):
            told = json.loads(run(capsys, "events", "--database", file, *options))
            assert [row["id"] for row in told] == expected

    def test_whoever_looks_is_no_news(self, file: Path, capsys: Capture) -> None:
        """A snapshot that was taken is told to those who ask for it, one that was not to all."""
        with filling(file) as cached:
            for number, kind in enumerate(("lost", "snapshot", "snapshot", "unknown"), 1):
                cached.event(kind, 2 if number == 3 else 0, id=number)
        for options, expected in (
            ((), [1, 3, 4]),
            (("--limit", "2"), [3, 4]),
            (("--kind", "snapshot"), [2, 3]),
        ):
            told = json.loads(run(capsys, "events", "--database", file, *options))
            assert [row["id"] for row in told] == expected

    def test_lines_for_people(self, filled: Path, capsys: Capture) -> None:
        """An event is a line, under the day that it was on."""
        out = run(capsys, "events", "--database", filled, "--format", "table", "--limit", "3")
        assert out.splitlines() == [
            "2023-11-14 UTC",
            "22:22:20.000 find_dest fail d9.org  lmtp[7]",
            "22:23:20.000 save_endp ok   e10.org:25  smtp[1001]",
            "22:25:00.000 expired        e2.org:25  age 1.50s",
        ]

    def test_odd_labels_fit(self, file: Path, capsys: Capture) -> None:
        """Two labels of any kind, a program and a detail stay in one line of 60 columns."""
        with filling(file) as cached:
            cached.client(1, program=ODD["escape"])
            for label in ODD.values():
                cached.event(
                    "find_dest", 0, destination=label, endpoint=label, client_id=1, detail=label
                )
        lines = run(capsys, "events", "--database", file, "--format", "table").splitlines()
        assert len(lines) == 1 + len(ODD)
        assert all(len(line) <= 60 and line.isprintable() for line in lines)

    def test_an_event_may_have_neither_labels_nor_a_client(
        self, file: Path, capsys: Capture
    ) -> None:
        """What is not known is left out."""
        with filling(file) as cached:
            cached.event("unknown", 1, client_id=55)
        out = run(capsys, "events", "--database", file, "--format", "table")
        assert out.splitlines()[1] == "22:13:20.000 unknown   bad"

    @pytest.mark.parametrize("layout", ["table", "json"])
    def test_a_trail_that_is_off(self, file: Path, capsys: Capture, layout: str) -> None:
        """Who finds nothing there is told why, and the output is what it would be."""
        with filling(file) as cached:
            cached.setting(audit_rows="0")
        arguments = ["events", "--database", str(file), "--format", layout]
        assert execute(arguments) == errors.EXIT_OK
        output = capsys.readouterr()
        assert output.out in ("(no events)\n", "[]\n")
        assert output.err == "scache: no event is recorded while audit_rows is 0\n"


class Rounds:
    """Takes the place of waiting: each time somebody waits, the next thing happens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._then: list[Callable[[], None]] = []
        self.waited: list[float] = []
        monkeypatch.setattr(time, "sleep", self._sleep)

    def then(self, happens: Callable[[], None]) -> None:
        """Let this happen next; after the last, Ctrl-C."""
        self._then.append(happens)

    def _sleep(self, seconds: float) -> None:
        self.waited.append(seconds)
        if not self._then:
            raise KeyboardInterrupt
        self._then.pop(0)()


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Rounds:
    """Let nothing wait."""
    return Rounds(monkeypatch)


class TestFollow:
    def follow(self, capsys: Capture, *options: str | Path) -> tuple[list[int], str]:
        """Return the ids that were told until Ctrl-C, and what stderr got."""
        arguments = ["events", "--follow", "--format", "jsonl", *map(str, options)]
        assert execute(arguments) == EXIT_INTERRUPTED
        output = capsys.readouterr()
        return [json.loads(line)["id"] for line in output.out.splitlines()], output.err

    def test_each_event_is_told_once(self, filled: Path, capsys: Capture, rounds: Rounds) -> None:
        """After the last few come the new ones that fit."""

        def more(first: int) -> None:
            with filling(filled) as cached:
                for number in range(first, first + 3):
                    cached.event("lost" if number % 2 else "hung_up", id=number)

        rounds.then(lambda: None)
        rounds.then(lambda: more(100))
        rounds.then(lambda: more(200))
        ids, said = self.follow(capsys, "--database", filled)
        assert ids == [*range(2, 12), 100, 101, 102, 200, 201, 202]
        assert said == ""
        assert rounds.waited == [1] * 4

    def test_a_trail_that_is_off(self, file: Path, capsys: Capture, rounds: Rounds) -> None:
        """Who waits for events is told that there will be none; once."""
        with filling(file) as cached:
            cached.setting(audit_rows="0")
        rounds.then(lambda: None)
        said = "scache: no event is recorded while audit_rows is 0\n"
        assert self.follow(capsys, "--database", file) == ([], said)

    def test_json_is_a_line_for_each(self, filled: Path, capsys: Capture, rounds: Rounds) -> None:
        """An array that never ends would be of no use."""
        ids, _ = self.follow(capsys, "--database", filled, "--format", "json", "--limit", "2")
        assert ids == [10, 11]
        assert rounds.waited == [1]

    def test_filters_hold_for_what_comes(
        self, filled: Path, capsys: Capture, rounds: Rounds
    ) -> None:
        """The limit is for the beginning, the rest for all."""

        def more() -> None:
            with filling(filled) as cached:
                for number in range(100, 104):
                    cached.event("lost" if number % 2 else "expired", id=number)

        rounds.then(more)
        options = ("--kind", "expired", "--kind", "find_dest", "--limit", "2", "--interval", "5")
        ids, _ = self.follow(capsys, "--database", filled, *options)
        assert ids == [9, 11, 100, 102]
        assert rounds.waited == [5, 5]

    def test_a_daemon_that_is_restarted(
        self, live: Live, filled: Path, tmp_path: Path, capsys: Capture, rounds: Rounds
    ) -> None:
        """While it is away one line says so; with a new database, ids begin anew."""
        live.file = filled
        other = tmp_path / "other.db"
        with filling(other) as cached:
            cached.instance(started_at=NOW + 900)
            cached.event("lost", id=1)
            cached.event("lost", id=2)

        def away() -> None:
            live.error = Unavailable("no daemon\nanswers")

        def back() -> None:
            live.error = None
            live.file = other

        for happens in (away, away, back, lambda: None):
            rounds.then(happens)
        ids, said = self.follow(capsys, "--limit", "1")
        assert ids == [11, 1, 2]
        assert said == "scache: no daemon\\nanswers; waiting for it\n"

    def test_a_daemon_that_goes_on_with_its_file(
        self, live: Live, filled: Path, capsys: Capture, rounds: Rounds
    ) -> None:
        """With the same database, ids go on."""
        live.file = filled

        def restarted() -> None:
            with filling(filled) as cached:
                cached.instance(2, started_at=NOW + 900)
                cached.event("lost", id=12)

        rounds.then(restarted)
        rounds.then(lambda: None)
        ids, _ = self.follow(capsys, "--limit", "1")
        assert ids == [11, 12]

    def test_a_daemon_that_was_never_there(
        self, live: Live, capsys: Capture, rounds: Rounds
    ) -> None:
        """Who follows nobody is told at once."""
        live.error = Unavailable("no daemon answers")
        assert failure(capsys, "events", "--follow")[0] == errors.EXIT_SOCKET
        assert rounds.waited == []

    def test_csv_has_one_header(
        self, filled: Path, rounds: Rounds, capsysbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        """It stands before the first row, even if that comes late."""

        def more() -> None:
            with filling(filled) as cached:
                cached.event("lost", id=12)

        rounds.then(more)
        arguments = ["events", "--follow", "--format", "csv", "--limit", "0"]
        assert execute([*arguments, "--database", str(filled)]) == EXIT_INTERRUPTED
        header, row = capsysbinary.readouterr().out.splitlines()
        assert header.startswith(b'"id","at",')
        assert row.startswith(b"12,")

    def test_a_reader_that_is_gone(self, filled: Path) -> None:
        """Output into a closed pipe ends it without a word; what was told is not held back."""
        command = [*SCACHE, "events", "--follow", "--interval", "0.01", "--format", "table"]
        with subprocess.Popen(
            [*command, "--database", str(filled)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(),
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == b"2023-11-14 UTC\n"
            process.stdout.close()
            with filling(filled) as cached:
                cached.event("lost", id=12)
            assert process.stderr.read() == b""
        assert process.returncode == -signal.SIGPIPE

    def test_ctrl_c_ends_it_quietly(self, filled: Path) -> None:
        """On a terminal it ends as a shell expects, without a word."""
        command = (*SCACHE, "events", "--follow", "--database", str(filled))
        with on_terminal(*command) as terminal:
            terminal.read_until("expired")
            terminal.process.send_signal(signal.SIGINT)
            terminal.read_to_end()
            assert terminal.process.wait() == -signal.SIGINT
        assert "Traceback" not in terminal.shown


class TestStats:
    def test_figures(self, filled: Path, capsys: Capture) -> None:
        """Everything that the screen shows is there as data."""
        figures = json.loads(run(capsys, "stats", "--database", filled))
        assert figures["daemon"]["version"] == "1.2.3"
        assert figures["daemon"]["running"] is None
        assert figures["clients"] == {"connected": 1, "total": 0}
        assert figures["connections"]["cached"] == len(ODD)
        assert figures["connections"]["endpoints"] == len(ODD)
        assert figures["bindings"] == {"live": len(ODD), "destinations": len(ODD)}
        assert figures["events"]["kept"] == 11
        assert figures["requests"]["find_dest"] == {
            "ok": 9,
            "fail": 1,
            "bad": 0,
            "hit_rate": 0.9,
        }
        assert figures["requests"]["find_endp"]["hit_rate"] is None
        assert figures["ways_out"]["found"] == 9
        assert figures["limits"]["audit_rows"] == {"now": 11, "limit": 100}
        assert figures["limits"]["ttl_limit"] == {"now": 60, "limit": 300}
        assert "60.0" not in json.dumps(figures["limits"])
        assert figures["counters"].items() >= {"snapshot_bad": 0, "limit_clients": 0}.items()
        assert figures["settings"]["database"] == "/var/cache.db"
        assert "per_second" not in figures

    def test_rows(self, filled: Path, capsys: Capture) -> None:
        """CSV has a figure a row."""
        out = run(capsys, "stats", "--database", filled, "--format", "csv")
        header, *rows = csv.reader(io.StringIO(out))
        assert header == ["at", "name", "value"]
        figures = {name: value for _, name, value in rows}
        assert figures["requests.find_dest.hit_rate"] == "0.9"
        assert figures["connections.cached"] == str(len(ODD))

    @pytest.mark.parametrize("columns", ["60", "100"])
    def test_one_screen(
        self, filled: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, columns: str
    ) -> None:
        """It fits a terminal of 60 columns, and its labels cannot break it."""
        monkeypatch.setenv("COLUMNS", columns)
        with filling(filled) as cached:
            cached.insert("setting", name="x", value="y")
            cached.count(connections_expired=1_000_000)
        lines = run(capsys, "stats", "--database", filled, "--format", "table").splitlines()
        assert all(len(line) <= int(columns) for line in lines)
        assert lines[0] == "scache 1.2.3, process 42, running or crashed"
        assert re.search(r"^find_dest +9 +1 +0 +90\.0%$", "\n".join(lines), re.MULTILINE)
        assert re.search(r"^expired +1,000,000 +0$", "\n".join(lines), re.MULTILINE)
        assert re.search(r"^audit_rows +11 +100 +11%$", "\n".join(lines), re.MULTILINE)

    def test_limits(self, filled: Path, capsys: Capture) -> None:
        """The fullest counts where each has its own limit; 0 is no limit, and is not shown."""
        with filling(filled) as cached:
            for number in range(100, 103):
                cached.connection(number, b"e")
                cached.binding(number + 10, b"d", b"%d" % number)
            cached.setting(
                max_clients="1000",
                max_connections="0",
                max_connections_per_endpoint="6",
                max_bindings_per_destination="10",
                max_bindings="20",
                open_files_limit="1024",
            )
            cached.count(limit_clients=5)
        figures = json.loads(run(capsys, "stats", "--database", filled))
        assert {name: tuple(each.values()) for name, each in figures["limits"].items()} == {
            "max_clients": (1, 1000),
            "max_connections_per_endpoint": (3, 6),
            "max_bindings_per_destination": (3, 10),
            "max_bindings": (len(ODD) + 3, 20),
            "open_files_limit": (len(ODD) + 3 + 1, 1024),
            "ttl_limit": (60, 300),
            "audit_rows": (11, 100),
        }
        assert figures["limits_reached"]["clients"] == 5
        assert figures["limits_reached"]["message_size"] == 0
        out = run(capsys, "stats", "--database", filled, "--format", "table")
        assert re.search(r"^open_files_limit +about 13 +1,024 +1%$", out, re.MULTILINE)
        assert re.search(r"^limits reached +times\nclients +5$", out, re.MULTILINE)
        assert "/s" not in out
        assert "find_endp" not in out

    def test_a_small_terminal(self, filled: Path) -> None:
        """What matters most fits 24 lines of 60 columns, whatever there is to tell."""
        with filling(filled) as cached:
            limits = ("clients", "connections", "bindings_per_destination")
            cached.setting(**{f"max_{name}": "1000" for name in limits}, open_files_limit="10")
            cached.count(**{f"{kind}_ok": 5 for kind in REQUESTS if kind.endswith("p")})
            cached.count(connections_expired=7, limit_clients=5)
        meter = Meter(Target(Path("s"), str(filled)))
        meter.read()
        text = screen(Target(Path("s"), str(filled)), meter.read(), 60, 24).plain
        assert len(text.splitlines()) <= 24
        assert all(word in text for word in ("open_files_limit", "limits reached", "expired", "/s"))

    def test_a_daemon_that_has_stopped(self, file: Path, capsys: Capture) -> None:
        """How long it ran is told of a run that is over."""
        with filling(file) as cached:
            cached.instance(stopped_at=NOW + 90)
        out = run(capsys, "stats", "--database", file, "--format", "table")
        assert out.startswith("scache 1.2.3, process 42, stopped; was up 1m 30s\n")

    def test_a_daemon_that_runs(self, live: Live, filled: Path, capsys: Capture) -> None:
        """Whoever answers runs, and has since it was started; its image has its descriptors."""
        with filling(filled) as cached:
            cached.setting(open_files_limit="1024")
            for number in range(500):
                cached.descriptor(number, number)
        live.file = filled
        figures = json.loads(run(capsys, "stats"))
        assert figures["daemon"]["running"] is True
        assert figures["daemon"]["uptime"] > 0
        assert figures["limits"]["open_files_limit"] == {"now": 501, "limit": 1024}
        assert run(capsys, "stats", "--format", "table").startswith("scache 1.2.3, process 42, up ")

    def test_a_file_cannot_tell_whether_the_daemon_runs(
        self, file: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        """Of a daemon that was killed it says no more, nor less, than the copy of one that ran."""
        copy = tmp_path / "copy.db"
        with Daemon(tmp_path / "socket", database=file) as daemon:
            run(capsys, "dump", "--socket", daemon.path, "--output", copy)
        for each in (file, copy):
            figures = json.loads(run(capsys, "stats", "--database", each))
            assert (figures["daemon"]["running"], figures["daemon"]["uptime"]) == (None, None)
            out = run(capsys, "stats", "--database", each, "--format", "table")
            assert out.splitlines()[0].endswith(", running or crashed")

    def test_rates(
        self,
        live: Live,
        filled: Path,
        capsys: Capture,
        rounds: Rounds,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """From the second time on there is what a second brought, unless counters began anew."""
        live.file = filled
        clock = [100.0]
        monkeypatch.setattr("scache.cli.commands.stats.time.monotonic", lambda: clock[0])

        def later(**counters: int) -> Callable[[], None]:
            def happens() -> None:
                clock[0] += 2
                with filling(filled) as cached:
                    cached.count(**counters)

            return happens

        def away() -> None:
            clock[0] += 2
            live.error = Unavailable("gone")

        def back() -> None:
            clock[0] += 2
            live.error = None

        rounds.then(later(find_dest_ok=29, snapshot_ok=4))
        rounds.then(later())
        rounds.then(away)
        rounds.then(back)
        rounds.then(later(find_dest_ok=1))
        assert execute(["stats", "--watch", "2", "--format", "jsonl"]) == EXIT_INTERRUPTED
        output = capsys.readouterr()
        rates = [json.loads(line).get("per_second") for line in output.out.splitlines()]
        assert rates == [None, {"find_dest_ok": 10, "snapshot_ok": 2}, {}, {}, None]
        assert output.err == "scache: gone; waiting for it\n"

    def test_rates_on_the_screen(self, filled: Path, capsys: Capture, rounds: Rounds) -> None:
        """A watched screen has a column of them."""

        def later() -> None:
            with filling(filled) as cached:
                cached.count(find_dest_ok=10**9)

        rounds.then(later)
        arguments = ["stats", "--watch", "2", "--format", "table", "--database", str(filled)]
        assert execute(arguments) == EXIT_INTERRUPTED
        screens = capsys.readouterr().out.split("scache 1.2.3")[1:]
        (before,), (after,) = (re.findall(r"^find_dest.*$", each, re.MULTILINE) for each in screens)
        assert len(before.split()) == 5
        assert len(after.split()) == 6

    def test_a_terminal_is_kept_up_to_date(self, filled: Path) -> None:
        """The screen is drawn in its place again and again, until Ctrl-C."""
        command = (*SCACHE, "stats", "--watch", "0.05", "--database", str(filled))
        with on_terminal(*command) as terminal:
            terminal.read_until("process 42")
            terminal.read_until("process 42")
            terminal.process.send_signal(signal.SIGINT)
            terminal.read_to_end()
            assert terminal.process.wait() == -signal.SIGINT
        assert "Traceback" not in terminal.shown


class TestOutput:
    @pytest.mark.parametrize(
        "line",
        [
            "dump connection",
            "sql 'SELECT endpoint FROM connection'",
            "events",
            "events --follow",
            "stats",
        ],
    )
    def test_csv_cannot_drive_a_terminal(self, filled: Path, line: str) -> None:
        """What would be exact elsewhere is spelled out there."""
        with filling(filled) as cached:
            cached.setting(x="\x1b[2J")
            for number, label in enumerate(ODD.values(), 100):
                cached.event("lost", id=number, endpoint=label, at=NOW + 10_000)
        command = (*SCACHE, *shlex.split(line), "--format", "csv", "--database", str(filled))
        with on_terminal(*command) as terminal:
            terminal.read_until(r"\x1b[2J")
            if "--follow" in line:
                terminal.process.send_signal(signal.SIGINT)
            terminal.read_to_end()
        assert all(each.isprintable() for each in terminal.shown.splitlines())

    @pytest.mark.parametrize("layout", ["table", "json", "jsonl", "csv"])
    @pytest.mark.parametrize("command", ["dump event", "sql SELECT~1", "stats", "events", "check"])
    def test_a_full_disk(self, filled: Path, command: str, layout: str) -> None:
        """It is one line, and nobody is asked to report it."""
        words = [word.replace("~", " ") for word in command.split()]
        with Path("/dev/full").open("wb") as full:
            result = run_command(
                *SCACHE, *words, "--database", str(filled), "--format", layout, stdout=full
            )
        sentence = "scache: cannot write the output: No space left on device\n"
        assert (result.returncode, result.stderr) == (errors.EXIT_FAILURE, sentence)

    @pytest.mark.parametrize("line", ["--help", "--version", "sql 'SELECT 1'", "stats --watch 1"])
    def test_closed(self, filled: Path, line: str) -> None:
        """Nothing else takes the number of an output that is closed, and is written to."""
        option = "" if line.startswith("--") else f"--database {filled}"
        python = f"{sys.executable} -m scache {line} {option} >&- <&-"
        result = run_command("sh", "-c", python)
        sentence = "scache: cannot write the output: Bad file descriptor\n"
        assert (result.returncode, result.stderr) == (errors.EXIT_FAILURE, sentence)

    def test_closed_and_not_needed(self, filled: Path, tmp_path: Path) -> None:
        """Who writes nothing does not care."""
        option = f"--database {filled} --output {tmp_path}/copy"
        result = run_command("sh", "-c", f"{sys.executable} -m scache dump {option} >&-")
        assert (result.returncode, result.stderr) == (errors.EXIT_OK, "")


class TestSurroundings:
    def test_help_of_each_command(self, capsys: Capture) -> None:
        """Each has an example, and says what it does."""
        for name in ("dump", "sql", "stats", "events", "check", "purge"):
            assert f"\n  Examples:\n    scache {name}" in run(capsys, name, "--help")

    def test_a_command_loads_no_daemon(self, file: Path) -> None:
        """Looking inside imports nothing of the daemon, and a file needs no client."""
        script = (
            "import sys; from scache.cli.main import execute;"
            f"execute(['sql', '--database', {str(file)!r}, 'SELECT 1 AS x', '--format', 'csv']);"
            "print([m for m in sys.modules if m.startswith(('scache.daemon', 'scache.cache',"
            " 'scache.client', 'rich', 'prompt_toolkit'))])"
        )
        result = run_command(sys.executable, "-c", script)
        assert result.stdout == '"x"\n1\n[]\n'

    def test_tools_dump_is_dump(self) -> None:
        """What runs from a checkout is the command itself."""
        script = Path(__file__).parents[2] / "tools" / "dump"
        assert os.access(script, os.X_OK)
        assert script.read_text(encoding="utf-8").endswith('exec "$venv/bin/scache" dump "$@"\n')


@pytest.mark.parametrize("width", [40, 200])
def test_a_fault_stands_above_the_figures(
    filled: Path, capsys: Capture, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with the database is the first that stats shows, all of it."""
    fault = "it cannot be written (database or disk is full): saves are refused until it can"
    with filling(filled) as cached:
        cached.setting(database_fault=fault)
    monkeypatch.setenv("COLUMNS", str(width))
    lines = run(capsys, "stats", "--database", filled, "--format", "table").splitlines()
    assert " ".join(lines[: lines.index("")]) == f"DATABASE: {fault}"
    assert max(map(len, lines)) <= width
    figures = json.loads(run(capsys, "stats", "--database", filled, "--format", "json"))
    assert figures["database"]["fault"] == fault
