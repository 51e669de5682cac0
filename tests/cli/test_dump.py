"""The command ``scache dump``."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path

import pytest

from scache import errors
from scache.cli.main import execute
from tests.support.commands import SCACHE
from tests.support.looking import Capture, failure, run
from tests.support.sample_database import ODD, filling
from tests.support.terminal import on_terminal

pytestmark = pytest.mark.usefixtures("narrow")


TABLES = [
    "instance",
    "client",
    "connection",
    "binding",
    "counter",
    "event",
    "setting",
    "descriptor",
    "clock_step",
]
EMPTY = {"descriptor", "clock_step"}
"""Tables without rows in the file of the tests."""


def test_dump_writes_all_tables_as_one_object(filled: Path, capsys: Capture) -> None:
    """Each table is an array in one JSON object."""
    dumped = json.loads(run(capsys, "dump", "--database", filled))
    assert list(dumped) == TABLES
    assert [row["id"] for row in dumped["event"]] == list(range(1, 12))
    assert dumped["setting"][0] == {"name": "announce", "value": "true"}


def test_dump_writes_named_tables_and_views_once(filled: Path, capsys: Capture) -> None:
    """They are written in the order of the command line."""
    names = ["lifetime", "counter", "lifetime"]
    dumped = json.loads(run(capsys, "dump", "--database", filled, *names))
    assert list(dumped) == ["lifetime", "counter"]


def test_dump_names_table_in_each_json_line(filled: Path, capsys: Capture) -> None:
    """With one table the lines do not have its name."""
    out = run(capsys, "dump", "--database", filled, "--format", "jsonl")
    tables = [json.loads(line)["table"] for line in out.splitlines()]
    assert list(dict.fromkeys(tables)) == [name for name in TABLES if name not in EMPTY]
    out = run(capsys, "dump", "--database", filled, "--format", "jsonl", "instance")
    assert json.loads(out)["version"] == "1.2.3"


def test_dump_keeps_column_called_table_in_json_lines(file: Path, capsys: Capture) -> None:
    """The key that names the table is ours."""
    with filling(file) as cached:
        cached.run('CREATE TABLE t AS SELECT 1 AS "table", 2 AS x')
    lines = run(capsys, "dump", "--database", file, "--format", "jsonl", "t", "counter")
    assert json.loads(lines, object_pairs_hook=list) == [("table", "t"), ("table_2", 1), ("x", 2)]
    line = run(capsys, "dump", "--database", file, "--format", "jsonl", "t")
    assert json.loads(line) == {"table": 1, "x": 2}


def test_dump_writes_title_above_each_table(filled: Path, capsys: Capture) -> None:
    """Each table fits 60 columns."""
    out = run(capsys, "dump", "--database", filled, "--format", "table")
    assert re.findall(r"^(\w+):$", out, re.MULTILINE) == TABLES
    assert max(map(len, out.splitlines())) <= 60


@pytest.mark.parametrize("layout", ["table", "json", "jsonl"])
def test_dump_writes_few_rows_to_a_terminal(file: Path, layout: str) -> None:
    """A line says how many there are, and how to see them."""
    with filling(file) as cached:
        for number in range(1, 2001):
            cached.event("lost", id=number)
    command = [*SCACHE, "dump", "event", "--database", str(file), "--format", layout]
    with on_terminal(*command, columns=200) as terminal:
        lines = terminal.read_to_end().splitlines()
    assert len(lines) < 60
    assert lines[-1].startswith("scache: only the first 50 rows are shown of: event 2,000; use ")
    with on_terminal(*command, "--limit", "60", columns=200) as terminal:
        lines = terminal.read_to_end().splitlines()
    assert 60 <= len(lines) <= 64


def test_dump_limit_is_the_number_of_rows_of_each_table(filled: Path, capsys: Capture) -> None:
    """In a pipe there is no limit by default."""
    dumped = json.loads(run(capsys, "dump", "--database", filled, "--limit", "3"))
    longer = [name for name, rows in dumped.items() if len(rows) > 2]
    assert longer == ["connection", "binding", "counter", "event", "setting"]
    assert max(map(len, dumped.values())) == 3


@pytest.mark.parametrize("command", ["dump event", "sql TABLE"])
def test_wide_rows_are_one_line_each(filled: Path, capsys: Capture, command: str) -> None:
    """``--all-columns`` shows the columns that a narrow table leaves out."""
    words = [word.replace("TABLE", "SELECT * FROM event") for word in command.split()]
    arguments = [*words, "--database", str(filled), "--format", "table"]
    lines = run(capsys, *arguments).splitlines()
    assert len(lines) == 2 + 11 + 1
    assert lines[-1].startswith("(--all-columns shows ")
    assert "detail" in run(capsys, *arguments, "--all-columns")


def test_dump_csv_is_exact(filled: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Labels come back byte for byte."""
    arguments = ["dump", "--database", str(filled), "--format", "csv", "live_connection"]
    assert execute(arguments) == errors.EXIT_OK
    text = capsysbinary.readouterr().out.decode("latin-1")
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    labels = [row[header.index("endpoint")].encode("latin-1") for row in rows]
    assert labels == list(ODD.values())


@pytest.mark.parametrize("names", [[], ["event", "client"]])
def test_dump_csv_takes_one_table(filled: Path, capsys: Capture, names: list[str]) -> None:
    """No name, or several names, are refused."""
    code, sentence = failure(capsys, "dump", "--database", filled, "--format", "csv", *names)
    assert (code, "name exactly one" in sentence) == (errors.EXIT_SETTINGS, True)


def test_dump_lists_names_if_one_does_not_exist(filled: Path, capsys: Capture) -> None:
    """The unknown name is escaped in the message."""
    code, sentence = failure(capsys, "dump", "--database", filled, "conn\nection")
    assert code == errors.EXIT_SETTINGS
    assert sentence.startswith(r"there is no table or view conn\nection: there are instance, ")


def test_dump_escapes_table_names(file: Path, capsys: Capture) -> None:
    """A table name can neither control a terminal nor break JSON."""
    name = 'a "b"\x1b[2J\n'
    with filling(file) as cached:
        cached.run(f"""CREATE TABLE "{name.replace('"', '""')}" AS SELECT 1 AS x""")
    out = run(capsys, "dump", "--database", file, "--format", "table")
    assert r'a "b"\x1b[2J\n:' in out.splitlines()
    assert json.loads(run(capsys, "dump", "--database", file))[name] == [{"x": 1}]
    rows = run(capsys, "dump", "--database", file, "--format", "jsonl").splitlines()
    assert {"table": name, "x": 1} in map(json.loads, rows)
    _, sentence = failure(capsys, "dump", "--database", file, "absent")
    assert r', a "b"\x1b[2J\n, ' in sentence


def test_dump_refuses_table_name_that_is_not_utf8(filled: Path, capsys: Capture) -> None:
    """Other tables of the same file can still be dumped."""
    with filling(filled) as cached:
        cached.run("CREATE TABLE named (x)")
    filled.write_bytes(filled.read_bytes().replace(b"named", b"nam\xff\xff"))
    assert run(capsys, "dump", "--database", filled, "event") != ""
    odd = os.fsdecode(b"nam\xff\xff")
    assert failure(capsys, "dump", "--database", filled, odd, "--format", "jsonl") == (
        errors.EXIT_SETTINGS,
        r"the name nam\xff\xff is not UTF-8 and cannot be asked for: name others",
    )


def test_dump_output_is_a_database_of_the_same_rows(
    filled: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A second dump replaces the first."""
    output = tmp_path / "dump.db"
    for _ in range(2):
        said = run(capsys, "dump", "--database", filled, "--output", output)
        assert re.fullmatch(rf"wrote {output}: 9 tables, [0-9]+ rows, 0\.[0-9] MB\n", said)
    before, after = (run(capsys, "dump", "--database", each) for each in (filled, output))
    assert before == after


def test_dump_output_does_not_overwrite_other_files(
    filled: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Only an earlier dump is replaced."""
    output = tmp_path / "precious"
    output.write_text("x")
    code, sentence = failure(capsys, "dump", "--database", filled, "--output", output)
    assert code == errors.EXIT_DATABASE
    assert sentence == f"{output} exists and is no dump of scache: choose another name"
    assert output.read_text() == "x"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["event"], "--output writes all tables: name no tables with it"),
        (["--limit", "5"], "--output writes all rows: it takes no --limit"),
        (["--all-columns"], "--output writes all columns: it takes no --all-columns"),
        (["--format", "csv"], "--output writes a database file: it takes no --format"),
        (["--format", "json"], "--output writes a database file: it takes no --format"),
    ],
)
def test_dump_output_excludes_table_names_and_format(
    filled: Path, tmp_path: Path, capsys: Capture, more: list[str], sentence: str
) -> None:
    """A file holds all tables, and is a database."""
    output = tmp_path / "x"
    said = failure(capsys, "dump", "--database", filled, "--output", output, *more)
    assert said == (errors.EXIT_SETTINGS, sentence)
    assert not output.exists()
