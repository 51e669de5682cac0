"""Tables that fit the terminal; labels in them are escaped, so they cannot control it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from scache.cli.render.color import make_console, width_of
from scache.cli.streams import drawn, visible

if TYPE_CHECKING:
    from scache.inspection.image import Value

CHUNK = 1000
"""Rows that are laid out and written together."""

WIDE = 200
"""Characters of the widest column if the output is not a terminal."""

_GAP = "  "
ELLIPSIS = "…"
_SHORTEST_TEXT = 16
"""Characters that a column of text keeps at least; with less room, columns are left out."""
_EXACT = 9.995
"""Seconds below which a duration is shown with hundredths."""
_WHOLE = 24
"""Characters of the longest text that is not shortened, the length of a time."""


def shortened(text: str, width: int) -> str:
    """Return the text, its end replaced by an ellipsis if it takes more than ``width`` columns."""
    if cell_len(text) <= width:
        return text
    ellipsis = drawn(ELLIPSIS)[: max(width, 1)]
    return set_cell_size(text, max(width - len(ellipsis), 0)).rstrip() + ellipsis


def shortened_inside(text: str, width: int) -> str:
    """Return the text, its middle replaced by an ellipsis if it takes more than ``width``."""
    if cell_len(text) <= width or width < 3:
        return shortened(text, width)
    ellipsis = drawn(ELLIPSIS)[: width - 2]
    begin = set_cell_size(text, (width + 1 - len(ellipsis)) // 2).rstrip()
    end = text[len(ellipsis) - width :]
    while cell_len(begin) + len(ellipsis) + cell_len(end) > width:
        end = end[1:]
    return begin + ellipsis + end


def span(seconds: float) -> str:
    """Return a duration as text with at most two units: 0.25s, 2s, 1m, 2m 03s, 5h, 12d 04h."""
    if seconds < _EXACT:
        return f"{seconds:.2f}".removesuffix(".00") + "s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 60 * 60:
        return _two_units(whole, 60, "m", "s")
    if whole < 24 * 60 * 60:
        return _two_units(whole // 60, 60, "h", "m")
    return _two_units(whole // (60 * 60), 24, "d", "h")


def _two_units(amount: int, size: int, larger: str, smaller: str) -> str:
    many, rest = divmod(amount, size)
    return f"{many}{larger} {rest:02}{smaller}" if rest else f"{many}{larger}"


def write_table(
    columns: Sequence[str], rows: Iterable[Sequence[Value]], *, all_columns: bool = False
) -> None:
    """Write rows to standard output as they are read; without rows, write that there are none."""
    if not columns:
        return
    console = make_console()
    for text in tables(columns, rows, width_of(console), all_columns=all_columns):
        console.print(text, soft_wrap=True)


def tables(
    columns: Sequence[str],
    rows: Iterable[Sequence[Value]],
    width: int | None,
    *,
    all_columns: bool = False,
) -> Iterator[Text]:
    """Yield a table no wider than ``width`` in pieces of some rows each.

    The header is repeated when later rows need wider columns. If the columns do not fit beside
    each other, the last ones are left out, and a line at the end says so. If ``all_columns`` is
    true, each row becomes a block of lines instead.
    """
    headers = [visible(column) for column in columns]
    seen = Seen(headers)
    rest = iter(rows)
    layout: Layout | None = None
    while chunk := list(islice(rest, CHUNK)):
        cells = [[visible(value) for value in row] for row in chunk]
        seen.add(chunk, cells)
        before, layout = layout, seen.lay_out(width)
        if all_columns and len(layout.widths) < len(headers):
            yield Text("\n".join(_block(headers, row, width) for row in cells))
            continue
        if layout != before:
            yield layout.header(headers)
        yield Text("\n".join(map(layout.line, cells)))
    if layout is None:
        yield Text("(no rows)")
    elif not all_columns and (missing := headers[len(layout.widths) :]):
        note = f"(--all-columns shows {len(missing)} more: {', '.join(missing)})"
        yield Text(note if width is None else shortened(note, width))


@dataclass(frozen=True)
class Layout:
    """Widths and alignment of columns, without those that are left out at the end."""

    widths: Sequence[int]
    """Characters of each column."""
    right: Sequence[bool]
    """True for columns that are aligned to the right."""

    def header(self, names: Sequence[str]) -> Text:
        """Return the line of names, and a rule below it."""
        text = Text(self.line(names), style="bold")
        rule = drawn("─")
        return text.append("\n" + _GAP.join(rule * width for width in self.widths), "dim")

    def line(self, cells: Sequence[str]) -> str:
        """Return a row as a line."""
        placed = []
        shown_cells = cells[: len(self.widths)]
        for cell, width, right in zip(shown_cells, self.widths, self.right, strict=True):
            text = shortened(cell, width)
            padding = " " * (width - cell_len(text))
            placed.append(padding + text if right else text + padding)
        return _GAP.join(placed).rstrip()


class Seen:
    """The widths of the cells in all rows so far."""

    def __init__(self, headers: Sequence[str]) -> None:
        self._headers = list(map(cell_len, headers))
        self._cells = [0] * len(headers)
        self._numbers = [0] * len(headers)
        """Widest number of each column."""
        self._right = [True] * len(headers)
        """True for columns without text."""

    def add(self, rows: Sequence[Sequence[Value]], cells: Sequence[Sequence[str]]) -> None:
        """Measure the cells of these rows."""
        columns = zip(zip(*rows, strict=True), zip(*cells, strict=True), strict=True)
        for index, (values, column) in enumerate(columns):
            widths = list(map(cell_len, column))
            is_text = [isinstance(value, bytes) for value in values]
            numbers = (width for width, text in zip(widths, is_text, strict=True) if not text)
            self._cells[index] = max(self._cells[index], *widths)
            self._numbers[index] = max(self._numbers[index], *numbers, 0)
            self._right[index] = self._right[index] and not any(is_text)

    def lay_out(self, width: int | None) -> Layout:
        """Return a layout of the columns that fit beside each other, at least of the first one.

        Numbers and times are never shortened: part of a number would be wrong.
        """
        natural = list(map(max, self._cells, self._headers))
        if width is None:
            return Layout([min(wanted, WIDE) for wanted in natural], list(self._right))
        least = [
            max(number, min(wanted, _WHOLE if body <= _WHOLE else _SHORTEST_TEXT))
            for body, wanted, number in zip(self._cells, natural, self._numbers, strict=True)
        ]
        while (room := width - len(_GAP) * (len(least) - 1) - sum(least)) < 0 and len(least) > 1:
            least.pop()
        if room < 0:
            return Layout([width], [False])
        # Columns that need the least extra room get it first.
        for index in sorted(range(len(least)), key=lambda each: natural[each] - least[each]):
            hungry = sum(wanted > has for wanted, has in zip(natural, least, strict=False))
            more = min(natural[index] - least[index], room // max(hungry, 1))
            least[index] += more
            room -= more
        return Layout(least, self._right[: len(least)])


def _block(headers: Sequence[str], cells: Sequence[str], width: int | None) -> str:
    margin = max(map(cell_len, headers))
    room = max((width or WIDE) - margin - len(_GAP), 1)
    lines = [
        f"{header}{' ' * (margin - cell_len(header))}{_GAP}{shortened(cell, room)}".rstrip()
        for header, cell in zip(headers, cells, strict=True)
    ]
    return "\n".join(lines) + "\n"
