"""Standard output of the commands: a terminal, a full disk, a closed descriptor."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path

import pytest

from scache import errors
from tests.support.commands import SCACHE, run_command
from tests.support.sample_database import NOW, ODD, filling
from tests.support.terminal import on_terminal

pytestmark = pytest.mark.usefixtures("narrow")


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
def test_csv_is_escaped_on_a_terminal(filled: Path, line: str) -> None:
    """Elsewhere CSV is exact."""
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
def test_full_disk_is_one_line(filled: Path, command: str, layout: str) -> None:
    """It does not ask to report a bug."""
    words = [word.replace("~", " ") for word in command.split()]
    with Path("/dev/full").open("wb") as full:
        result = run_command(
            *SCACHE, *words, "--database", str(filled), "--format", layout, stdout=full
        )
    sentence = "scache: cannot write the output: No space left on device\n"
    assert (result.returncode, result.stderr) == (errors.EXIT_FAILURE, sentence)


@pytest.mark.parametrize("line", ["--help", "--version", "sql 'SELECT 1'", "stats --watch 1"])
def test_closed_output_is_one_line(filled: Path, line: str) -> None:
    """No file that the command opens takes the number of standard output."""
    option = "" if line.startswith("--") else f"--database {filled}"
    python = f"{sys.executable} -m scache {line} {option} >&- <&-"
    result = run_command("sh", "-c", python)
    sentence = "scache: cannot write the output: Bad file descriptor\n"
    assert (result.returncode, result.stderr) == (errors.EXIT_FAILURE, sentence)


def test_closed_output_is_no_error_without_output(filled: Path, tmp_path: Path) -> None:
    """A command that writes only a file succeeds."""
    option = f"--database {filled} --output {tmp_path}/copy"
    result = run_command("sh", "-c", f"{sys.executable} -m scache dump {option} >&-")
    assert (result.returncode, result.stderr) == (errors.EXIT_OK, "")


@pytest.mark.parametrize(
    ("line", "shown"),
    [("events --follow", ["expired"]), ("stats --watch 0.05", ["process 42", "process 42"])],
)
def test_ctrl_c_ends_a_repeated_output_quietly(filled: Path, line: str, shown: list[str]) -> None:
    """The process ends by the signal, as a shell expects. Until then it writes again and again."""
    command = (*SCACHE, *line.split(), "--database", str(filled))
    with on_terminal(*command) as terminal:
        for text in shown:
            terminal.read_until(text)
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_to_end()
        assert terminal.process.wait() == -signal.SIGINT
    assert "Traceback" not in terminal.shown
