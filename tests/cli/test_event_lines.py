"""Events as lines of text that fit the terminal."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from scache.cli.render.event_lines import line
from scache.inspection.image import Value
from tests.support.sample_database import ODD

ENDPOINT = b"smtp\n192.0.2.17\n25\n0\n"
DESTINATION = b"smtp\n\nexample.org\n\n"


def event(**columns: Value) -> dict[str, Value]:
    """Return a request that succeeded, with some columns replaced."""
    usual: dict[str, Value] = {
        "kind": b"find_dest",
        "outcome": b"ok",
        "destination": None,
        "endpoint": None,
        "pid": 12345,
        "program": b"smtp",
        "ttl": None,
        "age": None,
        "detail": None,
    }
    return usual | columns


def shown_line(width: int, **columns: Value) -> str:
    """Return the line of an event without the time, the kind and the outcome."""
    text = line("22:22:20.000", event(**columns), width)
    assert cell_len(text) <= width
    return text[28:]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (ENDPOINT, "smtp 192.0.2.17 25 0"),
        (DESTINATION, "smtp example.org"),
        (b"mx1.example.org:25", "mx1.example.org:25"),
        (b"a b", "a b"),
        (b"\n", r"\n"),
        (b"\xff\x1b[2J\nx\n", r"\xff\x1b[2J x"),
        (rb"a\nb", r"a\nb"),
    ],
)
def test_event_line_joins_fields_of_labels(label: bytes, expected: str) -> None:
    """Fields are joined wherever they are in the label; empty ones are left out."""
    assert shown_line(120, endpoint=label) == f"{expected}  smtp[12345]"


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (140, "smtp example.org > smtp 192.0.2.17 25 0  ttl 1m  age 2s  smtp[12345]"),
        (90, "smtp example.org > smtp 192.0.2.17 25 0  ttl 1m  smtp[12345]"),
        (80, "smtp example.org > smtp 192.0.2.17 25 0  smtp[12345]"),
        (76, "smtp example.org > smtp 192.0.2.17 25 0  [12345]"),
        (70, "smtp example.org > …192.0.2.17…  [12345]"),
        (60, "exam….org > …17  [12345]"),
    ],
)
def test_event_line_gives_labels_room_first(width: int, expected: str) -> None:
    """The age, the ttl and the program give way before the labels, and the pid never does."""
    text = shown_line(width, destination=DESTINATION, endpoint=ENDPOINT, ttl=60.0, age=2.0)
    if width > 60:
        assert text == expected
    assert text.endswith("[12345]")


@pytest.mark.parametrize("width", [60, 61, 70, 79, 80, 100, 139])
@pytest.mark.parametrize("detail", [None, b"limit: connections per endpoint"])
@pytest.mark.parametrize("label", ODD.values(), ids=ODD)
def test_event_line_has_whole_pid_or_none(width: int, detail: Value, label: bytes) -> None:
    """Part of a number would be another number."""
    text = shown_line(
        width,
        destination=label,
        endpoint=label,
        program=label,
        pid=4194304,
        ttl=60.0,
        age=0.1,
        detail=detail,
    )
    assert text.isprintable()
    assert text.endswith("[4194304]") or (detail and width < 80)
    assert ("[" not in text.removesuffix("[4194304]")) or b"[" in label


@pytest.mark.parametrize(
    ("width", "destination", "detail", "expected"),
    [
        (60, None, b"no descriptor", "smtp mx1…e.org:25  no descriptor"),
        (60, None, b"limit: connections per endpoint", "  limit: connec…"),
        (80, None, b"no descriptor", "smtp mx1.example.org:25  no descriptor  smtp[12345]"),
        (80, None, b"limit: connections per endpoint", "  limit: connections…  [12345]"),
        (80, b"smtp example.org", b"limit: bindings", "  limit: bindings  [12345]"),
    ],
)
def test_event_line_shows_why_a_request_failed(
    width: int, destination: Value, detail: bytes, expected: str
) -> None:
    """The detail gets up to half of the room, and no ttl was granted."""
    text = shown_line(
        width,
        outcome=b"fail",
        destination=destination,
        endpoint=b"smtp mx1.example.org:25",
        detail=detail,
        ttl=60.0,
    )
    assert expected in text
    assert "ttl" not in text


def test_event_line_without_program_says_pid() -> None:
    """A client that has ended has no name; 0 stands for a process of another namespace."""
    assert shown_line(80, endpoint=b"e", program=None) == "e  pid[12345]"
    assert shown_line(80, endpoint=b"e", program=None, pid=0) == "e  pid[0]"
