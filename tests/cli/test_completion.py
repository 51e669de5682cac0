"""Completion of command lines in shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scache import errors
from scache.cli.commands.help import TOPICS
from scache.cli.main import COMMANDS, cli
from scache.cli.shell_completion import SHELLS, answer
from scache.inspection.empty import empty_image
from scache.vocabulary import KINDS
from tests.support.commands import SCACHE, clean_environment, run_command
from tests.support.looking import Capture
from tests.support.terminal import Terminal, on_terminal

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
"""A search path with the command scache of this environment."""

FILE = "file"
"""The type of answer that makes the shell complete the name of a file."""


def completed(capsys: Capture, monkeypatch: pytest.MonkeyPatch, line: str) -> list[tuple[str, str]]:
    """Return the types and values of the completions of the last word of a line, for bash."""
    words = line.split(" ")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    assert answer("bash_complete", cli) == errors.EXIT_OK
    found = [answered.split(",", 1) for answered in capsys.readouterr().out.split()]
    return [(kind, value) for kind, value in found]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("scache ", COMMANDS),
        ("scache s", ("serve", "stats", "sql")),
        ("scache completion ", SHELLS),
        ("scache help ", TOPICS),
        ("scache help ex", ("exit-codes",)),
        ("scache unit s", ("service", "socket")),
        ("scache stats --wat", ("--watch",)),
        ("scache stats --format ", ("table", "json", "jsonl", "csv")),
        ("scache events --kind ", KINDS),
        ("scache events --outcome ", ("ok", "fail", "bad")),
        ("scache serve --on-data ", ("keep", "close")),
        ("scache serve --on-corrupt=", ("set-aside", "refuse")),
        ("scache serve --log-level w", ("warning",)),
        ("scache serve --no-", ("--no-announce",)),
        ("scache serve --ttl-limit ", ()),
        ("scache dump live_c", ("live_connection",)),
        ("scache dump live_connection life", ("lifetime",)),
    ],
)
def test_completion_offers_the_words_that_fit(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, line: str, words: tuple[str, ...]
) -> None:
    """Commands, arguments, options and their values are offered."""
    assert {value for _, value in completed(capsys, monkeypatch, line)} == {*words}


@pytest.mark.parametrize("option", ["--socket", "--database"])
@pytest.mark.parametrize("command", ["serve", "stats", "events", "sql", "dump", "check"])
def test_completion_of_an_option_that_takes_a_file_is_left_to_the_shell(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str, option: str
) -> None:
    """The shell knows the files, and escapes their names."""
    line = f"scache {command} {option} /va"
    assert completed(capsys, monkeypatch, line) == [(FILE, "/va")]


@pytest.mark.parametrize(
    "line",
    ["serve --config ", "dump --output x", "ping --socket ", "purge --socket ", "help --database "],
)
def test_completion_of_other_files_is_left_to_the_shell(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """Configuration files, dumps and sockets are files too."""
    ((kind, _),) = completed(capsys, monkeypatch, f"scache {line}")
    assert kind == FILE


def test_completion_knows_every_table_and_view(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names are those of a new database; no daemon is asked."""
    with empty_image() as image:
        names = [relation.name for relation in image.relations()]
    assert [value for _, value in completed(capsys, monkeypatch, "scache dump ")] == names


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_script_is_that_of_the_variable(shell: str) -> None:
    """The convention of click, which some packagers use, gives the same script."""
    printed = run_command(*SCACHE, "completion", shell)
    by_variable = run_command(*SCACHE, _SCACHE_COMPLETE=f"{shell}_source")
    assert printed.returncode == by_variable.returncode == errors.EXIT_OK
    assert printed.stdout == by_variable.stdout
    assert f"_SCACHE_COMPLETE={shell}_complete" in printed.stdout


@pytest.mark.parametrize("request_", ["bash", "bash_", "tcsh_source", "bash_sauce", "x"])
def test_completion_variable_with_another_value_is_an_error(request_: str) -> None:
    """It is one line on stderr, and the command does not run."""
    result = run_command(*SCACHE, "stats", _SCACHE_COMPLETE=request_)
    assert (result.returncode, result.stdout) == (errors.EXIT_SETTINGS, "")
    assert f"_SCACHE_COMPLETE must not be '{request_}'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_completion_fails_silently_without_the_words() -> None:
    """The variable was set by something other than the script."""
    result = run_command(*SCACHE, _SCACHE_COMPLETE="bash_complete")
    assert (result.returncode, result.stdout, result.stderr) == (errors.EXIT_FAILURE, "", "")


def type_lines(terminal: Terminal, directory: Path) -> None:
    """Complete a command, then a file, and run both; `directory` has one file."""
    terminal.type("scache compl\tf\t>/dev/null && echo comple''ted\n")
    terminal.read_until("completed")
    terminal.type(f"scache check --database {directory}/ca\t; echo end''ed\n")
    terminal.read_until("cache.db")
    terminal.read_until("ended")


@pytest.mark.slow  # shells take their time to start
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_in_an_interactive_shell(shell: str, filled: Path) -> None:
    """Tab completes a command, its argument, and the name of a file."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command = {"bash": ("bash", "--norc", "--noprofile", "-i"), "zsh": ("zsh", "-f", "-i")}[shell]
    begin = "autoload -Uz compinit; compinit -u -D; " if shell == "zsh" else ""
    with on_terminal(*command, columns=200, PATH=PATH, PS1="> ") as terminal:
        terminal.type(f'{begin}eval "$(scache completion {shell})"; echo rea""dy\n')
        terminal.read_until("ready")
        type_lines(terminal, filled.parent)
        terminal.type("exit\n")
        terminal.read_to_end()


def test_completion_in_fish(tmp_path: Path) -> None:
    """The command of fish that shows completions gives those of scache."""
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    (tmp_path / "cache.db").touch()
    script = (
        "scache completion fish | source; complete -C 'scache st'; "
        "complete -C 'scache check --database ca'"
    )
    result = subprocess.run(
        ["fish", "--no-config", "-c", script],
        cwd=tmp_path,
        env=clean_environment(PATH=PATH, HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == ["stats", "cache.db"]
