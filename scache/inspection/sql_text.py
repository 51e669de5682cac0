"""The text of SQL: its statements, and the parameters in them."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator

_TOKEN = re.compile(
    r"""'[^']*' | "[^"]*" | `[^`]*` | \[[^\]]*\]  # strings and quoted names
    | --[^\n]* | /\*.*?\*/  # comments
    | [:@$?](?P<parameter>\w+)
    | (?P<word>\w+)""",
    re.DOTALL | re.VERBOSE,
)

_QUERIES = ("SELECT", "VALUES", "WITH", "EXPLAIN", "PRAGMA")
"""The words with which statements begin that may return rows."""


def is_complete(sql: str) -> bool:
    """Return True if the text ends with a complete statement, including its semicolon."""
    try:
        return sqlite3.complete_statement(sql)
    except ValueError:  # invalid UTF-8 and NUL are refused when the text is executed
        return True


def statements(sql: str) -> Iterator[str]:
    """Yield the statements of a text. The last one may have no semicolon."""
    begin = end = 0
    while (end := sql.find(";", end) + 1) > 0:
        if is_complete(sql[begin:end]):
            if sql[begin:end].strip(" \t\r\n;"):
                yield sql[begin:end]
            begin = end
    if sql[begin:].strip():
        yield sql[begin:]


def parameters(sql: str) -> set[str]:
    """Return the names of the parameters in a text, without their prefix (``:``, ``@``, ``$``)."""
    found = (token["parameter"] for token in _TOKEN.finditer(sql))
    return {name for name in found if name is not None}


def may_return_rows(statement: str) -> bool:
    """Return True if a statement is a query, or a change with a RETURNING clause."""
    words = (token["word"] for token in _TOKEN.finditer(statement))
    first, *others = [word.upper() for word in words if word is not None] or [""]
    return first in _QUERIES or "RETURNING" in others
