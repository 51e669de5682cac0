"""Selection of events by labels, fields and ids in ``scache events``."""

from __future__ import annotations

import json
import time
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
    """Record the requests of smtp(8); return the database file."""
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
    """Return the ids of the events that are printed, and the text on stderr."""
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
def test_events_selects_by_pattern_field_or_id(
    capsys: Capture, file: str, options: list[str], expected: Sequence[int]
) -> None:
    """A pattern may be in printed form; an id is that of a connection or a binding."""
    assert events(capsys, file, *options)[0] == expected


def test_events_accepts_label_with_joined_fields(capsys: Capture, file: str) -> None:
    """The form in which lines show a label can be pasted into a filter."""
    assert events(capsys, file, "--endpoint", "smtp 203.0.113.5 587 0") == ([1, 2, 4, 5], "")
    assert events(capsys, file, "--endpoint", "smtp 203.0.113.5? *") == ([3, 6], "")
    assert events(capsys, file, "--destination", "smtp [mx1.example.org]:587")[0] == [1, 4]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--connection", "8"], [2, 4, 5]),
        (["--connection", "8", "--connection", "9"], [2, 3, 4, 5, 6]),
        (["--connection", "7", "--id", "9"], [1, 3, 4, 6]),
        (["--outcome", "fail"], [7]),
        (["--outcome", "ok"], [1, 2, 3, 4]),
        (["--outcome", "ok", "--outcome", "fail"], [1, 2, 3, 4, 7]),
        (["--outcome", "bad"], []),
        (["--connection", "8", "--outcome", "ok", "--kind", "find_dest"], [4]),
    ],
)
def test_events_filters_by_connection_and_outcome(
    capsys: Capture, file: str, options: list[str], expected: list[int]
) -> None:
    """Close reasons have no outcome; ``--connection`` is another name of ``--id``."""
    assert events(capsys, file, *options) == (expected, "")


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ([], ["save_dest", "save_endp", "save_endp", "find_dest", "find_endp", "expired"]),
        (["--limit", "3"], ["find_dest", "find_endp", "expired"]),
        (["--connection", "8"], ["save_endp", "find_dest"]),
        (["--kind", "found"], ["found"]),
        (["--kind", "found", "--kind", "find_dest"], ["find_dest", "found"]),
    ],
)
def test_events_lines_have_one_line_for_a_hit(
    capsys: Capture, file: str, options: list[str], kinds: list[str]
) -> None:
    """The find stands for the event `found`, unless its kind is asked for."""
    arguments = ["events", "--database", file, "--format", "table", *options]
    assert execute(arguments) == errors.EXIT_OK
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[1] for line in lines] == kinds


def test_events_lines_keep_found_without_its_find(capsys: Capture, file: str) -> None:
    """The find may have been trimmed from the audit log."""
    with filling(Path(file)) as cached:
        cached.run("DELETE FROM event WHERE kind = 'find_dest'")
    assert execute(["events", "--database", file, "--format", "table"]) == errors.EXIT_OK
    assert " found " in capsys.readouterr().out


def test_events_local_shows_times_of_this_time_zone(
    capsys: Capture, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines and JSON have the offset, and ``--since`` is in that zone too."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        command = ["events", "--database", file, "--local"]
        assert execute([*command, "--format", "table", "--limit", "1"]) == errors.EXIT_OK
        day, line = capsys.readouterr().out.splitlines()
        assert day == "2023-11-15 +05:30"
        assert line.startswith("03:44:20.000 expired ")
        assert execute([*command, "--since", "2023-11-15T03:44:20"]) == errors.EXIT_OK
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["id"], row["at"]) == (6, "2023-11-15T03:44:20.000+05:30")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_events_interval_needs_follow(capsys: Capture, file: str) -> None:
    """Without it nothing is repeated."""
    assert execute(["events", "--database", file, "--interval", "5"]) == errors.EXIT_SETTINGS
    assert "--interval is for --follow: give both" in capsys.readouterr().err


@pytest.mark.parametrize("label", [*ODD.values(), rb"a\nb", b"\xa0", "\xa0".encode()])
@pytest.mark.parametrize("option", ["--endpoint", "--destination"])
def test_events_accepts_printed_form_of_any_label(
    capsys: Capture, file: str, label: bytes, option: str
) -> None:
    """The label may have any bytes."""
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
def test_events_hints_at_wrong_labels(
    capsys: Capture, file: str, options: list[str], hint: str
) -> None:
    """There is no hint if only other filters exclude all events, or if no label is similar."""
    _, err = events(capsys, file, *options)
    assert hint in err
    assert bool(hint) == bool(err)


@pytest.mark.parametrize("value", ["0", "-1", "x", str(2**63)])
def test_events_refuses_invalid_id(capsys: Capture, file: str, value: str) -> None:
    """An id is a positive integer of SQLite."""
    assert execute(["events", "--database", file, "--id", value]) == errors.EXIT_SETTINGS
    assert "'--id'" in capsys.readouterr().err


def test_events_refuses_an_empty_field(capsys: Capture, file: str) -> None:
    """It may come from a variable that is not set."""
    assert execute(["events", "--database", file, "--field", ""]) == errors.EXIT_SETTINGS
    assert "--field must not be empty" in capsys.readouterr().err
