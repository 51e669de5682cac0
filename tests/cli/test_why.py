"""The command ``scache why``: the life of a label in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from scache import errors
from scache.cli.commands.why import MOST
from scache.cli.main import execute
from scache.vocabulary import MISS_REASONS
from tests.support.sample_database import filling

Capture = pytest.CaptureFixture[str]

ENDPOINT = b"smtp\n203.0.113.5\n25\n0\n"
DESTINATION = b"smtp\nexample.org\n"

ADVICE = {
    "none_left": "clients ask for more connections than they save",
    "expired": "a time to live that is longer by 3.3 s (5.3 s in all) would have hit each time",
    "hung_up": "the server closes idle connections",
    "purged": "nothing, if the purge was intended",
    "limit": "raise max_connections",
    "refused": "remove the cause of the refused saves",
    "fault": "see scache check",
    "unknown": "no client saves for this label",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Make a database in which an endpoint was missed for each reason."""
    path = tmp_path / "cache.db"
    with filling(path) as cached:
        cached.event(
            "save_dest", 0, destination=DESTINATION, endpoint=ENDPOINT, binding_id=1, ttl=9
        )
        cached.event("find_dest", 2, destination=DESTINATION, detail="expired 0.5 s ago")
        cached.event("find_dest", 2, destination=DESTINATION, detail="expired 3.2 s ago")
        cached.event("save_endp", 2, endpoint=ENDPOINT, detail="limit: open files")
        for number in (2, 3):
            cached.event("save_endp", 0, endpoint=ENDPOINT, connection_id=number, ttl=2)
            cached.event("expired", endpoint=ENDPOINT, connection_id=number, age=2.0)
        for reason in MISS_REASONS:
            detail: str
            match reason:
                case "unknown":
                    detail = reason
                case "fault":
                    detail = "fault: database or disk is full"
                case _:
                    detail = f"{reason} 3.2 s ago"
            cached.event("find_endp", 2, endpoint=ENDPOINT, detail=detail)
        cached.event("find_endp", 0, endpoint=ENDPOINT, connection_id=9)
    return path


def told(capsys: Capture, label: str, file: Path) -> str:
    """Return the output of the command."""
    assert execute(["why", label, "--database", str(file)]) == errors.EXIT_OK
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "label",
    [
        "smtp\n203.0.113.5\n25\n0\n",
        r"smtp\n203.0.113.5\n25\n0\n",
        "smtp 203.0.113.5 25 0",
        "*.5\n25*",
    ],
)
def test_why_tells_the_life_of_an_endpoint(label: str, file: Path, capsys: Capture) -> None:
    """The label may be exact, in its printed form, joined, or a pattern."""
    text = told(capsys, label, file)
    assert text.splitlines()[:5] == [
        "endpoint smtp 203.0.113.5 25 0",
        "  saved: 2 connections, for 2.0 s at most; cached now: 0",
        "  refused: 1 save (limit: open files)",
        "  left: 2 expired (at 2.0 s on average)",
        "  finds: 9, of which 1 found a connection (11%)",
    ]


@pytest.mark.parametrize("reason", MISS_REASONS)
def test_why_explains_each_reason(reason: str, file: Path, capsys: Capture) -> None:
    """Each one says what the misses lacked, and what to change."""
    lines = told(capsys, "203.0.113.5", file).splitlines()
    (missed,) = (line for line in lines if line.startswith(f"  missed: 1 find, {reason}: "))
    assert missed.endswith(", 3.2 s before") == (reason not in ("fault", "unknown"))
    (advice,) = (line for line in lines if line.startswith(f"  to change ({reason}): "))
    assert ADVICE[reason] in advice


def test_why_tells_the_life_of_a_destination(file: Path, capsys: Capture) -> None:
    """It names the endpoints that the destination was bound to."""
    assert told(capsys, "example.org", file).splitlines()[:5] == [
        "destination smtp example.org",
        "  saved: 1 binding, for 9.0 s at most; cached now: 0",
        "  bound to: smtp 203.0.113.5 25 0",
        "  finds: 2, of which 0 found a connection (0%)",
        "  missed: 2 finds, expired: the time to live was over, 0.5 to 3.2 s before",
    ]


def test_why_says_that_no_label_matches(file: Path, capsys: Capture) -> None:
    """A hint on stderr names similar labels."""
    assert execute(["why", "203.0.113.55", "--database", str(file)]) == errors.EXIT_OK
    assert "has such a label" in capsys.readouterr().out
    assert execute(["why", "example", "--database", str(file)]) == errors.EXIT_OK
    assert "similar labels" in capsys.readouterr().err


def test_why_tells_of_a_few_labels_only(tmp_path: Path, capsys: Capture) -> None:
    """A line on stderr says that there are more."""
    with filling(tmp_path / "cache.db") as cached:
        for number in range(MOST + 1):
            cached.event("find_endp", 2, endpoint=b"e%d" % number, detail="unknown")
    assert execute(["why", "e*", "--database", str(tmp_path / "cache.db")]) == errors.EXIT_OK
    out, err = capsys.readouterr()
    assert out.count("endpoint e") == MOST
    assert "more than 10 labels match" in err


def test_why_refuses_an_empty_label(capsys: Capture) -> None:
    """It would match nearly everything."""
    assert execute(["why", ""]) == errors.EXIT_SETTINGS
    assert "must not be empty" in capsys.readouterr().err


def test_connection_that_left_at_an_unknown_age_has_none(tmp_path: Path, capsys: Capture) -> None:
    """The age is not recorded of a lost connection if the clock was set during the run."""
    path = tmp_path / "cache.db"
    with filling(path) as cached:
        cached.event("save_endp", 0, endpoint=b"e", connection_id=1, ttl=5)
        cached.event("lost", endpoint=b"e", connection_id=1)
    assert "  left: 1 lost\n" in told(capsys, "e", path)
