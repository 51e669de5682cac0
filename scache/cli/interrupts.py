"""Signals where Ctrl-C does not end a command: at the prompt of ``scache sql``, and in a pager."""

from __future__ import annotations

import os
import select
import signal
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, Self

from scache.cli.streams import STDIN, STDOUT

_ENDING: Final = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)

_RESET: Final = b"\x1b[?2004l\x1b[?25h\x1b[0m\r\n"
"""Ends bracketed paste, shows the cursor, ends colours and begins a line (xterm's ctlseqs)."""


class Interrupts:
    """SIGINT as a flag: the exception that Python makes of it may come where it is discarded.

    A process that was started with SIGINT ignored goes on ignoring it.
    """

    def __init__(self) -> None:
        self._came = False
        self._before = signal.getsignal(signal.SIGINT)
        self._handler = signal.SIG_IGN if self._before == signal.SIG_IGN else self._note

    def __enter__(self) -> Self:
        signal.signal(signal.SIGINT, self._handler)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def came(self) -> bool:
        """Return whether there was one since `clear`."""
        return self._came

    def clear(self) -> None:
        """Forget those that came."""
        self._came = False

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Let SIGINT end the process meanwhile; raise KeyboardInterrupt if one came before."""
        signal.signal(signal.SIGINT, self._before)
        try:
            if self._came:
                raise KeyboardInterrupt
            yield
        finally:
            signal.signal(signal.SIGINT, self._handler)

    def _note(self, _: int, __: FrameType | None) -> None:
        self._came = True


@contextmanager
def left_to_pager() -> Iterator[None]:
    """Leave Ctrl-C to a pager: if only this process ended, the shell and the pager would both read.

    A pager that is left early closes the pipe, which is no error.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGPIPE)}
    if before[signal.SIGINT] != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)  # the pager gets the default action
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


@contextmanager
def terminal_restored() -> Iterator[None]:
    """While a line is edited, let a signal that ends the process restore the terminal first."""
    try:
        attributes = termios.tcgetattr(STDIN)
    except termios.error:  # no terminal, so there is nothing to restore
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        with suppress(OSError, termios.error):  # the terminal may have gone
            if _in_foreground():
                termios.tcsetattr(STDIN, termios.TCSANOW, attributes)
                if select.select([], [STDOUT], [], 0)[1]:  # a stopped terminal is not waited for
                    os.write(STDOUT, _RESET)
        signal.raise_signal(number)

    changed = [number for number in _ENDING if signal.getsignal(number) == signal.SIG_DFL]
    for number in changed:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _in_foreground() -> bool:
    """Return whether the terminal is this job's, and not another job's by now."""
    try:
        return os.tcgetpgrp(STDIN) == os.getpgrp()
    except OSError:  # it does not control this session: there are no jobs
        return True
