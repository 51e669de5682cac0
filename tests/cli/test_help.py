"""The command ``scache help``: the list of pages, a page in a pipe and on a terminal."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from scache import errors
from scache.cli.commands.help import TOPICS, summary
from scache.cli.main import COMMANDS, execute
from tests.support.commands import SCACHE, run_command
from tests.support.manual import PAGES
from tests.support.terminal import on_terminal

Capture = pytest.CaptureFixture[str]

ESCAPE = re.compile(r"\x1b\[[\d;]*m")

PAGER = """\
#!/bin/sh
trap 'echo interrupted' INT
cat >/dev/null
echo 'the page is here'
read key </dev/tty
echo 'the pager ends'
"""

WRITE_TO_A_CLOSED_PIPE = """
import os, signal
from scache.cli.interrupts import left_to_pager

signals = (signal.SIGINT, signal.SIGPIPE)
for number in signals:
    signal.signal(number, signal.SIG_DFL)
reader, writer = os.pipe()
os.close(reader)
with left_to_pager():
    try:
        os.write(writer, b"page")
    except BrokenPipeError:
        signal.raise_signal(signal.SIGINT)
assert [signal.getsignal(number) for number in signals] == [signal.SIG_DFL] * 2
"""


def test_help_lists_each_topic_with_a_line(capsys: Capture) -> None:
    """The list fits 80 columns, below a line that says how to show a page."""
    assert execute(["help"]) == errors.EXIT_OK
    first, empty, *lines = capsys.readouterr().out.splitlines()
    assert "scache help TOPIC" in first
    assert empty == ""
    assert [line.split(maxsplit=1) for line in lines] == [
        [topic, summary(PAGES[topic])] for topic in TOPICS
    ]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("topic", TOPICS)
def test_help_writes_a_page_as_markdown_into_a_pipe(capsys: Capture, topic: str) -> None:
    """The output is the file, byte for byte."""
    assert execute(["help", topic]) == errors.EXIT_OK
    assert capsys.readouterr() == (PAGES[topic], "")


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize("columns", [60, 200])
def test_help_formats_a_page_for_a_terminal(topic: str, columns: int) -> None:
    """No line is wider than the terminal, or than 100 columns; there is no markup of Markdown."""
    command = (*SCACHE, "help", topic)
    with on_terminal(*command, columns=columns, PAGER="cat", LESS="R") as terminal:
        shown = ESCAPE.sub("", terminal.read_to_end()).replace("\r\n", "\n")
    assert terminal.process.returncode == errors.EXIT_OK
    assert max(map(len, shown.splitlines())) <= min(columns, 100)
    assert summary(PAGES[topic])[:20] in shown
    assert not re.search(r"^#|\*\*|```", shown, re.MULTILINE)


def test_help_works_without_a_pager(tmp_path: Path) -> None:
    """The page is written to the terminal."""
    with on_terminal(*SCACHE, "help", "limits", PAGER=str(tmp_path / "none")) as terminal:
        assert "max_clients" in terminal.read_to_end()
    assert terminal.process.returncode == errors.EXIT_OK


def test_help_succeeds_when_the_pager_is_left_early() -> None:
    """The closed pipe is no error."""
    with on_terminal(*SCACHE, "help", "sql", PAGER="head -n 3") as terminal:
        assert "SQL" in terminal.read_to_end()
    assert terminal.process.returncode == errors.EXIT_OK


def test_left_to_pager_ignores_a_closed_pipe() -> None:
    """Afterwards the signals have their actions back."""
    result = run_command(sys.executable, "-c", WRITE_TO_A_CLOSED_PIPE)
    assert (result.returncode, result.stderr) == (errors.EXIT_OK, "")


def test_help_leaves_ctrl_c_to_the_pager(tmp_path: Path) -> None:
    """The command waits for the pager. Otherwise pager and shell would both read the keyboard."""
    pager = tmp_path / "pager"
    pager.write_text(PAGER)
    pager.chmod(0o755)
    with on_terminal(*SCACHE, "help", "limits", PAGER=str(pager)) as terminal:
        terminal.read_until("the page is here")
        terminal.type("\x03")
        terminal.read_until("interrupted")
        assert terminal.process.poll() is None
        terminal.type("\n")
        terminal.read_until("the pager ends")
        terminal.read_to_end()
    assert terminal.process.returncode == errors.EXIT_OK


@pytest.mark.parametrize(
    ("topic", "sentence"),
    [
        ("postfx", "the manual has no page 'postfx', did you mean postfix?"),
        ("oncall", "the manual has no page 'oncall', did you mean on-call?"),
        ("exit-code", "the manual has no page 'exit-code', did you mean exit-codes?"),
        ("Python", "the manual has no page 'Python', did you mean python?"),
        ("../x", f"the manual has no page '../x': there are {', '.join(TOPICS)}"),
        ("", f"the manual has no page '': there are {', '.join(TOPICS)}"),
        ("purge", "purge is a command: see `scache purge --help`, or `scache help commands`"),
    ],
)
def test_help_suggests_the_nearest_topic(capsys: Capture, topic: str, sentence: str) -> None:
    """An unknown topic is one line, and exit code 2."""
    assert execute(["help", topic]) == errors.EXIT_SETTINGS
    assert capsys.readouterr() == ("", f"scache: {sentence}\n")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in TOPICS])
def test_help_of_a_command_names_its_option(capsys: Capture, name: str) -> None:
    """A command that is no topic has the option ``--help``."""
    assert execute(["help", name]) == errors.EXIT_SETTINGS
    assert f"scache {name} --help" in capsys.readouterr().err


def test_help_option_names_the_manual(capsys: Capture) -> None:
    """It says how to list the pages and how to show one."""
    assert execute(["--help"]) == errors.EXIT_OK
    text = " ".join(capsys.readouterr().out.split())
    assert "`scache help`" in text
    assert "`scache help TOPIC`" in text


def test_help_works_with_another_encoding() -> None:
    """Characters that the encoding lacks are escaped."""
    result = run_command(*SCACHE, "help", "architecture", PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (errors.EXIT_OK, "")
