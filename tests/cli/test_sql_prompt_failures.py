"""Failures at the prompt of ``scache sql``: each is one line, and the session goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scache import errors
from tests.support.commands import SCACHE, run_command
from tests.support.sample_database import filling
from tests.support.terminal import Terminal, on_terminal

CTRL_D, UP = "\x04", "\x1b[A"

LITTLE_MEMORY = ("prlimit", "--as=200000000")
"""Leaves a command 200 MB, which is more than it needs, and less than the tests ask for."""

NO_FILE_SIZE = ("prlimit", "--fsize=0")
"""Lets no file grow, as on a full disk; terminals and pipes work."""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return a directory of the history that does not exist yet."""
    return tmp_path / "state"


@contextmanager
def prompt(file: Path, state: Path, *before: str) -> Iterator[Terminal]:
    """Start a prompt; afterwards check that it still answers, and end it."""
    command = (*before, *SCACHE, "sql", "--database", str(file))
    with on_terminal(*command, columns=200, XDG_STATE_HOME=str(state)) as terminal:
        terminal.read_until("scache>")
        yield terminal
        terminal.type("SELECT 'still ' || 'here';\r")
        terminal.read_until("still here")
        terminal.read_until("scache>")
        terminal.type(CTRL_D)
        terminal.read_to_end()
        assert terminal.process.wait() == errors.EXIT_OK
    assert "Traceback" not in terminal.shown
    assert "unforeseen" not in terminal.shown
    assert "Unhandled" not in terminal.shown


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("SELECT length(hex(zeroblob(200000000)));", "out of memory\r\n"),
        ("SELECT zeroblob(900000000) || 'x';", "out of memory\r\n"),
        ("SELECT zeroblob(2000000000);", "string or blob too big\r\n"),
        (f"SELECT 1{'+1' * 1100};", "Expression tree is too large"),
        (f"SELECT {'(' * 200}1;", "parser stack overflow"),
        ("SELECT json_extract('[', '$');", "malformed JSON"),
        ("SELECT abs(-9223372036854775808);", "integer overflow"),
    ],
)
def test_prompt_goes_on_after_a_statement_failed(
    file: Path, state: Path, statement: str, sentence: str
) -> None:
    """The failure is one line."""
    with prompt(file, state, *LITTLE_MEMORY) as terminal:
        terminal.type(f"{statement}\r")
        terminal.read_until(sentence)
        terminal.read_until("scache>")


def test_prompt_goes_on_after_a_statement_damaged_the_copy(file: Path, state: Path) -> None:
    """A new copy is sound."""
    damage = "UPDATE sqlite_schema SET sql = 'x'"
    with prompt(file, state) as terminal:
        terminal.type(f"PRAGMA writable_schema = ON; {damage}; PRAGMA writable_schema = RESET;\r")
        terminal.type("SELECT * FROM counter;\r")
        terminal.read_until("the image is corrupt")
        terminal.read_until("scache>")
        terminal.type(".refresh\r")
        terminal.read_until("scache>")


@pytest.mark.parametrize("variable", ["PYTHONIOENCODING=ascii", "PYTHONIOENCODING=utf-8"])
def test_prompt_reads_utf8_whatever_the_encoding(file: Path, state: Path, variable: str) -> None:
    """The history keeps the statement."""
    with prompt(file, state, "env", variable) as terminal:
        terminal.type("SELECT unicode('ü') + 1000;\r")
        terminal.read_until("1252")
        terminal.read_until("scache>")
    assert "unicode('ü')" in (state / "scache" / "sql-history").read_text(encoding="utf-8")


def without_room(state: Path) -> None:
    """Make an empty history; the command may not write to it."""
    (state / "scache").mkdir(parents=True)
    (state / "scache" / "sql-history").touch()


def a_directory(state: Path) -> None:
    """Make a directory in place of the history."""
    (state / "scache" / "sql-history").mkdir(parents=True)


def a_pipe(state: Path) -> None:
    """Make a named pipe in place of the history, which would block."""
    (state / "scache").mkdir(parents=True)
    os.mkfifo(state / "scache" / "sql-history")


def a_file(state: Path) -> None:
    """Make a file in place of the directory."""
    state.touch()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (without_room, "File too large"),
        (a_directory, "it is no regular file"),
        (a_pipe, "it is no regular file"),
        (a_file, "Not a directory"),
    ],
)
def test_prompt_goes_on_without_a_history_file(
    file: Path, state: Path, make: Callable[[Path], None], reason: str
) -> None:
    """A line says so once, and the arrow keys bring back the statements of this session."""
    make(state)
    with prompt(file, state, *NO_FILE_SIZE) as terminal:
        for text in ("first", "second"):
            terminal.type(f"SELECT 'the ' || '{text}';\r")
            terminal.read_until(f"the {text}")
            terminal.read_until("scache>")
        terminal.type(f"{UP}{UP}\r")
        terminal.read_until("the first")
    path = state / "scache" / "sql-history"
    sentence = f"the history ends with this session: cannot use {path}: {reason}"
    assert terminal.shown.count(sentence) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_prompt_goes_on_if_the_history_may_not_be_read(file: Path, state: Path) -> None:
    """A line says so."""
    without_room(state)
    (state / "scache" / "sql-history").chmod(0o200)
    with prompt(file, state) as terminal:
        terminal.type("SELECT 1;\r")
        terminal.read_until("Permission denied")


@pytest.mark.parametrize(
    "line",
    ["sql SELECT~length(hex(zeroblob(200000000)))", "sql SELECT~1", "stats", "dump", "check"],
)
def test_command_without_memory_says_so(file: Path, line: str) -> None:
    """The exit code is 8, also if the database itself is too large for the memory."""
    if "hex" not in line:
        with filling(file) as cached:
            cached.run("CREATE TABLE large AS SELECT zeroblob(120000000) AS x")
    words = [word.replace("~", " ") for word in line.split()]
    done = run_command(*LITTLE_MEMORY, *SCACHE, *words, "--database", file)
    assert done.returncode == errors.EXIT_NOT_NOW
    assert done.stderr == "scache: out of memory\n"
