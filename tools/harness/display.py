"""Tables and progress displays of the tools."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import click
from rich.progress import Progress
from rich.table import Column, Table

from scache.cli.render.color import make_console, width_of

_WIDE = 1000
"""Columns of an output that is not a terminal; wide enough that no cell is cut or wrapped."""


def print_table(columns: Sequence[str | Column], rows: Iterable[Sequence[str]]) -> None:
    """Print a table to standard output; without a terminal each row is one line.

    If no column has a name there is no header.
    """
    console = make_console()
    table = Table(
        *columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns)
    )
    for row in rows:
        table.add_row(*row)
    if width_of(console) is None:
        console.width = _WIDE
    with console.capture() as printed:
        console.print(table)
    click.echo("\n".join(map(str.rstrip, printed.get().splitlines())))


def progress() -> Progress:
    """Return a progress display on standard error, whose console prints lines above it.

    It is drawn only when a step is done, because a refresh would disturb a measurement.
    """
    return Progress(console=make_console(file=sys.stderr), auto_refresh=False)
