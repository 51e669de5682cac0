"""Text as people see it: one line that neither breaks a table nor drives a terminal."""

from __future__ import annotations


def one_line(text: str) -> str:
    r"""Return the text with whatever would break the line, or a terminal, as \n, \x1b and so on."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value: float | bytes | str | None) -> str:
    r"""Return a value as people see it: one line, odd characters as \n, odd bytes as \xff."""
    if isinstance(value, bytes):
        return one_line(value.decode(errors="backslashreplace"))
    return "" if value is None else one_line(str(value))
