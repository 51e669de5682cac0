"""Output in an encoding that is not UTF-8: our lines are ASCII, and labels are escaped."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from scache.cli.commands.help import TOPICS
from tests.support.commands import SCACHE, clean_environment
from tests.support.sample_database import NOW, filling
from tests.support.terminal import on_terminal

WIDTH = 60
LABEL = "smtp\nmünchen.example\n→ 日本語 and a text that is too long for the line\n"

ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "strict ascii": {"PYTHONIOENCODING": "ascii:strict"},
    "C locale": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "latin-1": {"PYTHONIOENCODING": "iso-8859-1"},
}


@pytest.fixture(params=ENCODINGS)
def variables(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return variables that choose the encoding."""
    return ENCODINGS[request.param] | {"COLUMNS": str(WIDTH)}


@pytest.fixture
def encoding(variables: dict[str, str]) -> str:
    """Return the encoding."""
    return variables.get("PYTHONIOENCODING", "ascii").partition(":")[0]


@pytest.fixture
def labelled(file: Path) -> Path:
    """Fill a database with labels that have characters outside the encodings."""
    label = LABEL.encode()
    with filling(file) as cached:
        cached.instance()
        cached.client(1, program="größe→".encode())
        cached.connection(1, label)
        cached.binding(2, label, label)
        cached.event("save_dest", id=1, destination=label, endpoint=label, client_id=1, at=NOW)
        cached.setting(database="/ü→/db")
        cached.run('CREATE TABLE "tür→" AS SELECT 1 AS "ä→"')
    return file


def written(variables: dict[str, str], *words: str) -> tuple[bytes, bytes]:
    """Run a command; return its output and what it wrote to stderr."""
    done = subprocess.run(
        [*SCACHE, *words],
        env=clean_environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    "line",
    ["sql 'SELECT endpoint, id, destination FROM event'", "dump", "events", "stats", "check"],
)
def test_table_fits_in_every_encoding(
    labelled: Path, variables: dict[str, str], encoding: str, line: str
) -> None:
    """No line is wider than the screen, and none has an escaped line or ellipsis."""
    words = [*shlex.split(line), "--database", str(labelled), "--format", "table"]
    out, err = written(variables, *words)
    text = out.decode(encoding)
    assert b"unforeseen" not in err
    assert not re.search(r"\\u2(5|026)", text)
    rows = [each for each in text.splitlines() if str(labelled) not in each]
    assert rows
    assert max(map(len, rows)) <= WIDTH
    if encoding == "ascii":
        assert text.isascii()
    if line.startswith("sql"):
        assert "..." in text


def test_table_rule_is_as_wide_as_its_column(
    labelled: Path, variables: dict[str, str], encoding: str
) -> None:
    """An escaped character counts with all its columns."""
    sql = "SELECT 'ü→' AS a, 'x' AS '→', 1 AS b"
    out, _ = written(variables, "sql", "--database", str(labelled), "--format", "table", sql)
    first = "ü\\u2192" if encoding == "iso-8859-1" else "\\u00fc\\u2192"
    width = len(first)
    assert out.decode(encoding).splitlines() == [
        f"{'a':{width}}  \\u2192  b",
        f"{'-' * width}  ------  -",
        f"{first}  x       1",
    ]


def test_json_and_csv_are_the_same_in_every_encoding(
    labelled: Path, variables: dict[str, str]
) -> None:
    """JSON is ASCII, and CSV has the exact bytes."""
    for layout in ("json", "jsonl", "csv"):
        words = ("dump", "--database", str(labelled), "--format", layout, "event")
        assert written(variables, *words) == written({}, *words)


def test_message_is_escaped(labelled: Path, variables: dict[str, str]) -> None:
    """The errors and hints have the same form as a table."""
    _, err = written(variables, "dump", "--database", str(labelled), "→absent")
    assert b"there is no table or view \\u2192absent: there are" in err
    out, _ = written(variables, "serve", "--show-config", "--ttl-limit", "5", "--socket", "/→")
    if "PYTHONUTF8" not in variables:
        assert b"/\\u2192" in out
    assert b"ttl_limit = 5" in out


@pytest.mark.parametrize("layout", ["csv", "table"])
def test_terminal_gets_its_own_encoding(labelled: Path, layout: str) -> None:
    """CSV is escaped on a terminal, too."""
    words = ("sql", "--database", str(labelled), "--format", layout, "SELECT 'a→b' AS 'ä'")
    with on_terminal(*SCACHE, *words, PYTHONIOENCODING="ascii") as terminal:
        terminal.read_to_end()
    assert r"a\u2192b" in terminal.shown
    assert r"\u00e4" in terminal.shown
    assert terminal.shown.isascii()


@pytest.mark.parametrize("topic", TOPICS)
def test_page_of_the_manual_is_drawn_in_ascii(topic: str) -> None:
    """Its tables, bullets and titles have no other characters."""
    command = (*SCACHE, "help", topic)
    with on_terminal(*command, PYTHONIOENCODING="ascii", PAGER="cat") as terminal:
        terminal.read_to_end()
    assert terminal.process.wait() == 0
    assert terminal.shown.isascii()
    assert r"\u2" not in terminal.shown
    if topic in ("exit-codes", "limits"):
        assert "+--" in terminal.shown


@pytest.mark.parametrize("option", ["--endpoint", "--field"])
def test_escaped_label_can_be_given_as_it_is_printed(
    labelled: Path, variables: dict[str, str], encoding: str, option: str
) -> None:
    """The text of a table in this encoding names the label."""
    words = ("--database", str(labelled), "--format", "csv")
    sql = "SELECT replace(endpoint, char(10), '~') AS e FROM connection"
    table = ("sql", "--database", str(labelled), "--format", "table")
    out, _ = written(variables | {"COLUMNS": "999"}, *table, sql)
    printed = out.decode(encoding).splitlines()[2]
    given = printed.split("~")[1] if option == "--field" else printed.replace("~", r"\n")
    found, said = written(variables, "events", *words, option, given)
    assert LABEL.encode() in found, said
