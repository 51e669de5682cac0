"""Standard streams that report write errors as one line."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TYPE_CHECKING

import click

from scache.cli.daemon_log import occupy_standard_descriptors
from scache.errors import ScacheError, reason_of
from scache.escape import one_line, shown

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
            raise OutputError(f"cannot write the output: {reason_of(error)}") from error


def guard() -> None:
    """Make `Output` standard output. If standard output is closed, every write to it fails.

    Characters that an encoding lacks are written as `fitted` says.
    """
    closed = sys.stdout is None
    encoding = "utf-8" if closed else sys.stdout.encoding
    occupy_standard_descriptors()
    if closed:
        _open_at(STDOUT, os.O_RDONLY)
    if sys.stdin is None:
        sys.stdin = open(STDIN, closefd=False, encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors=_ERRORS)
    raw = Output()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors=_ERRORS, line_buffering=raw.isatty()
    )


def _open_at(number: int, flags: int) -> None:
    descriptor = os.open(os.devnull, flags)
    os.dup2(descriptor, number)
    os.close(descriptor)


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Write a text to standard output, or to stderr if ``err`` is true.

    click would write UTF-8 to a stream that it finds by itself and whose encoding is ASCII.
    """
    click.echo(text, nl=nl, file=sys.stderr if err else sys.stdout)


def colors_forced() -> bool:
    """Return True if colors are wanted also where the output is no terminal (force-color.org).

    An empty variable counts as not set, and NO_COLOR wins.
    """
    return bool(os.environ.get("FORCE_COLOR")) and not os.environ.get("NO_COLOR")


def fitted(text: str) -> str:
    r"""Return a text as standard output will show it: characters that it lacks become \u00fc.

    Measure and shorten the result, because it may be longer.
    """
    if text.isascii():
        return text
    encoding = _encoding()
    return text.encode(encoding, _ERRORS).decode(encoding)


def drawn(text: str) -> str:
    """Return lines, bullets and ellipses of our own in ASCII if standard output lacks them."""
    try:
        text.encode(_encoding())
    except UnicodeEncodeError:
        return text.translate(_ASCII)
    return text


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def visible(value: float | bytes | str | None) -> str:
    """Return a value as one line of text that standard output can show."""
    return fitted(shown(value))


_ERRORS = "scache"
"""Name of the handler of characters that an encoding lacks."""

_ASCII = str.maketrans({"─": "-", "━": "=", "│": "|", "▌": "|", "•": "*", "…": "..."})


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_escaped, error.object[error.start : error.end])), error.end


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return one_line(char)
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


codecs.register_error(_ERRORS, _escape)
