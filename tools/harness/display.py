"""What the tools share: tables, progress, and what the kernel tells of a process."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from scache.cli.render.tables import make_console, width_of

_WIDE = 1000
"""Columns of an output that is no terminal, so that no cell is cut or wrapped."""


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
    """Return a progress display on standard error; print lines above it by its console.

    It is drawn when something is done, so that it takes no time from what is measured.
    """
    return Progress(console=Console(stderr=True, markup=False, highlight=False), auto_refresh=False)


def prepare() -> None:
    """Raise the limit on open files, and hide from child processes how this one was started."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for name in list(os.environ):
        if name.startswith(("PYTHON", "SCACHE_")):
            del os.environ[name]


def resident(pid: int) -> int:
    """Return the memory that a process has in RAM (proc(5), VmRSS), in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1])


def descriptors(pid: int) -> int:
    """Return the number of descriptors that a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
