"""Which events ``scache events`` tells of, by the names of labels and things."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from scache import errors
from scache.cli.main import execute
from scache.escape import shown
from tests.support.sample_database import NOW, ODD, filling

Capture = pytest.CaptureFixture[str]

ENDPOINT = b"smtp\n203.0.113.5\n587\n0\n"
OTHER = b"smtp\n203.0.113.55\n25\n0\n"
DESTINATION = b"smtp\n[mx1.example.org]:587\n"


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Record what smtp(8) does; return the database file."""
    path = tmp_path / "cache.db"
    with filling(path) as cached:
        cached.event("save_dest", 0, id=1, destination=DESTINATION, endpoint=ENDPOINT, binding_id=7)
        cached.event("save_endp", 0, id=2, endpoint=ENDPOINT, connection_id=8)
        cached.event("save_endp", 0, id=3, endpoint=OTHER, connection_id=9)
        cached.event(
            "find_dest", 0, id=4, destination=DESTINATION, endpoint=ENDPOINT, binding_id=7,
            connection_id=8,
        )  # fmt: skip
        cached.event("found", id=5, endpoint=ENDPOINT, connection_id=8, age=1.0)
        cached.event("expired", id=6, endpoint=OTHER, connection_id=9, at=NOW + 60)
        cached.event("find_endp", 2, id=7, endpoint=b"mx1.example.org:25")
    return str(path)


def events(capsys: Capture, file: str, *options: str) -> tuple[list[int], str]:
    """Return the ids of the events that are told, and what is said on stderr."""
    assert execute(["events", "--database", file, *options]) == errors.EXIT_OK
    output = capsys.readouterr()
    return [row["id"] for row in json.loads(output.out)], output.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--endpoint", r"smtp\n203.0.113.5\n587\n0\n"], [1, 2, 4, 5]),
        (["--endpoint", r"*\n203.0.113.5*\n*"], [1, 2, 3, 4, 5, 6]),
        (["--destination", r"smtp\n[mx1.example.org]:587\n"], [1, 4]),
        (["--field", "203.0.113.5"], [1, 2, 4, 5]),
        (["--field", "203.0.113.55"], [3, 6]),
        (["--field", "[mx1.example.org]:587"], [1, 4]),
        (["--field", "203.0.113.5", "--field", "0", "--kind", "found"], [5]),
        (["--field", "203.0.113.5", "--field", "25"], []),
        (["--field", "203.0.113.5", "--field", "[mx1.example.org]:587"], []),
        (["--field", "mx1.example.org:25"], [7]),
        (["--field", "smtp", "--limit", "2"], [5, 6]),
        (["--id", "8"], [2, 4, 5]),
        (["--id", "7"], [1, 4]),
        (["--id", "7", "--id", "9"], [1, 3, 4, 6]),
        (["--id", "8", "--kind", "found"], [5]),
        (["--id", "8", "--field", "203.0.113.55"], []),
        (["--id", "1"], []),
        (["--id", str(2**63 - 1)], []),
    ],
)
def test_events_are_told_of_the_labels_that_are_named(
    capsys: Capture, file: str, options: list[str], expected: Sequence[int]
) -> None:
    """By a pattern in the form that tables print, by whole fields of one label, or by ids."""
    assert events(capsys, file, *options)[0] == expected


@pytest.mark.parametrize("label", [*ODD.values(), rb"a\nb", b"\xa0", "\xa0".encode()])
@pytest.mark.parametrize("option", ["--endpoint", "--destination"])
def test_events_accepts_any_label_as_tables_print_it(
    capsys: Capture, file: str, label: bytes, option: str
) -> None:
    """Whatever its bytes are."""
    with filling(file) as cached:
        cached.event("lost", id=9, endpoint=label, destination=label)
    assert events(capsys, file, option, shown(label)) == ([9], "")


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--destination", "*[mx1.example.org]*"], "write *[[]mx1.example.org]*"),
        (["--field", "mx1.example.org"], r"similar labels: mx1.example.org:25, smtp\n[mx1."),
        (["--endpoint", "203.0.113.55:25"], r"similar labels: smtp\n203.0.113.55\n25\n0\n"),
        (["--endpoint", "smtp*", "--since", "1s"], ""),
        (["--endpoint", "x*"], ""),
        (["--field", "smtp", "--kind", "lost"], ""),
    ],
)
def test_events_hints_at_labels_that_are_named_wrongly(
    capsys: Capture, file: str, options: list[str], hint: str
) -> None:
    """But not where other filters leave nothing over, or where no label is similar."""
    _, err = events(capsys, file, *options)
    assert hint in err
    assert bool(hint) == bool(err)


@pytest.mark.parametrize("value", ["0", "-1", "x", str(2**63)])
def test_events_refuses_what_is_no_id(capsys: Capture, file: str, value: str) -> None:
    """Nothing has it."""
    assert execute(["events", "--database", file, "--id", value]) == errors.EXIT_SETTINGS
    assert "'--id'" in capsys.readouterr().err


def test_events_refuses_an_empty_field(capsys: Capture, file: str) -> None:
    """It may come from a variable that is not set."""
    assert execute(["events", "--database", file, "--field", ""]) == errors.EXIT_SETTINGS
    assert "--field must not be empty" in capsys.readouterr().err
