"""Tables for people: they fit the terminal, and no label can break them or drive it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from scache.cli.logs import one_line

if TYPE_CHECKING:
    from scache.store.image import Value

CHUNK = 1000
"""Rows that are laid out together: the first so many set the widths of the columns."""

WIDE = 200
"""Characters of the widest column where no terminal sets a limit."""

_GAP = "  "
ELLIPSIS = "…"
_SHORTEST_TEXT = 16
"""Characters that a column of text keeps, if it has them; with less room, rows become blocks."""
_WHOLE = 24
"""Characters of a cell that is not shortened, if it can be helped: a time has so many."""


def shown(value: Value | str) -> str:
    r"""Return a value as people see it: one line, odd characters as \n, odd bytes as \xff."""
    if isinstance(value, bytes):
        return one_line(value.decode(errors="backslashreplace"))
    return "" if value is None else one_line(str(value))


def shortened(text: str, width: int) -> str:
    """Return the text, its end replaced by an ellipsis if it takes more than ``width`` columns."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(width - 1, 0)).rstrip() + ELLIPSIS


def shortened_inside(text: str, width: int) -> str:
    """Return the text, its middle replaced by an ellipsis if it takes more than ``width``."""
    if cell_len(text) <= width or width < 3:
        return shortened(text, width)
    begin = set_cell_size(text, width // 2).rstrip()
    end = text[1 - width :]
    while cell_len(begin) + 1 + cell_len(end) > width:
        end = end[1:]
    return begin + ELLIPSIS + end


def span(seconds: float) -> str:
    """Return a span of time in short: 0.25s, 59s, 2m 03s, 5h 00m, 12d 04h."""
    if seconds < 10:
        return f"{seconds:.2f}s"
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h {minutes:02}m"
    return f"{hours // 24}d {hours % 24:02}h"


def make_console() -> Console:
    """Return standard output as rich sees it; text is data, never markup."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever the locale cannot write
    return Console(markup=False, highlight=False, emoji=False)


def width_of(console: Console) -> int | None:
    """Return how many columns there are; None if the output is no terminal and nobody said."""
    if console.is_terminal or os.environ.get("COLUMNS", "").isdigit():
        return console.width
    return None


def write_table(columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> None:
    """Write rows to standard output as they come, some at a time; say so if there are none."""
    if not columns:
        return
    console = make_console()
    for text in tables(columns, rows, width_of(console)):
        console.print(text, soft_wrap=True)


def tables(
    columns: Sequence[str], rows: Iterable[Sequence[Value]], width: int | None
) -> Iterator[Text]:
    """Yield pieces of a table no wider than ``width``: its header and first rows, and more rows.

    Where the columns do not fit beside each other, each row becomes a block
    of lines.
    """
    headers = [shown(column) for column in columns]
    rest = iter(rows)
    layout: Layout | None = None
    blocks = False
    while chunk := list(islice(rest, CHUNK)):
        cells = [[shown(value) for value in row] for row in chunk]
        if layout is None and not blocks:
            layout = lay_out(headers, cells, chunk, width)
            blocks = layout is None
            if layout is not None:
                yield layout.header(headers)
        if layout is None:
            yield Text("\n".join(_block(headers, row, width) for row in cells))
        else:
            yield Text("\n".join(map(layout.line, cells)))
    if layout is None and not blocks:
        yield Text("(no rows)")


class Layout:
    """The widths of columns, and on which side their cells stand."""

    def __init__(self, widths: Sequence[int], right: Sequence[bool]) -> None:
        self._columns = list(zip(widths, right, strict=True))

    def header(self, names: Sequence[str]) -> Text:
        """Return the line of names, and a rule."""
        text = Text(self.line(names), style="bold")
        return text.append("\n" + _GAP.join("─" * width for width, _ in self._columns), "dim")

    def line(self, cells: Iterable[str]) -> str:
        """Return a row."""
        placed = []
        for cell, (width, right) in zip(cells, self._columns, strict=True):
            text = shortened(cell, width)
            padding = " " * (width - cell_len(text))
            placed.append(padding + text if right else text + padding)
        return _GAP.join(placed).rstrip()


def lay_out(
    headers: Sequence[str],
    cells: Sequence[Sequence[str]],
    rows: Sequence[Sequence[Value]],
    width: int | None,
) -> Layout | None:
    """Return widths for the columns of these rows; None if they do not fit.

    Numbers and times stay whole: half a number lies.
    """
    bodies = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    natural = [max(body, cell_len(name)) for body, name in zip(bodies, headers, strict=True)]
    right = [
        not any(isinstance(value, bytes) for value in values) for values in zip(*rows, strict=True)
    ]
    if width is None:
        return Layout([min(wanted, WIDE) for wanted in natural], right)
    least = [
        min(wanted, _WHOLE if body <= _WHOLE else _SHORTEST_TEXT)
        if not number
        else max(body, min(wanted, _WHOLE))
        for body, wanted, number in zip(bodies, natural, right, strict=True)
    ]
    room = width - len(_GAP) * (len(least) - 1) - sum(least)
    if room < 0:
        return None
    # The columns that want least more are served first.
    for index in sorted(range(len(least)), key=lambda each: natural[each] - least[each]):
        hungry = sum(wanted > has for wanted, has in zip(natural, least, strict=True))
        more = min(natural[index] - least[index], room // max(hungry, 1))
        least[index] += more
        room -= more
    return Layout(least, right)


def _block(headers: Sequence[str], cells: Sequence[str], width: int | None) -> str:
    margin = max(map(cell_len, headers))
    room = max((width or WIDE) - margin - len(_GAP), 1)
    lines = [
        f"{header}{' ' * (margin - cell_len(header))}{_GAP}{shortened(cell, room)}".rstrip()
        for header, cell in zip(headers, cells, strict=True)
    ]
    return "\n".join(lines) + "\n"
