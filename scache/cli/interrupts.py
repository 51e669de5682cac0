"""Signals at the prompt of ``scache sql`` and in a pager, where Ctrl-C does not end a command."""

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
"""Control sequences of xterm: no bracketed paste, visible cursor, no colours; and a new line."""


class Interrupts:
    """SIGINT as a flag: Python discards a KeyboardInterrupt that is raised in some places.

    If SIGINT was ignored at the start of the process, it stays ignored.
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
        """Return True if SIGINT arrived since `clear`."""
        return self._came

    def clear(self) -> None:
        """Reset the flag."""
        self._came = False

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Let SIGINT end the process in this block; raise KeyboardInterrupt if it came before."""
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
    """Leave Ctrl-C to the pager while this block runs.

    If this process ended before the pager, the shell and the pager would both read the keyboard.
    A pager that is closed early closes the pipe, which is no error.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGPIPE)}
    if before[signal.SIGINT] != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)  # exec(2) resets it for the pager
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


@contextmanager
def terminal_restored() -> Iterator[None]:
    """Let a signal that ends the process restore the terminal first, while a line is edited."""
    try:
        attributes = termios.tcgetattr(STDIN)
    except termios.error:  # stdin is no terminal
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        with suppress(OSError, termios.error):  # the terminal may be closed
            if _in_foreground():
                termios.tcsetattr(STDIN, termios.TCSANOW, attributes)
                if select.select([], [STDOUT], [], 0)[1]:  # do not wait if output is stopped
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
    """Return True if this job still owns the terminal."""
    try:
        return os.tcgetpgrp(STDIN) == os.getpgrp()
    except OSError:  # not the controlling terminal: no job control
        return True
