"""Tables for people: they fit the terminal, and no label can break them or drive it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from scache.cli.streams import accept_any_text
from scache.escape import shown

if TYPE_CHECKING:
    from scache.inspection.image import Value

CHUNK = 1000
"""Rows that are laid out together, and written at once."""

WIDE = 200
"""Characters of the widest column where no terminal sets a limit."""

_GAP = "  "
ELLIPSIS = "…"
_SHORTEST_TEXT = 16
"""Characters that a column of text keeps, if it has them; with less room, rows become blocks."""
_WHOLE = 24
"""Characters of a cell that is not shortened, if it can be helped: a time has so many."""


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


def make_console(kind: type[Console] = Console) -> Console:
    """Return standard output as rich sees it; text is data, never markup."""
    accept_any_text()
    return kind(markup=False, highlight=False, emoji=False)


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

    The header comes again where later rows need wider columns. Where the
    columns do not fit beside each other, each row becomes a block of lines.
    """
    headers = [shown(column) for column in columns]
    seen = Seen(headers)
    rest = iter(rows)
    layout: Layout | None = None
    while chunk := list(islice(rest, CHUNK)):
        cells = [[shown(value) for value in row] for row in chunk]
        seen.add(chunk, cells)
        before, layout = layout, seen.lay_out(width)
        if layout is None:
            yield Text("\n".join(_block(headers, row, width) for row in cells))
            continue
        if layout != before:
            yield layout.header(headers)
        yield Text("\n".join(map(layout.line, cells)))
    if not seen.any_row:
        yield Text("(no rows)")


@dataclass(frozen=True)
class Layout:
    """How columns stand beside each other."""

    widths: Sequence[int]
    """Characters of each."""
    right: Sequence[bool]
    """Whether the cells of each stand on its right side."""

    def header(self, names: Sequence[str]) -> Text:
        """Return the line of names, and a rule."""
        text = Text(self.line(names), style="bold")
        return text.append("\n" + _GAP.join("─" * width for width in self.widths), "dim")

    def line(self, cells: Iterable[str]) -> str:
        """Return a row."""
        placed = []
        for cell, width, right in zip(cells, self.widths, self.right, strict=True):
            text = shortened(cell, width)
            padding = " " * (width - cell_len(text))
            placed.append(padding + text if right else text + padding)
        return _GAP.join(placed).rstrip()


class Seen:
    """How wide the cells of columns are, in all rows so far."""

    def __init__(self, headers: Sequence[str]) -> None:
        self.any_row = False
        """Whether there was one."""
        self._headers = list(map(cell_len, headers))
        self._cells = [0] * len(headers)
        self._numbers = [0] * len(headers)
        """The same of the cells that are numbers."""
        self._right = [True] * len(headers)
        """Whether there is no text in a column."""

    def add(self, rows: Sequence[Sequence[Value]], cells: Sequence[Sequence[str]]) -> None:
        """Measure the cells of these rows."""
        self.any_row = True
        columns = zip(zip(*rows, strict=True), zip(*cells, strict=True), strict=True)
        for index, (values, column) in enumerate(columns):
            widths = list(map(cell_len, column))
            is_text = [isinstance(value, bytes) for value in values]
            numbers = (width for width, text in zip(widths, is_text, strict=True) if not text)
            self._cells[index] = max(self._cells[index], *widths)
            self._numbers[index] = max(self._numbers[index], *numbers, 0)
            self._right[index] = self._right[index] and not any(is_text)

    def lay_out(self, width: int | None) -> Layout | None:
        """Return widths for the columns; None if they do not fit beside each other.

        Numbers and times stay whole: half a number lies.
        """
        natural = list(map(max, self._cells, self._headers))
        if width is None:
            return Layout([min(wanted, WIDE) for wanted in natural], tuple(self._right))
        least = [
            max(number, min(wanted, _WHOLE if body <= _WHOLE else _SHORTEST_TEXT))
            for body, wanted, number in zip(self._cells, natural, self._numbers, strict=True)
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
        return Layout(least, tuple(self._right))


def _block(headers: Sequence[str], cells: Sequence[str], width: int | None) -> str:
    margin = max(map(cell_len, headers))
    room = max((width or WIDE) - margin - len(_GAP), 1)
    lines = [
        f"{header}{' ' * (margin - cell_len(header))}{_GAP}{shortened(cell, room)}".rstrip()
        for header, cell in zip(headers, cells, strict=True)
    ]
    return "\n".join(lines) + "\n"
