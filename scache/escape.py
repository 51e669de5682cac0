"""Escaping of text for tables and terminals."""

from __future__ import annotations


def one_line(text: str) -> str:
    r"""Return the text as one line, with unprintable characters as \n, \x1b and so on."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


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
