"""The README: its order, length and links."""

from __future__ import annotations

import re

import pytest

from scache.cli.commands.help import TOPICS
from tests.support.manual import README, ROOT, blocks, section

HEADINGS = [
    "Install and start",
    "Thirty seconds with it",
    "With Postfix",
    "From Python",
    "Look inside",
    "How fast",
    "How it is tested",
    "What it does not do",
    "Where to read on",
    "License",
]

CONTRIBUTORS = ["tests/README.md", "tools/README.md"]


def test_readme_is_short_and_in_order() -> None:
    """It has at most 200 lines."""
    assert README.count("\n") <= 200
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == HEADINGS


def test_readme_links_every_page_and_the_notes_for_contributors() -> None:
    """Each link leads to a file of the tree; links in comments are not checked."""
    links = re.findall(r"\[[\w.-]+\]\(([^)]+)\)", section(README, "Where to read on"))
    assert {f"scache/manual/{topic}.md" for topic in TOPICS} | {*CONTRIBUTORS} <= {*links}
    shown = re.sub(r"<!--.*?-->", "", README)
    assert all(ROOT.joinpath(link).is_file() for link in re.findall(r"\]\(([^)]+)\)", shown))


@pytest.mark.parametrize("name", ["README.md", *CONTRIBUTORS])
def test_readme_names_tools_and_tests_that_exist(name: str) -> None:
    """Each tool and each test file that is named is in the tree."""
    text = ROOT.joinpath(name).read_text(encoding="utf-8")
    tools = set(re.findall(r"`((?:tools|\.ci)/\w+)", text))
    tests = {f"tests/{file}" for file in re.findall(r"((?:\w+/)?test_\w+\.py)", text)}
    assert tools
    assert all(ROOT.joinpath(path).is_file() for path in tools - {"tools/README"} | tests)


def test_readme_has_a_language_for_every_block() -> None:
    """Each block but the diagram is an example, which runs in a test."""
    languages = [block.language for block in blocks(README)]
    assert languages == ["text", "sh", "console", "sh", "sh", "python", "console"]
