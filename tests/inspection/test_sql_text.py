"""The text of SQL: where a statement ends, its parameters, and whether it is a query."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scache.inspection.sql_text import is_complete, may_return_rows, parameters, statements

PIECES = (
    *("CREATE", "create", "TEMP", "Temporary", "TRIGGER", "END", "EXPLAIN", "SELECT", "BEGIN"),
    *(";", ";", ";", " ", "\n", "\t", "\f", "\r", "\v", "\xa0", "'", '"', "`", "[", "]", "''"),
    *("--", "/*", "*/", "/", "*", "-", "(", "$", "_", "1", "ü", "\u2192", "\u0131", ":a", "END;"),
    *(" TRIGGER ", "; END ;", "CREATE TRIGGER t BEGIN", "/* ; */", "';'"),
)
"""Pieces of texts that tell apart the rules for the end of a statement."""

SQL = st.lists(st.sampled_from(PIECES), max_size=16).map("".join)

LONG = 200_000


def stepwise(sql: str) -> list[str]:
    """Split a text with sqlite3 alone: a statement is the shortest text that is complete."""
    found = []
    begin = 0
    for end in (index + 1 for index, char in enumerate(sql) if char == ";"):
        if sqlite3.complete_statement(sql[begin:end]):
            found.append(sql[begin:end])
            begin = end
    return not_blank(*found, sql[begin:])


def not_blank(*given: str) -> list[str]:
    """Return the statements that are more than white space and semicolons."""
    return [each for each in given if each.replace(";", "").strip()]


@given(SQL)
@example("EXPLAIN QUERY PLAN CREATE TEMP TEMPORARY TRIGGER t BEGIN SELECT 1; END; SELECT 2")
@example("EXPLAIN TEMP CREATE TRIGGER t; SELECT 1; END; SELECT 2")
@example("CREATE TRIGGER t BEGIN SELECT 1; END -- ;\n/* ; */ ; SELECT 2")
@example("CREATE TRIGGER t BEGIN ; END ; END ; SELECT 2")
@example("CREATE 'TRIGGER' TRIGGER; SELECT 1")
def test_statements_agree_with_sqlite(sql: str) -> None:
    """They end where SQLite finds a complete statement."""
    assert not_blank(*statements(sql)) == stepwise(sql)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" ; ;\n", []),
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT 1; SELECT 2;\n", ["SELECT 1;", " SELECT 2;"]),
        ("SELECT ';'; SELECT 2", ["SELECT ';';", " SELECT 2"]),
        ("SELECT 1 /* ; */;", ["SELECT 1 /* ; */;"]),
        ("SELECT '", ["SELECT '"]),
    ],
)
def test_statements_are_split_at_semicolons(text: str, expected: list[str]) -> None:
    """A semicolon in quotes or in a comment ends no statement."""
    assert list(statements(text)) == expected


def test_create_trigger_with_inner_statements_is_one_statement() -> None:
    """It ends after END."""
    text = "CREATE TRIGGER t AFTER DELETE ON event BEGIN SELECT 1; SELECT 2; END;"
    assert list(statements(text)) == [text]


@pytest.mark.timeout(60)  # seconds; with quadratic time it would be many minutes
@pytest.mark.parametrize(
    "text",
    [
        ";" * LONG,
        "SELECT '" + ";" * 10 * LONG,
        "SELECT '" + ";" * 10 * LONG + "';",
        "--" + ";" * 10 * LONG,
        "/*" + ";" * 10 * LONG,
        "/*" * LONG,
        "[" * LONG,
        "[]'" * LONG,
        "'" * LONG,
        "\"'`" * LONG,
        "\n" * LONG,
        "SELECT 1;" * LONG,
        "CREATE TRIGGER t AFTER DELETE ON event BEGIN " + "SELECT 1;" * LONG + " END;",
        "EXPLAIN " + "x " * LONG + "CREATE TRIGGER t BEGIN " + ";" * LONG,
    ],
    ids=lambda text: text[:12],
)
def test_long_text_is_split_in_linear_time(text: str) -> None:
    """Each piece of it is read once."""
    assert "".join(statements(text)).strip(";\n") == text.strip(";\n")
    assert parameters(text) == set()
    may_return_rows(text)


def test_parameters_behind_a_string_without_end_are_none() -> None:
    """The string has the rest of the text."""
    assert parameters("SELECT :a, [b], ' :c") == {"a"}
    assert parameters("SELECT :a /* :b") == {"a"}


def test_text_that_is_not_unicode_is_complete() -> None:
    """More lines cannot make it a statement."""
    assert is_complete("\udcff")
    assert not is_complete("SELECT 1")
