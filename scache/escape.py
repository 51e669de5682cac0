"""Escaping of text for tables and terminals."""

from __future__ import annotations

import shlex


def one_line(text: str) -> str:
    r"""Return the text as one line, with unprintable characters as \n, \x1b and so on."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    r"""Return an escape sequence; \xff for a byte that is not UTF-8 (surrogateescape)."""
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:x}"
    return ascii(char)[1:-1]


def quoted(text: str) -> str:
    """Return the text as one printable word of a shell; unprintable characters need bash or zsh."""
    if text.isprintable():
        return shlex.quote(text)
    literal = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{one_line(literal)}'"


def shown(value: float | bytes | str | None) -> str:
    r"""Return a value as one line of text; unprintable characters as \n, invalid bytes as \xff."""
    if isinstance(value, bytes):
        return one_line(value.decode(errors="backslashreplace"))
    return "" if value is None else one_line(str(value))


def joined(label: bytes) -> str:
    """Return a label as one line of text, its fields with a space between them.

    The labels of Postfix consist of fields, each followed by a newline; empty fields are left out.
    """
    return " ".join(shown(field) for field in label.split(b"\n") if field) or shown(label)
