"""A command on a terminal of its own."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.commands import clean_environment, default_signals
from tests.support.wire import DEADLINE


class Terminal:
    """The terminal of a command: its output, and its keyboard."""

    def __init__(self, screen: int, process: subprocess.Popen[bytes]) -> None:
        self._screen = screen
        self.process = process
        self.shown = ""
        """All output so far."""
        self._seen = 0
        # One read may end in the middle of a character.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def is_cooked(self) -> bool:
        """Return True if the terminal echoes and edits lines, as a shell sets it for a command."""
        flags = int(termios.tcgetattr(self._screen)[3])
        return bool(flags & termios.ECHO and flags & termios.ICANON)

    def type(self, text: str) -> None:
        """Type text."""
        os.write(self._screen, text.encode())

    def read_until(self, text: str) -> str:
        """Wait until the command shows a text; return the output since the last call."""
        begin = self._seen
        while (found := self.shown.find(text, begin)) < 0:
            if not self._read():
                raise AssertionError(f"it never showed {text!r}, but {self.shown!r}")
        self._seen = found + len(text)
        return self.shown[begin : self._seen]

    def read_to_end(self) -> str:
        """Wait for the end of the command; return the output since the last call."""
        while self._read():
            pass
        return self.shown[self._seen :]

    def _read(self) -> bool:
        if not select.select([self._screen], [], [], DEADLINE)[0]:
            raise AssertionError(f"it went silent, having shown {self.shown!r}")
        try:
            data = os.read(self._screen, 65536)
        except OSError:  # EIO: no process has the terminal open
            return False
        self.shown += self._decoder.decode(data)
        return bool(data)


@contextmanager
def on_terminal(*command: str, columns: int = 60, **environment: str) -> Iterator[Terminal]:
    """Run a command on a terminal; kill it at the end if it still runs."""
    screen, inner = pty.openpty()
    try:
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        variables = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"} | environment
        ours = clean_environment(**variables)
        ours.pop("COLUMNS", None)
        ours.pop("LINES", None)
        with default_signals():
            process = subprocess.Popen(
                ("setsid", "--ctty", *command), env=ours, stdin=inner, stdout=inner, stderr=inner
            )
        os.close(inner)
        inner = -1
        with process:
            try:
                yield Terminal(screen, process)
            finally:
                if process.poll() is None:
                    process.kill()
    finally:
        os.close(screen)
        if inner >= 0:
            os.close(inner)
