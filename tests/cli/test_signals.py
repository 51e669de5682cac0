"""Signals end every command at any moment, without a message and without leftovers."""

from __future__ import annotations

import json
import shlex
import socket
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, Signals

import pytest

from scache import Client, errors
from scache.inspection.image import Image
from scache.store.replacing import CHUNK
from tests.support.commands import SCACHE, ignoring, started
from tests.support.daemon import Daemon
from tests.support.moments import Moment, at_event, at_line, at_return, interrupted
from tests.support.sample_database import filling
from tests.support.terminal import on_terminal

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT sum(i) FROM n"
ENDLESS_ROWS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i FROM n"
ENDLESS_STEP = "SELECT instr(hex(zeroblob(5000000)), hex(zeroblob(2000000)) || 'x')"
"""Half an hour in one instruction of SQLite, which has no progress callback meanwhile."""

ENDING = [SIGINT, SIGTERM, SIGHUP]

COMMANDS = [
    "events",
    "events --follow --interval 0.01",
    "stats",
    "stats --watch 0.01",
    "sql 'SELECT * FROM event_log'",
    "dump",
    "check",
    "purge --all",
    "serve --show-config",
    "--help",
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Make a database file with connections and events; their image takes several chunks."""
    path = tmp_path / "cache.db"
    with filling(path) as cached:
        cached.instance()
        for number in range(1, 4):
            cached.connection(number, properties=bytes(CHUNK))
            cached.event("save_endp", 0, connection_id=number)
    return path


def words(line: str, file: Path) -> list[str]:
    """Return the words of a command, with the database file if it can read one."""
    command = shlex.split(line)
    if command[0] in ("events", "stats", "sql", "dump", "check"):
        command += ["--database", str(file)]
    return command


class TestAnyMoment:
    @pytest.mark.parametrize("count", [30, 20_000, 80_000])
    @pytest.mark.parametrize("line", COMMANDS)
    def test_sigint_ends_every_command_at_once(self, file: Path, line: str, count: int) -> None:
        """The process ends by the signal without a message, also while it imports modules."""
        result = interrupted(at_event(count), *words(line, file))
        assert (result.returncode, result.stderr) == (-SIGINT, "")

    @pytest.mark.slow
    @pytest.mark.parametrize("count", range(5_000, 160_000, 7_919))
    @pytest.mark.parametrize("line", ["events --follow", "stats --watch 0.01", "dump", "check"])
    def test_sigint_ends_a_command_at_each_of_many_moments(
        self, file: Path, line: str, count: int
    ) -> None:
        """The moments are spread from the first import to the last row."""
        result = interrupted(at_event(count), *words(line, file))
        assert (result.returncode, result.stderr) == (-SIGINT, "")

    @pytest.mark.parametrize("count", range(1, 9))
    def test_sigint_ends_events_while_a_generator_is_closed(self, file: Path, count: int) -> None:
        """Python would discard an exception there, and the command would go on for ever."""
        command = words("events --follow --interval 0.01", file)
        result = interrupted(at_return(count, "image.py:_rest"), *command)
        assert (result.returncode, result.stderr) == (-SIGINT, "")

    @pytest.mark.parametrize("statement", [ENDLESS, ENDLESS_STEP, ENDLESS_ROWS])
    @pytest.mark.parametrize("number", ENDING)
    def test_signal_ends_a_statement_that_never_ends(
        self, file: Path, statement: str, number: Signals
    ) -> None:
        """It does not wait for SQLite, not even for one of its instructions."""
        sql = f"SELECT 'it has ' || 'begun'; {statement}"
        with started(*SCACHE, "sql", "--database", str(file), sql) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            while b"it has begun" not in process.stdout.readline():
                assert process.poll() is None
            process.send_signal(number)
            while process.stdout.read(CHUNK):
                pass
            assert process.stderr.read() == b""
        assert process.returncode == -number

    @pytest.mark.parametrize("command", ["dump", "stats", "events --follow", "purge --all --yes"])
    def test_sigint_ends_a_command_whose_daemon_does_not_answer(
        self, tmp_path: Path, command: str
    ) -> None:
        """It does not wait for the time-out of the client."""
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            with started(*SCACHE, *command.split(), "--socket", str(path)) as process:
                accepted, _ = listener.accept()
                with accepted:
                    assert process.stderr is not None
                    process.send_signal(SIGINT)
                    assert process.stderr.read() == b""
        assert process.returncode == -SIGINT

    def test_sigint_ends_the_question_of_purge(self, tmp_path: Path) -> None:
        """Nothing is purged, and the terminal is as it was."""
        with Daemon(tmp_path / "s") as daemon, Client(daemon.path) as client:
            with socket.socket() as something:
                client.save_endp(60, "e", "", something)
            with on_terminal(*SCACHE, "purge", "--all", "--socket", str(daemon.path)) as terminal:
                terminal.read_until("Purge everything")
                terminal.read_until("[y/N]")
                terminal.type("\x03")
                terminal.read_to_end()
                assert terminal.process.wait() == -SIGINT
                assert terminal.is_cooked()
            found = client.find_endp("e")
            assert found is not None
            found.close()


def test_sigint_ends_a_daemon_that_is_stopping(tmp_path: Path) -> None:
    """After its last request it ends by the signal, without a traceback."""
    options = ("--socket", str(tmp_path / "socket"), "--max-idle", "0.1")
    result = interrupted(at_return(1, "maintenance.py:log_statistics"), "serve", *options)
    assert result.returncode == -SIGINT
    assert all(line.startswith("scache[") for line in result.stderr.splitlines())


class TestIgnored:
    def test_sigint_that_was_ignored_at_the_start_stays_ignored(self, file: Path) -> None:
        """With nohup and in the background of a script, the command goes on."""
        command = [*SCACHE, *words("events --follow --interval 0.01 --format jsonl", file)]
        with started(*ignoring(SIGINT), *command) as process:
            assert process.stdout is not None
            for _ in range(3):
                process.stdout.readline()
            process.send_signal(SIGINT)
            with filling(file) as cached:
                cached.event("lost", id=99)
            assert json.loads(process.stdout.readline())["id"] == 99
            process.send_signal(SIGTERM)
            assert process.wait() == -SIGTERM

    def test_dump_completes_when_an_ignored_signal_comes(self, file: Path) -> None:
        """A signal that ends nothing does not stop the writing of a file."""
        copy = file.with_name("copy")
        command = (*words("dump", file), "--output", str(copy))
        result = interrupted(at_line(5, "replacing.py:replace"), *command, ignored=True)
        assert result.returncode == errors.EXIT_OK
        Image.from_file(copy).close()


def dumped(moment: Moment, file: Path, number: Signals) -> bool:
    """Interrupt ``dump --output``; check the files; return True if the signal ended it."""
    copy = file.with_name("copy")
    command = (*words("dump", file), "--output", str(copy))
    result = interrupted(moment, *command, number=number)
    left = {each.name for each in file.parent.iterdir()}
    assert left - {copy.name} == {file.name}
    if copy.exists():
        Image.from_file(copy).close()
    assert result.returncode == errors.EXIT_OK or result.stderr == ""
    assert result.returncode in (-number, errors.EXIT_OK)
    return result.returncode == -number


class TestDumpOutput:
    @pytest.mark.parametrize("number", ENDING)
    @pytest.mark.parametrize("count", [2, 4, 8])
    def test_signal_leaves_no_temporary_file(self, file: Path, number: Signals, count: int) -> None:
        """The signal waits until the file has its final name or is removed."""
        assert dumped(at_line(count, "replacing.py:replace"), file, number)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "number",
        [SIGTERM, *(pytest.param(each, marks=pytest.mark.long) for each in (SIGINT, SIGHUP))],
    )
    def test_signal_leaves_no_temporary_file_at_any_line(self, file: Path, number: Signals) -> None:
        """It may come before the file is made, while it is written or renamed, and afterwards."""
        count = 1
        while dumped(at_line(count, "replacing.py:replace"), file, number):
            count += 1
        assert count > 10

    def test_signal_ends_a_dump_at_the_next_chunk(self, file: Path) -> None:
        """A large file on a slow disk is not completed first."""
        assert dumped(at_return(1, "replacing.py:_held_back"), file, SIGINT)
        assert not file.with_name("copy").exists()


class TestLiveScreen:
    @pytest.mark.parametrize("number", ENDING)
    def test_signal_leaves_the_terminal_as_it_was(self, file: Path, number: Signals) -> None:
        """The cursor was never hidden, and is at the begin of a line."""
        with on_terminal(*SCACHE, *words("stats --watch 0.05", file)) as terminal:
            terminal.read_until("process 42")
            terminal.read_until("process 42")
            terminal.process.send_signal(number)
            terminal.read_to_end()
            assert terminal.process.wait() == -number
            assert terminal.is_cooked()
        assert "\x1b[?25l" not in terminal.shown
        assert "\x1b[?1049h" not in terminal.shown
        assert terminal.shown.endswith("\r\n")
