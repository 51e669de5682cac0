"""Standard output and input as the commands find them: a full disk or none at all is one line."""

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
    """Standard output takes no more."""


class Output(io.FileIO):
    """Standard output without a buffer; its errors cannot be taken for those of anything else."""

    def __init__(self) -> None:
        super().__init__(STDOUT, "wb", closefd=False)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write some of it; raises OutputError."""
        try:
            return super().write(data)
        except OSError as error:
            # What is left in buffers must not fail once more when they are flushed at exit.
            _open_at(STDOUT, os.O_WRONLY)
            raise OutputError(f"cannot write the output: {error.strerror}") from error


def guard() -> None:
    """Let `Output` be standard output; a closed one refuses whatever is written to it."""
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
    """Let standard output spell out the characters that its encoding lacks."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
