"""A progress bar on stderr for work that takes more than a second; none if it is no terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

DELAY = 1.0
"""Seconds of work before the bar appears."""

Step = Callable[[str, int | None], None]
"""Tells what is done from now on, and the hundredths of the work that are done; None: unknown."""


@contextmanager
def progress(text: str) -> Iterator[Step]:
    """Show the progress of this block from `DELAY` on; the bar disappears at its end."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda _, __: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from scache.cli.render.color import VisibleCursor, make_console

    console = make_console(VisibleCursor, sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(text, total=None)

    def appear() -> None:
        with suppress(RuntimeError):  # the thread that redraws it cannot be started
            bar.start()

    def step(doing: str, done: int | None) -> None:
        bar.update(task, description=doing, completed=done or 0, total=done and 100)

    timer = threading.Timer(DELAY, appear)
    timer.daemon = True
    with suppress(RuntimeError):  # no thread can be started: there is no bar
        timer.start()
    try:
        yield step
    finally:
        timer.cancel()
        if timer.ident is not None:
            timer.join()
        bar.stop()
