"""The command ``scache sql`` with statements as an argument or on standard input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from scache import errors
from tests.support.commands import SCACHE, clean_environment, started
from tests.support.looking import Capture, failure, run
from tests.support.sample_database import ODD
from tests.support.terminal import on_terminal

pytestmark = pytest.mark.usefixtures("narrow")


def test_sql_writes_rows_as_json_objects(filled: Path, capsys: Capture) -> None:
    """JSON is the format where the output is not a terminal."""
    sql = "SELECT id, endpoint FROM connection WHERE id < 12 ORDER BY id"
    assert json.loads(run(capsys, "sql", "--database", filled, sql)) == [
        {"id": 10, "endpoint": ODD["escape"].decode()},
        {"id": 11, "endpoint": ODD["newlines"].decode()},
    ]


def test_sql_table_escapes_and_shortens_labels(filled: Path, capsys: Capture) -> None:
    """No label breaks a line or is wider than 60 columns."""
    sql = "SELECT id, endpoint, properties FROM connection ORDER BY id"
    lines = run(capsys, "sql", "--database", filled, "--format", "table", sql).splitlines()
    assert len(lines) == 2 + len(ODD)
    assert all(len(line) <= 60 and line.isprintable() for line in lines)
    assert lines[2].startswith(r"10  \x1b[2J\x1b]0;title\x07")
    assert r"[bold red]x[/] :smiley:" in lines[6]


@pytest.mark.parametrize(
    ("given", "bound"),
    [
        ("5", 5),
        ("-5", -5),
        ("0", 0),
        ("-0", 0),
        ("007", "007"),
        ("007.5", "007.5"),
        ("+5", 5),
        ("0.5", 0.5),
        ("1.50", 1.5),
        ("-.5", -0.5),
        ("2.", 2.0),
        ("1e3", 1000.0),
        ("+1.25E-2", 0.0125),
        ("1e+300", 1e300),
        ("1e999", "1e999"),
        (".", "."),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
        (" 5", " 5"),
        ("٣", "٣"),
        ("1_000", "1_000"),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", "9223372036854775808"),
        ("9" * 5000, "9" * 5000),
        ("nan", "nan"),
        ("inf", "inf"),
        ("", ""),
        ("a=b", "a=b"),
        ("é", "é"),
    ],
)
def test_sql_parameter_is_a_number_if_written_as_one(
    file: Path, capsys: Capture, given: str, bound: float | str
) -> None:
    """All other values are text."""
    sql = "SELECT typeof(:x) AS type, :x AS x"
    (row,) = json.loads(run(capsys, "sql", "--database", file, sql, "-p", f"x={given}"))
    kinds = {int: "integer", float: "real", str: "text"}
    assert row == {"type": kinds[type(bound)], "x": bound}


def test_sql_parameter_that_is_not_utf8_is_a_blob(filled: Path, capsys: Capture) -> None:
    """After a cast to text it equals the label."""
    sql = "SELECT id FROM connection WHERE endpoint = CAST(:e AS TEXT)"
    label = os.fsdecode(ODD["no UTF-8"])
    assert json.loads(run(capsys, "sql", "--database", filled, sql, "-p", f"e={label}")) == [
        {"id": 12}
    ]


@pytest.mark.parametrize(
    ("sql", "given", "sentence"),
    [
        ("SELECT 1", ["unused=1"], "-p unused=...: no statement has the parameter :unused"),
        ("SELECT ':unused', \"a :unused\" FROM t", ["unused=1"], "has the parameter :unused"),
        ("SELECT 1 -- :unused\n/* :unused */", ["unused=1"], "has the parameter :unused"),
        ("SELECT :a", ["a=1", "b=2"], "has the parameter :b"),
        ("SELECT :a", ["a=1", ":a=2"], "-p gives :a twice"),
    ],
)
def test_sql_refuses_parameter_that_has_no_effect(
    file: Path, capsys: Capture, sql: str, given: list[str], sentence: str
) -> None:
    """It may be misspelled."""
    options = [word for each in given for word in ("-p", each)]
    code, said = failure(capsys, "sql", "--database", file, sql, *options)
    assert (code, sentence in said) == (errors.EXIT_SETTINGS, True)


@pytest.mark.parametrize(
    "sql",
    ["SELECT 'it''s :b', :a AS a", "SELECT @a AS a", "SELECT $a AS a", "SELECT 1; SELECT :a AS a"],
)
def test_sql_parameter_is_used_by_one_of_the_statements(
    file: Path, capsys: Capture, sql: str
) -> None:
    """Each form of a parameter is recognized, also beside strings."""
    assert '"a": 5' in run(capsys, "sql", "--database", file, sql, "-p", "a=5")


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1 AS a; SELECT 2 AS b", [[{"a": 1}], [{"b": 2}]]),
        ("SELECT 1 AS a; SELECT 2 AS b WHERE 0; SELECT 3 AS c;", [[{"a": 1}], [], [{"c": 3}]]),
        ("CREATE TABLE t (x); INSERT INTO t VALUES (1); SELECT x FROM t", [{"x": 1}]),
        ("SELECT 1 AS a;", [{"a": 1}]),
        ("/* SELECT */ DELETE FROM event; -- SELECT\nVALUES (1)", [{"column1": 1}]),
        ("SELECT 1 AS a; DELETE FROM counter; SELECT 2 AS a", [[{"a": 1}], [{"a": 2}]]),
        ("DELETE FROM counter RETURNING name; SELECT 1 AS a", [[], [{"a": 1}]]),
        ("WITH n AS (SELECT 1) DELETE FROM counter; SELECT 1 AS a", [[{"a": 1}]]),
    ],
)
def test_sql_results_of_several_statements_are_one_json_value(
    file: Path, capsys: Capture, sql: str, expected: object
) -> None:
    """It is an array of arrays if several statements return rows."""
    assert json.loads(run(capsys, "sql", "--database", file, sql)) == expected


@pytest.mark.parametrize(
    ("layout", "expected"),
    [("csv", '"a"\n1\n\n"b"\n2\n'), ("table", "a\n─\n1\n\nb\n─\n2\n")],
)
def test_sql_writes_empty_line_between_results(
    file: Path, capsys: Capture, layout: str, expected: str
) -> None:
    """A reader can tell the results apart."""
    statements = "SELECT 1 AS a; SELECT 2 AS b"
    assert run(capsys, "sql", "--database", file, "--format", layout, statements) == expected


@pytest.mark.parametrize("given", ["x", "=5"])
def test_sql_parameter_needs_name_and_value(file: Path, capsys: Capture, given: str) -> None:
    """``-p`` takes NAME=VALUE."""
    code, sentence = failure(capsys, "sql", "--database", file, "SELECT 1", "-p", given)
    assert (code, "-p takes NAME=VALUE" in sentence) == (errors.EXIT_SETTINGS, True)


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("SELEC 1", 'near "SELEC": syntax error'),
        ("SELECT * FROM absent", "no such table: absent"),
        (".tables", ".tables is a command of the prompt"),
        ("DELETE FROM event; .schema connection", ".schema is a command of the prompt"),
        ("", "the statement is empty"),
        (" ;\n;", "the statement is empty"),
        ("SELECT :absent", "the parameter absent has no value: add -p absent=..."),
        ("SELECT @absent", "add -p absent=..."),
        ("ATTACH 'x.db' AS x", "ATTACH and VACUUM are not allowed"),
        ("VACUUM INTO 'x.db'", "ATTACH and VACUUM are not allowed"),
        ("VACUUM", "ATTACH and VACUUM are not allowed"),
        ("SELECT ?", "a parameter needs a name: write :name instead of ?, and add -p name=..."),
        ("SELECT ?1", "the parameter 1 has no value: add -p 1=..."),
        ("SELECT '\udcff'", "the statement is not UTF-8: write such bytes as CAST("),
    ],
)
def test_sql_error_is_one_line(file: Path, capsys: Capture, sql: str, sentence: str) -> None:
    """The exit code is 2."""
    code, said = failure(capsys, "sql", "--database", file, sql)
    assert (code, sentence in said) == (errors.EXIT_SETTINGS, True)


def test_sql_changes_only_the_copy(filled: Path, capsys: Capture) -> None:
    """Later statements of the same command see the change; the file does not have it."""
    sql = "DELETE FROM connection WHERE id > 10; SELECT count(*) AS n FROM connection"
    out = run(capsys, "sql", "--database", filled, "--format", "table", sql)
    assert out.splitlines() == ["8 rows changed, in this copy alone", "n", "─", "1"]
    out = run(capsys, "sql", "--database", filled, "SELECT count(*) AS n FROM connection")
    assert json.loads(out) == [{"n": len(ODD)}]


def test_sql_reads_statements_from_standard_input(filled: Path) -> None:
    """They are executed up to the first error."""
    command = [*SCACHE, "sql", "--database", str(filled), "--format", "jsonl"]
    sql = "SELECT ';' AS a;\n-- é;\nSELECT 2\n AS a; SELEC; SELECT 3 AS a;"
    result = subprocess.run(
        command,
        input=sql.encode(),
        capture_output=True,
        env=clean_environment(),
        check=False,
    )
    assert result.stdout == b'{"a": ";"}\n{"a": 2}\n'
    assert result.stderr == b'scache: near "SELEC": syntax error\n'
    assert result.returncode == errors.EXIT_SETTINGS


def test_sql_refuses_standard_input_that_is_not_utf8(filled: Path) -> None:
    """The exit code is 2."""
    command = [*SCACHE, "sql", "--database", str(filled)]
    result = subprocess.run(
        command, input=b"\xff", capture_output=True, env=clean_environment(), check=False
    )
    assert b"not UTF-8" in result.stderr
    assert result.returncode == errors.EXIT_SETTINGS


def test_sql_writes_rows_as_they_are_read(file: Path) -> None:
    """An endless result begins at once, and a closed pipe ends the command silently."""
    sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    command = (*SCACHE, "sql", "--database", str(file), sql)
    for layout in ("table", "json", "jsonl", "csv"):
        with started(*command, "--format", layout) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.read(10)
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait() == -signal.SIGPIPE


def test_sql_writes_a_table_to_a_terminal(filled: Path) -> None:
    """The table fits the terminal."""
    sql = "SELECT id, endpoint FROM connection ORDER BY id"
    with on_terminal(*SCACHE, "sql", "--database", str(filled), sql) as terminal:
        text = re.sub(r"\x1b\[[\d;]*m", "", terminal.read_to_end())
    assert text.splitlines()[0].split() == ["id", "endpoint"]
    assert all(len(line) <= 60 and line.isprintable() for line in text.splitlines())
