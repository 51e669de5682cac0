"""Colors and progress bars: NO_COLOR, FORCE_COLOR, pipes and terminals."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.support.commands import SCACHE, run_command
from tests.support.terminal import on_terminal

COLOR = re.compile(r"\x1b\[[\d;]*m")
"""A sequence that changes the color or weight of text."""


def screen(path: Path, **environment: str) -> str:
    """Return what `scache check` writes into a pipe."""
    command = (*SCACHE, "check", "--format", "table", "--database", str(path))
    return run_command(*command, stdout=PIPE, **environment).stdout


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Return the file of a daemon that has stopped."""
    path = tmp_path / "cache.db"
    serving = (*SCACHE, "serve", "--socket", str(tmp_path / "s"), "--database", str(path))
    assert run_command(*serving, "--max-idle", "0.1").returncode == 0
    return path


def test_force_color_colors_a_pipe_and_changes_nothing_else(database: Path) -> None:
    """The text is the same, and its lines are not cut to the width of a terminal."""
    plain, colored = screen(database), screen(database, FORCE_COLOR="1")
    assert not COLOR.search(plain)
    assert COLOR.search(colored)
    assert COLOR.sub("", colored) == plain


@pytest.mark.parametrize("more", [{"FORCE_COLOR": ""}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}])
def test_no_color_wins_and_empty_force_color_has_no_effect(
    database: Path, more: dict[str, str]
) -> None:
    """A pipe gets no sequences then."""
    assert not COLOR.search(screen(database, **more))


@pytest.mark.parametrize("force", [True, False])
def test_help_page_is_laid_out_with_force_color(*, force: bool) -> None:
    """It is Markdown in a pipe otherwise."""
    environment = {"FORCE_COLOR": "1"} if force else {}
    page = run_command(*SCACHE, "help", "limits", stdout=PIPE, **environment).stdout
    assert bool(COLOR.search(page)) == force
    assert page.startswith("# Limits") != force


def test_progress_bar_appears_on_a_terminal_after_a_second() -> None:
    """Work that takes less shows none, and it is gone at the end."""
    script = """
import sys, time
from scache.cli.render.progress import progress
with progress("quick") as step:
    step("quick", 50)
with progress("slow") as step:
    time.sleep(1.5)
    step("half", 50)
    time.sleep(0.5)
print("done", flush=True)
"""
    with on_terminal(sys.executable, "-c", script) as terminal:
        shown = terminal.read_to_end()
    assert "quick" not in shown
    assert "slow" in shown
    assert "half" in shown
    assert run_command(sys.executable, "-c", script).stderr == ""
