"""Standard streams that report write errors as one line."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from scache.cli.daemon_log import occupy_standard_descriptors
from scache.errors import ScacheError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDIN, STDOUT = 0, 1


class OutputError(ScacheError):
    """Standard output cannot be written."""


class Output(io.FileIO):
    """Standard output without a buffer, with an exception of its own for write errors."""

    def __init__(self) -> None:
        super().__init__(STDOUT, "wb", closefd=False)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write data; return the number of bytes written. Raises OutputError."""
        try:
            return super().write(data)
        except OSError as error:
            # Buffers are flushed again at exit, which must not fail a second time.
            _open_at(STDOUT, os.O_WRONLY)
            raise OutputError(f"cannot write the output: {error.strerror}") from error


def guard() -> None:
    """Make `Output` standard output. If standard output is closed, every write to it fails."""
    closed = sys.stdout is None
    encoding, errors = ("utf-8", "strict") if closed else (sys.stdout.encoding, sys.stdout.errors)
    occupy_standard_descriptors()
    if closed:
        _open_at(STDOUT, os.O_RDONLY)
    if sys.stdin is None:
        sys.stdin = open(STDIN, closefd=False, encoding="utf-8")  # noqa: SIM115
    raw = Output()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=raw.isatty()
    )


def _open_at(number: int, flags: int) -> None:
    descriptor = os.open(os.devnull, flags)
    os.dup2(descriptor, number)
    os.close(descriptor)


def accept_any_text() -> None:
    """Let standard output escape characters that its encoding lacks."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
