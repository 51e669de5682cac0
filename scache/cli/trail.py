"""Events for people: a line for each, however narrow the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.text import Text

from scache.cli.tables import WIDE, make_console, shortened, shown, span, width_of
from scache.store.image import Value

_DAY = 10
"""Characters of a date."""
_SHORTEST_LABEL = 8


class Trail:
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
    """Return an event as a line of at most ``width`` columns; labels give way first."""
    begin = f"{clock} {event['kind']:9} {event['outcome']:4}"
    labels = [event[name] for name in ("destination", "endpoint") if event[name]]
    details = [f"{name} {span(float(event[name]))}" for name in ("ttl", "age") if event[name]]
    if event["pid"]:
        details.append(f"{event['program'] or 'pid'}[{event['pid']}]")
    if event["detail"]:
        details.append(event["detail"])
    end = "".join(f"  {each}" for each in details)
    arrow = " > "
    room = width - len(begin) - 1 - cell_len(end) - len(arrow) * (len(labels) - 1)
    share = max(room // max(len(labels), 1), _SHORTEST_LABEL)
    if sum(map(cell_len, labels)) > room:
        labels = [shortened(label, share) for label in labels]
    return shortened(f"{begin} {arrow.join(labels)}{end}".rstrip(), width)
