"""The command ``scache events``: filters, order and format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from scache import errors
from scache.cli.main import execute
from tests.support.looking import Capture, failure, run
from tests.support.sample_database import NOW, ODD, filling

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", range(1, 12)),
        ("--limit 3", [9, 10, 11]),
        ("--limit 0", []),
        ("--kind expired", [11]),
        ("--kind expired --kind save_endp --limit 2", [10, 11]),
        ("--endpoint e*.org:25", [2, 4, 6, 8, 10, 11]),
        ("--endpoint E*", []),
        ("--destination d[1-4]*", [1, 3]),
        ("--client 7", [1, 3, 5, 7, 9]),
        ("--client sm*", [2, 4, 6, 8, 10]),
        ("--since 2023-11-14T22:22:20Z", [9, 10, 11]),
        ("--since 2023-11-15T00:22:20.000+02:00", [9, 10, 11]),
        ("--since 2023-11-14T22:22:20.001", [10, 11]),
        ("--since 2023-11-15", []),
        ("--since 90s", []),
        ("--since 9999999d", range(1, 12)),
        (f"--since {'9' * 400}d", range(1, 12)),
        ("--since 0001-01-01T00:00:00+14:00", range(1, 12)),
        ("--since 9999-12-31T23:59:59-14:00", []),
        (f"--limit {2**63 - 1}", range(1, 12)),
        (f"--client {2**63 - 1}", []),
        ("--since 2023-11-14 --kind find_dest --client 7 --limit 2", [7, 9]),
    ],
)
def test_events_prints_events_that_match_all_filters(
    filled: Path, capsys: Capture, options: str, expected: Sequence[int]
) -> None:
    """The oldest event is the first."""
    arguments = ["events", "--database", str(filled), *options.split()]
    assert [row["id"] for row in json.loads(run(capsys, *arguments))] == list(expected)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--kind=find", "there is no kind 'find': there are save_endp, find_endp, "),
        ("--since=yesterday", "--since takes a time such as "),
        ("--since=10", "--since takes a time such as "),
        ("--limit=-1", "must be a whole number from 0 to 2^63 - 1, not '-1'"),
        ("--limit=1.5", "not '1.5'"),
        (f"--limit={'9' * 5000}", "must be a whole number"),
        ("--id=0", "must be a whole number from 1 to 2^63 - 1, not '0'"),
        ("--connection=²", "not '²'"),
        (f"--limit={2**63}", f"must be a whole number from 0 to 2^63 - 1, not '{2**63}'"),
        ("--client=", "--client must not be empty"),
        (f"--client={2**63}", "no id is that large"),
        (f"--client={'9' * 5000}", "no id is that large"),
        ("--interval=0", "0"),
    ],
)
def test_events_refuses_invalid_option(
    filled: Path, capsys: Capture, option: str, sentence: str
) -> None:
    """The message names the value, and the exit code is 2."""
    code, said = failure(capsys, "events", "--database", filled, option)
    assert (code, sentence in said) == (errors.EXIT_SETTINGS, True)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("[2001:db8::1]:25", [1]),
        ("[2001:db8::1]:*", []),
        ("[[]2001:db8::*]:25", [1, 2]),
        ("[3]", [3, 4]),
    ],
)
def test_events_matches_label_with_brackets(
    file: Path, capsys: Capture, pattern: str, expected: list[int]
) -> None:
    """A pattern matches a label with the same text; otherwise brackets are those of GLOB."""
    labels = (b"[2001:db8::1]:25", b"[2001:db8::2]:25", b"[3]", b"3", b"4")
    with filling(file) as cached:
        for number, label in enumerate(labels, 1):
            cached.client(number, program=label)
            cached.event(
                "find_dest", 0, id=number, endpoint=label, destination=label, client_id=number
            )
    for option in ("--endpoint", "--destination", "--client"):
        assert execute(["events", "--database", str(file), option, pattern]) == errors.EXIT_OK
        told = json.loads(capsys.readouterr().out)  # a hint at the brackets may be on stderr
        assert [row["id"] for row in told] == expected


def test_events_are_in_order_of_time(file: Path, capsys: Capture) -> None:
    """Within one write, ids are in another order, even within a millisecond."""
    with filling(file) as cached:
        for number, after in enumerate((0.0003, 0.0002, 5, 0.0002, 0), 1):
            cached.event("lost", id=number, at=NOW + after)
    for options, expected in (((), [5, 2, 4, 1, 3]), (("--limit", "2"), [1, 3])):
        told = json.loads(run(capsys, "events", "--database", file, *options))
        assert [row["id"] for row in told] == expected


def test_events_hides_successful_snapshots_by_default(file: Path, capsys: Capture) -> None:
    """A snapshot that failed is shown; ``--kind snapshot`` shows all."""
    with filling(file) as cached:
        for number, kind in enumerate(("lost", "snapshot", "snapshot", "unknown"), 1):
            cached.event(kind, 2 if number == 3 else 0, id=number)
    for options, expected in (
        ((), [1, 3, 4]),
        (("--limit", "2"), [3, 4]),
        (("--kind", "snapshot"), [2, 3]),
    ):
        told = json.loads(run(capsys, "events", "--database", file, *options))
        assert [row["id"] for row in told] == expected


def test_events_table_has_one_line_for_each_event(filled: Path, capsys: Capture) -> None:
    """A line with the date precedes the events of a day."""
    out = run(capsys, "events", "--database", filled, "--format", "table", "--limit", "3")
    assert out.splitlines() == [
        "2023-11-14 UTC",
        "22:22:20.000 find_dest fail d9.org  lmtp[7]",
        "22:23:20.000 save_endp ok   e10.org:25  smtp[1001]",
        "22:25:00.000 expired        e2.org:25  age 1.50s",
    ]


def test_events_table_fits_long_labels_into_one_line(file: Path, capsys: Capture) -> None:
    """Two labels, a program and a detail are shortened to 60 columns together."""
    with filling(file) as cached:
        cached.client(1, program=ODD["escape"])
        for label in ODD.values():
            cached.event(
                "find_dest", 0, destination=label, endpoint=label, client_id=1, detail=label
            )
    lines = run(capsys, "events", "--database", file, "--format", "table").splitlines()
    assert len(lines) == 1 + len(ODD)
    assert all(len(line) <= 60 and line.isprintable() for line in lines)


def test_events_table_leaves_out_unknown_label_and_client(file: Path, capsys: Capture) -> None:
    """An event may have neither labels nor a client that was recorded."""
    with filling(file) as cached:
        cached.event("unknown", 1, client_id=55)
    out = run(capsys, "events", "--database", file, "--format", "table")
    assert out.splitlines()[1] == "22:13:20.000 unknown   bad"


@pytest.mark.parametrize("layout", ["table", "json"])
def test_events_says_that_audit_log_is_off(file: Path, capsys: Capture, layout: str) -> None:
    """The line is on stderr, and the output is that of an empty audit log."""
    with filling(file) as cached:
        cached.setting(audit_rows="0")
    arguments = ["events", "--database", str(file), "--format", layout]
    assert execute(arguments) == errors.EXIT_OK
    output = capsys.readouterr()
    assert output.out in ("(no events)\n", "[]\n")
    assert output.err == "scache: no event is recorded while audit_rows is 0\n"
