"""The command ``scache events --follow``."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from scache import Unavailable, errors
from scache.cli.main import EXIT_INTERRUPTED, execute
from tests.support.commands import SCACHE, started
from tests.support.looking import Capture, FakeSleep, StubDaemon, failure
from tests.support.sample_database import NOW, filling

pytestmark = pytest.mark.usefixtures("narrow")


def follow(capsys: Capture, *options: str | Path) -> tuple[list[int], str]:
    """Follow until Ctrl-C; return the ids of the events, and the text on stderr."""
    arguments = ["events", "--follow", "--format", "jsonl", *map(str, options)]
    assert execute(arguments) == EXIT_INTERRUPTED
    output = capsys.readouterr()
    return [json.loads(line)["id"] for line in output.out.splitlines()], output.err


def test_follow_prints_each_event_once(filled: Path, capsys: Capture, sleep: FakeSleep) -> None:
    """The last ten events come first, and then new ones."""

    def more(first: int) -> None:
        with filling(filled) as cached:
            for number in range(first, first + 3):
                cached.event("lost" if number % 2 else "hung_up", id=number)

    sleep.then(lambda: None)
    sleep.then(lambda: more(100))
    sleep.then(lambda: more(200))
    ids, said = follow(capsys, "--database", filled)
    assert ids == [*range(2, 12), 100, 101, 102, 200, 201, 202]
    assert said == ""
    assert sleep.seconds == [1] * 4


def test_follow_says_once_that_audit_log_is_off(
    file: Path, capsys: Capture, sleep: FakeSleep
) -> None:
    """The line is on stderr."""
    with filling(file) as cached:
        cached.setting(audit_rows="0")
    sleep.then(lambda: None)
    said = "scache: no event is recorded while audit_rows is 0\n"
    assert follow(capsys, "--database", file) == ([], said)


def test_follow_json_is_one_line_for_each_event(
    filled: Path, capsys: Capture, sleep: FakeSleep
) -> None:
    """An array would never end."""
    ids, _ = follow(capsys, "--database", filled, "--format", "json", "--limit", "2")
    assert ids == [10, 11]
    assert sleep.seconds == [1]


def test_follow_filters_new_events(filled: Path, capsys: Capture, sleep: FakeSleep) -> None:
    """``--limit`` applies to the first look only."""

    def more() -> None:
        with filling(filled) as cached:
            for number in range(100, 104):
                cached.event("lost" if number % 2 else "expired", id=number)

    sleep.then(more)
    options = ("--kind", "expired", "--kind", "find_dest", "--limit", "2", "--interval", "5")
    ids, _ = follow(capsys, "--database", filled, *options)
    assert ids == [9, 11, 100, 102]
    assert sleep.seconds == [5, 5]


def test_follow_goes_on_after_restart_with_new_database(
    daemon: StubDaemon, filled: Path, tmp_path: Path, capsys: Capture, sleep: FakeSleep
) -> None:
    """While no daemon answers, one line says so. The ids of the new database start over."""
    daemon.file = filled
    other = tmp_path / "other.db"
    with filling(other) as cached:
        cached.instance(started_at=NOW + 900)
        cached.event("lost", id=1)
        cached.event("lost", id=2)

    def away() -> None:
        daemon.error = Unavailable("no daemon\nanswers")

    def back() -> None:
        daemon.error = None
        daemon.file = other

    for happens in (away, away, back, lambda: None):
        sleep.then(happens)
    ids, said = follow(capsys, "--limit", "1")
    assert ids == [11, 1, 2]
    assert said == "scache: no daemon\\nanswers; waiting for it\n"


def test_follow_goes_on_after_restart_with_same_database(
    daemon: StubDaemon, filled: Path, capsys: Capture, sleep: FakeSleep
) -> None:
    """No event is printed twice."""
    daemon.file = filled

    def restarted() -> None:
        with filling(filled) as cached:
            cached.instance(2, started_at=NOW + 900)
            cached.event("lost", id=12)

    sleep.then(restarted)
    sleep.then(lambda: None)
    ids, _ = follow(capsys, "--limit", "1")
    assert ids == [11, 12]


def test_follow_fails_if_no_daemon_answers_at_first(
    daemon: StubDaemon, capsys: Capture, sleep: FakeSleep
) -> None:
    """It does not wait for a first daemon."""
    daemon.error = Unavailable("no daemon answers")
    assert failure(capsys, "events", "--follow")[0] == errors.EXIT_SOCKET
    assert sleep.seconds == []


def test_follow_csv_has_one_header(
    filled: Path, sleep: FakeSleep, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The header is there before the first event."""

    def more() -> None:
        with filling(filled) as cached:
            cached.event("lost", id=12)

    sleep.then(more)
    arguments = ["events", "--follow", "--format", "csv", "--limit", "0"]
    assert execute([*arguments, "--database", str(filled)]) == EXIT_INTERRUPTED
    header, row = capsysbinary.readouterr().out.splitlines()
    assert header.startswith(b'"id","at",')
    assert row.startswith(b"12,")


def test_follow_ends_silently_when_pipe_is_closed(filled: Path) -> None:
    """Lines are not buffered meanwhile."""
    command = (*SCACHE, "events", "--follow", "--interval", "0.01", "--format", "table")
    with started(*command, "--database", str(filled)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"2023-11-14 UTC\n"
        process.stdout.close()
        with filling(filled) as cached:
            cached.event("lost", id=12)
        assert process.stderr.read() == b""
        assert process.wait() == -signal.SIGPIPE
