"""The README, the pages of the manual, and the examples in them."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

README = ROOT.joinpath("README.md").read_text(encoding="utf-8")

PAGES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted(ROOT.joinpath("scache", "manual").glob("*.md"))
}
"""The text of each page, by topic."""

DOCUMENTS = {"README": README, **PAGES}

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str
    """The block, without the indentation of a list around it."""


def blocks(text: str, language: str | None = None) -> list[Block]:
    """Return the fenced blocks of Markdown; of one language, if it is given."""
    found = [Block(kind, textwrap.dedent(body)) for _, kind, body in _FENCE.findall(text)]
    return [block for block in found if language in (None, block.language)]


def section(text: str, title: str) -> str:
    """Return the text under a heading, up to the next heading of the same or a higher level."""
    heading = re.search(rf"^(#+) {re.escape(title)}\n", text, re.MULTILINE)
    assert heading, f"no heading {title!r}"
    rest = text[heading.end() :]
    end = re.search(rf"^#{{1,{len(heading[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def commands(script: str) -> list[list[str]]:
    """Return the words of each command of a shell script; a backslash continues a line."""
    lines = script.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
