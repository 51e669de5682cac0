"""Consoles of rich that heed NO_COLOR and FORCE_COLOR (no-color.org, force-color.org)."""

from __future__ import annotations

import os
import sys
from typing import IO

from rich.console import Console

from scache.cli.streams import colors_forced


def make_console(kind: type[Console] = Console, file: IO[str] | None = None) -> Console:
    """Return a console of rich, on standard output by default, that does not interpret markup.

    A file that is no stream of this process gets what standard output would get. NO_COLOR removes
    the colors; bold text stays bold. FORCE_COLOR adds colors and nothing else: the width is not
    that of a terminal, and nothing is redrawn in place.
    """
    is_terminal = file.isatty() if file is not None and file is sys.stderr else sys.stdout.isatty()
    console = kind(
        file=file,
        markup=False,
        highlight=False,
        emoji=False,
        color_system="standard" if colors_forced() else "auto",
        force_terminal=is_terminal or colors_forced(),
    )
    console.is_interactive = is_terminal and not console.is_dumb_terminal
    return console


class VisibleCursor(Console):
    """A console that never hides the cursor: a signal that ends the process leaves it visible."""

    def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002, FBT - rich's signature
        """Do nothing."""
        return False


def width_of(console: Console) -> int | None:
    """Return the width in columns; None if the output is not a terminal and COLUMNS is not set."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return console.width
    return None
