"""Events as lines of text, one for each, that fit the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.cells import cell_len
from rich.text import Text

from scache.cli.render.color import make_console, width_of
from scache.cli.render.tables import (
    ELLIPSIS,
    WIDE,
    shortened,
    shortened_inside,
    span,
)
from scache.cli.streams import drawn, visible
from scache.inspection.image import Value

_DATE = 10
"""Characters of a date."""
_CLOCK = 12
"""Characters of a time of day with milliseconds."""
_ARROW = " > "
_GAP = "  "
_SHORTEST_LABELS = 14
"""Columns that labels keep at least; with less room, the client is left out."""
_SHORTEST_DETAIL = 16
"""Columns that a detail keeps at least; with less room, the client is left out."""
_SHORTEST_PROGRAM = 3
"""Columns that the name of a program keeps at least; with less room, it is left out."""


class EventLines:
    """A writer of events, with a line for each new day."""

    def __init__(self) -> None:
        self._console = make_console()
        self._day = ""

    def write(self, columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> bool:
        """Write rows of the view ``event_log``; return True if there was one."""
        any_row = False
        width = width_of(self._console) or WIDE
        for row in rows:
            event = dict(zip(columns, row, strict=True))
            at = visible(event["at"])
            zone = at[_DATE + 1 + _CLOCK :]
            day = f"{at[:_DATE]} {'UTC' if zone == 'Z' else zone}"
            if day != self._day:
                self._console.print(Text(day, style="bold"), soft_wrap=True)
                self._day = day
            clock = at[_DATE + 1 : _DATE + 1 + _CLOCK]
            sys.stdout.write(line(clock, event, width) + "\n")
            any_row = True
        return any_row


def line(clock: str, event: Mapping[str, Value], width: int) -> str:
    """Return an event as a line of at most ``width`` columns.

    The labels get the room that they need, but a detail gets up to half of it. The pid is whole,
    or left out on a narrow terminal. The program, the ttl and the age get the room that is left.
    """
    begin = f"{clock} {visible(event['kind']):9} {visible(event['outcome']):4} "
    labels = [_fields(event[name]) for name in ("destination", "endpoint") if event[name]]
    detail = visible(event["detail"])
    pid = "" if event["pid"] is None else f"[{visible(event['pid'])}]"
    room = width - cell_len(begin)
    least = _SHORTEST_LABELS + min(_behind(detail), _SHORTEST_DETAIL)
    if room - _behind(pid) < least:
        pid = ""
    room -= _behind(pid)
    text = _labels_in(labels, max(room - _behind(detail), room // 2 if detail else room))
    room -= cell_len(text)
    if detail:
        detail = shortened(detail, max(room - len(_GAP), 1))
        room -= _behind(detail)
    client = ""
    if pid:
        program = visible(event["program"]) or "pid"
        fits = room >= min(cell_len(program), _SHORTEST_PROGRAM)
        client = (shortened(program, room) if fits else "") + pid
        room -= cell_len(client) - len(pid)
    parts = [text, detail] if text else [detail]
    for each in _durations(event):
        if _behind(each) <= room:
            parts.append(each)
            room -= _behind(each)
    end = _GAP.join(part for part in (*parts, client) if part)
    return shortened(f"{begin}{end}".rstrip(), width)


def _behind(text: str) -> int:
    """Return the columns that a text takes behind another one."""
    return len(_GAP) + cell_len(text) if text else 0


def _durations(event: Mapping[str, Value]) -> Iterator[str]:
    ttl, age = event["ttl"], event["age"]
    if isinstance(ttl, int | float) and event["outcome"] == b"ok":  # a refused request has none
        yield f"ttl {span(ttl)}"
    if isinstance(age, int | float):
        yield f"age {span(age)}"


def _fields(label: Value) -> list[str]:
    """Return the fields of a label that are not empty, in their printed form."""
    if not isinstance(label, bytes):
        return [visible(label)]
    return [visible(field) for field in label.split(b"\n") if field] or [visible(label)]


def _labels_in(labels: Sequence[Sequence[str]], room: int) -> str:
    """Return one or two labels with an arrow between them, shortened to the room."""
    if len(labels) < 2:
        return "".join(_label_in(fields, room) for fields in labels)
    first, second = labels
    room -= len(_ARROW)
    needed = min(cell_len(" ".join(second)), max(map(cell_len, second)) + 2 * len(drawn(ELLIPSIS)))
    begin = _label_in(first, max(room // 2, room - needed))
    return f"{begin}{_ARROW}{_label_in(second, room - cell_len(begin))}"


def _label_in(fields: Sequence[str], width: int) -> str:
    """Return a label in ``width`` columns: its longest field, which names a host, and others."""
    longest = max(range(len(fields)), key=lambda index: cell_len(fields[index]))
    before, after = max(longest - 1, 0), min(longest + 1, len(fields) - 1)
    ends = ((0, len(fields) - 1), (before, after), (longest, after), (before, longest))
    for first, last in (*ends, (longest, longest)):
        text = _excerpt(fields, first, last)
        if cell_len(text) <= width:
            return text
    return shortened_inside(fields[longest], width)


def _excerpt(fields: Sequence[str], first: int, last: int) -> str:
    """Return neighbouring fields, with an ellipsis for those that are left out."""
    begin = "" if first == 0 else drawn(ELLIPSIS)
    end = "" if last == len(fields) - 1 else drawn(ELLIPSIS)
    return f"{begin}{' '.join(fields[first : last + 1])}{end}"
