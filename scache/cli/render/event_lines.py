"""Events for people: a line for each, however narrow the terminal."""

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
"""Characters that a label of two keeps, if it has them; what comes after them gives way.

With a detail, which says why, both together may have to do with so many.
"""
_NEWLINE = r"\n"
"""As `shown` spells it."""


class EventLines:
    """Writes events under a line for each day that they come to."""

    def __init__(self) -> None:
        self._console = make_console()
        self._day = ""

    def write(self, columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> bool:
        """Write rows of the view ``event_log``; return whether there were any."""
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

    Labels give way first: of several lines, as Postfix's have, the longest
    stays, which names a host; of one line the middle goes. Then the client
    gives way, and last the detail.
    """
    begin = f"{clock} {event['kind']:9} {event['outcome']:4}"
    labels = [event[name] for name in ("destination", "endpoint") if event[name]]
    why = f"  {event['detail']}" if event["detail"] else ""
    end = "".join(f"  {each}" for each in _circumstances(event))
    arrow = " > "
    room = width - len(begin) - 1 - cell_len(why) - len(arrow) * (len(labels) - 1)
    room = max(room - cell_len(end), min(room, 2 * _SHORTEST_LABEL), _SHORTEST_LABEL)
    if sum(map(cell_len, labels)) > room:
        # A short one leaves the rest to the other.
        shares = [
            max(room // len(labels), room - sum(map(cell_len, labels)) + cell_len(label))
            for label in labels
        ]
        labels = [_shortened_label(*each) for each in zip(labels, shares, strict=True)]
    text = shortened(f"{begin} {arrow.join(labels)}{why}".rstrip(), width)
    left = width - cell_len(text)
    # Less than a letter and its ellipsis would look as if the detail went on.
    return text + shortened(end, left) if left > len("  .") else text


def _circumstances(event: dict[str, str]) -> Iterator[str]:
    if event["ttl"] and event["outcome"] == "ok":  # who was refused got none
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
