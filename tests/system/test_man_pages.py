"""The man pages that a wheel installs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import ModuleType

import click
import pytest

from scache import __version__
from scache.cli.main import COMMANDS, cli
from scache.cli.master import command as master
from tests.support.commands import import_tool

NAMES = ["scache.1", "scache-serve.8", "scache-master.8"]

DATE = "2026-11-27"


@pytest.fixture
def man_pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the module of the tools that makes the pages."""
    return import_tool(monkeypatch, "harness.man_pages")


@pytest.fixture
def pages(man_pages: ModuleType, tmp_path: Path) -> dict[str, Path]:
    """Write the pages, and return them by name."""
    return {page.name: page for page in man_pages.write_pages(tmp_path, DATE)}


def shown(page: Path) -> str:
    """Return a page as man(1) shows it, without the widths of spaces and without bold type."""
    command = ["mandoc", "-Tutf8", "-Owidth=200", str(page)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return " ".join(re.sub(".\b", "", text).split())


def subcommand(name: str) -> click.Command:
    """Return a subcommand of scache."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def words(text: str | None) -> str:
    """Return a help text without its widths of spaces and its backticks."""
    return " ".join((text or "").split()).replace("`", "")


def check_options(command: click.Command, text: str) -> None:
    """Check that a page has the options of a command with their help, and no hidden one."""
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert re.search(rf"(?<![\w-]){re.escape(option.opts[-1])}(?![\w-])", text)
            assert words(option.help) in text


@pytest.mark.parametrize("name", NAMES)
def test_man_page_has_no_fault(pages: dict[str, Path], name: str) -> None:
    """mandoc(1) finds nothing to complain about."""
    command = ["mandoc", "-Tlint", str(pages[name])]
    lint = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", "")


@pytest.mark.parametrize("name", NAMES)
def test_man_page_names_the_command_the_version_and_the_date(
    pages: dict[str, Path], name: str
) -> None:
    """apropos(1) finds the page by its first line."""
    text = shown(pages[name])
    assert f"NAME {Path(name).stem} - " in text
    assert f"scache {__version__} {DATE}" in text


def test_man_page_of_scache_has_every_command_and_its_options(pages: dict[str, Path]) -> None:
    """The options of serve are on a page of their own."""
    text = shown(pages["scache.1"])
    for name in COMMANDS:
        command = subcommand(name)
        assert f" {name} {words(command.help)} scache {name} " in text
        if name != "serve":
            check_options(command, text)


@pytest.mark.parametrize("name", ["scache-serve.8", "scache-master.8"])
def test_man_page_of_a_daemon_has_every_setting(pages: dict[str, Path], name: str) -> None:
    """With its default."""
    text = shown(pages[name])
    check_options(master if "master" in name else subcommand("serve"), text)
    assert "[default: set-aside]" in text


def test_man_page_has_exit_codes_and_signals_of_the_manual(pages: dict[str, Path]) -> None:
    """They are those of the page exit-codes."""
    text = shown(pages["scache-serve.8"])
    assert "SIGUSR1 logs the statistics" in text
    assert "7 reserved: nothing was found 8 out of resources or time" in text


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (".TH is no title\n", [r"\&.TH is no title"]),
        ("'quoted' \\n `--kind x`", [r"\(aqquoted\(aq \en \fB\-\-kind x\fP"]),
        ("One. Two", ["One.", "Two"]),
        (
            "\b\nExamples:\n  .a\n    b\\\n\n~^",
            [
                *("Examples:", ".PP", ".nf", ".RS 2", r"\&.a", r"  b\e", ".RE", ".fi"),
                *(".PP", r"\(ti\(ha"),
            ],
        ),
    ],
)
def test_man_page_source_escapes_characters_of_roff(
    man_pages: ModuleType, text: str, lines: list[str]
) -> None:
    """A backslash, a point at the beginning of a line, a hyphen that is to be copied."""
    assert [*man_pages.roff(text)] == lines


def test_man_page_has_the_date_of_the_release(man_pages: ModuleType) -> None:
    """It is that of the changelog; before a release, that of the last one."""
    last = "## [Unreleased]\n\n## [0.0.1] - 2026-01-02\n\n## [0.0.0] - 2026-01-01\n"
    assert man_pages.release_date(last) == "2026-01-02"
    assert man_pages.release_date(f"{last}\n## [{__version__}] - 2026-01-03\n") == "2026-01-03"
