"""The text of SQL: its statements, and the parameters in them."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator

_TOKEN = re.compile(
    r"""(?P<gap>[ \t\n\f\r]+ | --[^\n]* | /\*(?:.*?\*/|.*))  # white space and comments
    | '[^']*'? | "[^"]*"? | `[^`]*`? | \[[^\]]*\]?  # strings and quoted names, perhaps without end
    | [:@$?](?P<parameter>[\w$\x80-\U0010ffff]+)
    | (?P<word>[\w$\x80-\U0010ffff]+)
    | (?P<semicolon>;)
    | .""",
    re.DOTALL | re.VERBOSE,
)

_KINDS = {
    "explain": "e",
    "create": "c",
    "temp": "t",
    "temporary": "t",
    "trigger": "r",
    "end": "n",
}
"""A letter for each word that tells where a statement ends; other tokens are ``-``."""

_TRIGGER = re.compile("(?:e-*)?ct*r")
"""The tokens with which a statement begins that creates a trigger."""

_QUERIES = ("select", "values", "with", "explain", "pragma")
"""The words with which statements begin that may return rows."""


def is_complete(sql: str) -> bool:
    """Return True if the text ends with a complete statement, including its semicolon."""
    try:
        return sqlite3.complete_statement(sql)
    except ValueError:  # invalid UTF-8 and NUL are refused when the text is executed
        return True


def statements(sql: str) -> Iterator[str]:
    """Yield the statements of a text. The last one may have no semicolon.

    A statement ends with a semicolon. One that creates a trigger ends with that after END.
    """
    begin = 0
    in_trigger = False
    kinds: list[str] = []  # of the tokens since the last semicolon
    for token in _TOKEN.finditer(sql):
        if token.lastgroup == "gap":
            continue
        if token.lastgroup != "semicolon":
            kinds.append(_KINDS.get(token[0].lower(), "-"))
            continue
        begins_trigger = not in_trigger and _TRIGGER.match("".join(kinds)) is not None
        in_trigger = begins_trigger or (in_trigger and kinds != ["n"])
        kinds.clear()
        if not in_trigger:
            if sql[begin : token.end()].strip(" \t\f\r\n;"):
                yield sql[begin : token.end()]
            begin = token.end()
    if sql[begin:].strip():
        yield sql[begin:]


def parameters(sql: str) -> set[str]:
    """Return the names of the parameters in a text, without their prefix (``:``, ``@``, ``$``)."""
    found = (token["parameter"] for token in _TOKEN.finditer(sql))
    return {name for name in found if name is not None}


def may_return_rows(statement: str) -> bool:
    """Return True if a statement is a query, or a change with a RETURNING clause."""
    words = (token["word"] for token in _TOKEN.finditer(statement))
    first, *others = [word.lower() for word in words if word is not None] or [""]
    return first in _QUERIES or "returning" in others
