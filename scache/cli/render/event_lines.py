"""Events as lines of text, one for each, that fit the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len
from rich.text import Text

from scache.cli.render.tables import (
    ELLIPSIS,
    WIDE,
    make_console,
    shortened,
    shortened_inside,
    span,
    width_of,
)
from scache.escape import shown
from scache.inspection.image import Value

_DAY = 10
"""Characters of a date."""
_SHORTEST_LABEL = 14
"""Characters that each of two labels keeps at least; the text behind them is shortened first.

If there is a detail, both labels together keep this number of characters.
"""
_NEWLINE = r"\n"
"""A newline in the output of `shown`."""


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
            event = dict(zip(columns, map(shown, row), strict=True))
            day, clock = event["at"][:_DAY], event["at"][_DAY + 1 : -1]
            if day != self._day:
                self._console.print(Text(f"{day} UTC", style="bold"), soft_wrap=True)
                self._day = day
            sys.stdout.write(line(clock, event, width) + "\n")
            any_row = True
        return any_row


def line(clock: str, event: dict[str, str], width: int) -> str:
    """Return an event as a line of at most ``width`` columns.

    Labels are shortened first. Of a label with several fields, as Postfix has them, the longest
    field stays, which names a host; otherwise the middle is left out. Then the client is
    shortened, and the detail last.
    """
    begin = f"{clock} {event['kind']:9} {event['outcome']:4}"
    labels = [event[name] for name in ("destination", "endpoint") if event[name]]
    why = f"  {event['detail']}" if event["detail"] else ""
    end = "".join(f"  {each}" for each in _circumstances(event))
    arrow = " > "
    room = width - len(begin) - 1 - cell_len(why) - len(arrow) * (len(labels) - 1)
    room = max(room - cell_len(end), min(room, 2 * _SHORTEST_LABEL), _SHORTEST_LABEL)
    if sum(map(cell_len, labels)) > room:
        # A short label leaves its room to the other one.
        shares = [
            max(room // len(labels), room - sum(map(cell_len, labels)) + cell_len(label))
            for label in labels
        ]
        labels = [_shortened_label(*each) for each in zip(labels, shares, strict=True)]
    text = shortened(f"{begin} {arrow.join(labels)}{why}".rstrip(), width)
    left = width - cell_len(text)
    # A lone ellipsis would look as if the detail were shortened.
    return text + shortened(end, left) if left > len("  .") else text


def _circumstances(event: dict[str, str]) -> Iterator[str]:
    if event["ttl"] and event["outcome"] == "ok":  # a refused request has none
        yield f"ttl {span(float(event['ttl']))}"
    if event["age"]:
        yield f"age {span(float(event['age']))}"
    if event["pid"]:
        yield f"{event['program'] or 'pid'}[{event['pid']}]"


def _shortened_label(label: str, width: int) -> str:
    if cell_len(label) > width and _NEWLINE in label:
        parts = label.split(_NEWLINE)
        longest = max(parts, key=cell_len)
        begin = "" if longest == parts[0] else ELLIPSIS
        end = "" if longest == parts[-1] else ELLIPSIS
        label = f"{begin}{longest}{end}"
        if cell_len(label) > width:
            label = longest
    return shortened_inside(label, width)
