"""The prompt of ``scache sql``, with and without a terminal."""

from __future__ import annotations

import re
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from scache.cli import sql_prompt, statements
from scache.cli.render.formats import Format
from scache.cli.target import Target
from scache.errors import Unavailable
from scache.inspection.image import Image
from tests.support.commands import SCACHE
from tests.support.daemon import Daemon
from tests.support.sample_database import ODD, filling
from tests.support.terminal import on_terminal

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT sum(i) FROM n"

CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"

Capture = pytest.CaptureFixture[str]
Prompt = Callable[[str], list[str]]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the history in a directory of the test."""
    directory = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(directory))
    monkeypatch.setenv("COLUMNS", "60")
    return directory


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Make a database file with a connection or two."""
    path = tmp_path / "cache.db"
    with filling(path) as cached:
        cached.connection(1, b"mx.example.org:25")
        cached.connection(2, ODD["escape"])
    return path


@pytest.fixture
def prompt(file: Path, capsys: Capture) -> Iterator[Prompt]:
    """Yield a function that types keys and returns the lines of output after the first."""
    with ExitStack() as stack:
        keyboard = stack.enter_context(create_pipe_input())
        stack.enter_context(create_app_session(input=keyboard, output=DummyOutput()))

        def prompt(typed: str, layout: Format = "csv") -> list[str]:
            keyboard.send_text(typed)
            sql_prompt.run_prompt(Target(str(file)), layout, {"one": 1})
            output = capsys.readouterr()
            first, *rest = (output.out + output.err).splitlines()
            assert first == f"A copy of the database {file}, as it is now. Type .help for help."
            return rest

        yield prompt


def test_prompt_statement_ends_with_a_semicolon(prompt: Prompt) -> None:
    """It may have several lines: Enter begins the next one."""
    assert prompt(f"SELECT\r1\rAS ';';\r{CTRL_D}") == ['";"', "1"]


def test_prompt_statements_share_the_image(prompt: Prompt) -> None:
    """A statement sees the changes of those before; parameters are for all."""
    typed = "DELETE FROM connection WHERE id = :one;\rSELECT count(*) AS n FROM connection;\r"
    assert prompt(typed + CTRL_D) == ['"n"', "1"]


def test_prompt_goes_on_after_an_error(prompt: Prompt) -> None:
    """The error is one line."""
    said = prompt(f"SELEC;\rATTACH 'x' AS y;\rSELECT 1 AS x;\r{CTRL_D}")
    assert said[:2] == ['"x"', "1"]
    assert said[2] == 'near "SELEC": syntax error'
    assert said[3].startswith("ATTACH and VACUUM are not allowed")


def test_prompt_ctrl_c_drops_the_typed_line(prompt: Prompt) -> None:
    """The prompt is shown again."""
    assert prompt(f"SELECT nonsense\r{CTRL_C}SELECT 1 AS x;\r{CTRL_D}") == ['"x"', "1"]


@pytest.mark.parametrize(
    "end", [CTRL_D, ".quit\r", ".exit;\r", "quit\r", "exit\r", "EXIT;\r", "quit ;\r"]
)
def test_prompt_ends_at_ctrl_d_or_quit(prompt: Prompt, end: str) -> None:
    """An empty line does not end it."""
    assert prompt(f"\r;\r{end}") == []


def test_prompt_lists_tables_and_views(prompt: Prompt) -> None:
    """Each is shown with its columns."""
    said = prompt(f".tables\r{CTRL_D}")
    assert "counter(name, value)" in said
    assert any(line.startswith("saved_never_found(endpoint, saved, found, ") for line in said)


def test_prompt_schema_shows_sql_of_tables_and_views(prompt: Prompt) -> None:
    """With a name it is the SQL of one table; an unknown name is answered with a similar one."""
    said = prompt(f".schema\r.schema counter\r.schema countr\r.schema\t{CTRL_C}{CTRL_D}")
    created = [line for line in said if line.startswith("CREATE ")]
    assert any(line.startswith("CREATE VIEW lifetime") for line in created)
    assert sum(line.startswith("CREATE TABLE counter") for line in created) == 2
    assert said[-1] == "there is no table or view countr, did you mean counter?"


@pytest.mark.parametrize("word", ["help", "HELP;", ".help"])
def test_prompt_help_works_without_point(prompt: Prompt, word: str) -> None:
    """A user types this word without knowing the commands."""
    assert prompt(f"{word}\r{CTRL_D}") == sql_prompt.HELP.splitlines()


def test_prompt_suggests_a_similar_command(prompt: Prompt) -> None:
    """A command that does not exist is never executed as SQL."""
    said = prompt(f".tabels\r{CTRL_D}")
    assert said == ["there is no command .tabels, did you mean .tables?"]


def test_prompt_has_help(prompt: Prompt) -> None:
    """An unknown command is one line."""
    said = prompt(f".help\r.nonsense\r{CTRL_D}")
    assert said == [
        *sql_prompt.HELP.splitlines(),
        "there is no command .nonsense: .help lists the commands",
    ]


def test_prompt_refresh_takes_a_new_image(
    prompt: Prompt, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image does not change before. If no daemon answers, the old image stays."""
    take = Image.from_file
    taken: list[Image] = []

    def from_file(path: str, *, sound: bool = True) -> Image:
        if len(taken) == 2:
            raise Unavailable("no daemon\nanswers")
        if taken:
            with filling(file) as cached:
                cached.connection(3)
        taken.append(take(path, sound=sound))
        return taken[-1]

    monkeypatch.setattr(Image, "from_file", from_file)
    count = "SELECT count(*) AS n FROM connection;\r"
    said = prompt(f"{count}.refresh\r{count}.refresh\r{count}{CTRL_D}")
    assert said == ['"n"', "2", '"n"', "3", '"n"', "3", r"no daemon\nanswers"]


def test_prompt_keeps_a_history(prompt: Prompt, state: Path) -> None:
    """A later session brings back a statement; other users cannot read the file."""
    assert prompt(f"SELECT\r5 AS x;\r{CTRL_D}") == ['"x"', "5"]
    assert prompt(f"{UP}\r{CTRL_D}") == ['"x"', "5"]
    history = state / "scache" / "sql-history"
    assert "5 AS x" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700


def test_prompt_works_without_a_history_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The history is in memory then."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    assert isinstance(sql_prompt.make_session().history, InMemoryHistory)


def test_prompt_history_is_in_the_default_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative XDG_STATE_HOME is ignored."""
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    sql_prompt.make_session()
    assert (tmp_path / ".local" / "state" / "scache" / "sql-history").exists()


@pytest.mark.parametrize(
    ("typed", "become"),
    [
        ("SELECT * FROM saved_n", "SELECT * FROM saved_never_found"),
        ("sel", "SELECT"),
        ("SELECT descriptor.tcp", "SELECT descriptor.tcp_state"),
        (".ta", ".tables"),
        (".", ".tables .schema .refresh .help .quit"),
        ("SELECT connection.ref", ""),
        ("SELECT connection.", ""),
    ],
)
def test_prompt_completes_names(file: Path, typed: str, become: str) -> None:
    """Tables, views, columns and SQL are completed, and commands at the begin of a line."""
    with Image.from_file(file) as image:
        found = sql_prompt.SqlCompleter(image).get_completions(Document(typed), CompleteEvent())
        texts = [typed[: len(typed) + each.start_position] + each.text for each in found]
    assert " ".join(texts) == become


def test_prompt_works_on_a_terminal(file: Path, state: Path) -> None:
    """The session has a table, an error, an escaped label and Ctrl-D."""
    command = (*SCACHE, "sql", "--database", str(file))
    with on_terminal(*command, XDG_STATE_HOME=str(state)) as terminal:
        terminal.read_until("scache>")
        terminal.type("SELECT id,\r")
        terminal.read_until("...>")
        terminal.type("endpoint FROM connection ORDER BY id;\r")
        shown = terminal.read_until(r"\x1b[2J\x1b]0;title\x07")
        assert re.search(r"1 +mx\.example\.org:25", shown)
        terminal.read_until("scache>")
        terminal.type("SELECT;\r")
        terminal.read_until("syntax error")
        terminal.read_until("scache>")
        terminal.type(CTRL_D)
        terminal.read_to_end()
        assert terminal.process.wait() == 0


@pytest.mark.parametrize("what", ["sum(i)", "i"])
def test_prompt_ctrl_c_interrupts_a_statement(file: Path, state: Path, what: str) -> None:
    """The session goes on."""
    begin = "SELECT 'it has ' || 'begun';"
    endless = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT {what} FROM n;"
    command = (*SCACHE, "sql", "--database", str(file))
    with on_terminal(*command, columns=200, XDG_STATE_HOME=str(state)) as terminal:
        terminal.read_until("scache>")
        terminal.type(f"{begin} {endless}\r")
        terminal.read_until("it has begun")
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until("scache>")
        terminal.type("SELECT 'still ' || 'here';\r")
        terminal.read_until("still here")
        terminal.read_until("scache>")
        terminal.type(CTRL_D)
        terminal.read_to_end()
        assert terminal.process.wait() == 0


def test_prompt_ctrl_c_interrupts_a_statement_that_has_not_begun(
    prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal between Enter and the statement is not lost."""

    def execute(*arguments: Any, **options: Any) -> None:  # noqa: ANN401 - those of the original
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)
        statements.execute(*arguments, **options)

    monkeypatch.setattr(sql_prompt, "execute", execute)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert prompt(f"{ENDLESS};\rSELECT 1 AS x;\r{CTRL_D}") == ['"x"', "1"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_that_ends_the_prompt_restores_the_terminal(
    file: Path, state: Path, number: signal.Signals
) -> None:
    """Echo and cursor are on, and bracketed paste is off."""
    command = (*SCACHE, "sql", "--database", str(file))
    with on_terminal(*command, XDG_STATE_HOME=str(state)) as terminal:
        terminal.read_until("scache>")
        terminal.type("SELECT 1")
        terminal.read_until("1")
        assert not terminal.is_cooked()
        terminal.process.send_signal(number)
        terminal.read_to_end()
        assert terminal.process.wait() == -number
        assert terminal.is_cooked()
    for mode in ("?25", "?2004"):
        switches = re.findall(rf"\x1b\[{re.escape(mode)}[hl]", terminal.shown)
        assert switches[-1] == f"\x1b[{mode}{'h' if mode == '?25' else 'l'}"


def test_prompt_ctrl_c_during_refresh_ends_the_command(path: Path, state: Path) -> None:
    """It does not wait for a daemon that does not answer."""
    command = (*SCACHE, "sql", "--socket", str(path))
    with ExitStack() as stack:
        with Daemon(path):
            terminal = stack.enter_context(on_terminal(*command, XDG_STATE_HOME=str(state)))
            terminal.read_until("scache>")
        silent = stack.enter_context(socket.socket(socket.AF_UNIX))
        path.unlink(missing_ok=True)
        silent.bind(str(path))
        silent.listen()
        terminal.type(".refresh\r")
        stack.enter_context(silent.accept()[0])
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_to_end()
        assert terminal.process.wait() == -signal.SIGINT
