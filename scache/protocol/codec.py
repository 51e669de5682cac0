r"""The attribute codec: ``name NUL value NUL ... NUL``, an empty name ends the list.

Values are bytes, anything but NUL. Two attributes may have one name, so a
message is a list of pairs and never a dict.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, final

NUL = b"\0"

MAX_MESSAGE_SIZE = 65536
"""Bytes that one message may have, from its first name to its last NUL."""

_LONGER_THAN_ANY_NAME = 16

Attributes = list[tuple[bytes, bytes]]


@final
class NeedData:
    """The type of `NEED_DATA`."""

    def __repr__(self) -> str:
        return "NEED_DATA"


NEED_DATA: Final = NeedData()
"""Nothing can be decided before more has been received."""


def encode(attributes: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the message that consists of these attributes, in this order.

    Raises ValueError for an empty name or a NUL, which no reader could tell
    from the end of something.
    """
    parts: list[bytes] = []
    for name, value in attributes:
        if not name:
            raise ValueError("an attribute needs a name: an empty one ends the message")
        if NUL in name or NUL in value:
            raise ValueError("an attribute cannot hold a NUL byte: it ends the value")
        parts += (name, value)
    return NUL.join([*parts, NUL])


class Tokens:
    """The stream cut at its NUL bytes, as far as it has been received.

    A message is a run of tokens (name, value, name, value, empty name). Cutting
    knows nothing of messages, so a reader that lost its place in a malformed
    one finds it again at the next token that it knows.
    """

    def __init__(self) -> None:
        self.complete: list[bytes] = []
        """The tokens whose NUL has arrived; those before `at` have been taken."""
        self.at = 0
        """Where reading goes on in `complete`."""
        self.tail = b""
        """The beginning of the token after them."""

    def feed(self, data: bytes) -> None:
        """Add bytes in the order in which they were received."""
        tokens = (self.tail + data).split(NUL)
        self.tail = tokens.pop()
        self.complete = self.complete[self.at :] + tokens
        self.at = 0

    def forget(self) -> None:
        """Forget all complete tokens, and most of a tail too long to be a name that we know.

        What stays of it keeps the rest of that token from being taken for a name.
        """
        self.at = len(self.complete)
        self.tail = self.tail[:_LONGER_THAN_ANY_NAME]

    def take_byte(self) -> bool:
        """Take one byte off the stream; return whether there was one."""
        if self.at < len(self.complete):
            first = self.complete[self.at]
            if first:
                self.complete[self.at] = first[1:]
            else:
                self.at += 1
            return True
        taken = bool(self.tail)
        self.tail = self.tail[1:]
        return taken

    @property
    def size(self) -> int:
        """How many bytes wait here."""
        waiting = self.complete[self.at :]
        return sum(map(len, waiting)) + len(waiting) + len(self.tail)

    @property
    def empty(self) -> bool:
        """Whether everything received has been taken."""
        return self.at == len(self.complete) and not self.tail


_NUMBER = re.compile(rb"[ \t\n\v\f\r]*([+-]?)0*([0-9]*)")
_UNSIGNED_LONG_MAX = 2**64 - 1
_UNSIGNED_LONG_DIGITS = 20


def decode_integer(value: bytes) -> int | None:
    """Return the integer that the genuine program reads there, or None if it reads none.

    It scans an unsigned int with C's ``%u`` and keeps it in an int: blanks and a
    sign may come first, nothing may follow, and strtoul(3) gives the largest
    unsigned long for what is larger, of which the lowest 32 bits are kept.
    """
    match = _NUMBER.fullmatch(value)
    if match is None or not value[-1:].isdigit():
        return None
    sign, digits = match.groups()
    number = _UNSIGNED_LONG_MAX
    if len(digits) <= _UNSIGNED_LONG_DIGITS and int(digits or b"0") <= _UNSIGNED_LONG_MAX:
        number = int(digits or b"0") * (-1 if sign == b"-" else 1)
    return (number + 2**31) % 2**32 - 2**31
