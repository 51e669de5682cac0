"""The examples in the README and the manual, run as they are printed."""

from __future__ import annotations

import io
import re
import sqlite3
import subprocess
from code import InteractiveConsole
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import pytest

from scache import errors
from scache.cli.main import COMMANDS, cli, execute
from tests.support.as_user import as_user
from tests.support.commands import run_command
from tests.support.daemon import Daemon
from tests.support.manual import DOCUMENTS, PAGES, README, blocks, commands
from tests.support.sample_database import filling
from tests.support.sessions import DEMO_SOCKET, demonstration

DEMO_DATABASE = "/var/lib/postfix/scache.db"

TESTED_ELSEWHERE = ("README", "postfix", "master", "systemd")
"""Documents with recipes, which test_recipe.py, test_master.py and test_systemd.py run."""

PYTHON = [
    pytest.param(block.text, id=f"{name}-{number}")
    for name, text in DOCUMENTS.items()
    for number, block in enumerate(blocks(text, "python"))
]
SHELL = [
    pytest.param(words, id=f"{name}: {' '.join(words)}")
    for name, text in DOCUMENTS.items()
    if name not in TESTED_ELSEWHERE
    for block in blocks(text, "sh")
    for words in commands(block.text)
    if words[0] == "scache"
]
ENDLESS = {"--follow", "--watch"}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("example", PYTHON)
def test_python_example_runs_as_it_is_printed(
    path: Path, database: str, tmp_path: Path, example: str, backend: str
) -> None:
    """The database is in memory or in a file; async examples run on both event loops."""
    names = {
        DEMO_SOCKET: str(path),
        DEMO_DATABASE: str(tmp_path / "cache.db"),
        "anyio.run(main)": f"anyio.run(main, backend={backend!r})",
    }
    for ours, theirs in names.items():
        example = example.replace(ours, theirs)
    with Daemon(path, database=database):
        if database == ":memory:":
            with filling(tmp_path / "cache.db") as cached:
                cached.event("save_endp", 0, endpoint=b"\xff")
        exec(example, {})


@pytest.mark.parametrize("example", PYTHON)
def test_python_example_can_be_pasted_at_the_prompt(
    path: Path, tmp_path: Path, example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """There a blank line ends a block, and only a blank line does."""
    example = example.replace(DEMO_SOCKET, str(path)).replace(
        DEMO_DATABASE, str(tmp_path / "cache.db")
    )
    with filling(tmp_path / "cache.db"), Daemon(path):
        prompt = InteractiveConsole()
        for line in [*example.splitlines(), ""]:
            prompt.push(line)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", SHELL)
def test_command_of_a_page_works(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its options exist, and it works on a database file. An endless command is only parsed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"SELECT 1")))
    _, name, *arguments = words[: words.index(">")] if ">" in words else words
    if name == "--version":
        assert execute([name]) == errors.EXIT_OK
        return
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    command.make_context(name, list(arguments)).close()
    with filling(tmp_path / "cache.db"):
        pass
    if name not in ("purge", "ping", "exporter", "completion", "help") and not ENDLESS & set(
        arguments
    ):
        assert execute([name, *arguments, "--database", "cache.db"]) == errors.EXIT_OK


def test_commands_page_shows_every_command_that_looks_inside() -> None:
    """The commands of the daemon, of systemd's units and of the manual have pages of their own."""
    script = "".join(block.text for block in blocks(PAGES["commands"], "sh"))
    shown = {words[1] for words in commands(script) if words[0] == "scache"}
    assert shown == {*COMMANDS} - {"serve", "unit", "help"}


@pytest.mark.root
def test_sqlite3_reads_file_at_rest_only_as_immutable() -> None:
    """The user cannot write to the directory; `-readonly` fails, and `scache sql` works."""
    (immutable,) = (
        words
        for block in blocks(PAGES["sql"], "sh")
        for words in commands(block.text)
        if "immutable" in words[1]
    )
    statement = "SELECT count(*) FROM event"
    with TemporaryDirectory(prefix="scache-test-") as name:
        Path(name).chmod(0o755)
        file = Path(name, "cache.db")
        with filling(file) as cached:
            cached.event("expired")
        file.chmod(0o644)

        def asked(*words: str) -> subprocess.CompletedProcess[str]:
            command = (word.replace(DEMO_DATABASE, str(file)) for word in words)
            return as_user(lambda: run_command(*command, statement))

        refused = asked("sqlite3", "-readonly", DEMO_DATABASE)
        assert "attempt to write a readonly database" in refused.stderr
        assert asked(*immutable).stdout == "1\n"
        look = ["sql", "--database", str(file), statement]
        assert as_user(lambda: execute(look)) == errors.EXIT_OK


def test_label_that_is_not_utf8_stops_a_tool_that_decodes(tmp_path: Path) -> None:
    """The error message is the one on the page of SQL."""
    (words,) = re.findall(r"`OperationalError: (.*?)`", PAGES["sql"])
    with filling(tmp_path / "cache.db") as cached:
        cached.event("expired", endpoint=b"\xff")
    with (
        closing(sqlite3.connect(tmp_path / "cache.db")) as connection,
        pytest.raises(sqlite3.OperationalError, match=words),
    ):
        connection.execute("SELECT endpoint FROM event").fetchall()


def test_sessions_of_the_readme_show_the_real_output(tmp_path: Path) -> None:
    """Finder and saver have the same connection; the second session looks at the first."""
    first, look = blocks(README, "console")
    with demonstration(tmp_path) as shell:
        outcomes = shell.run(first.text)
        saver, finder = (outcome for outcome in outcomes if "at local port" in outcome)
        assert saver == finder
        shell.run(look.text)
