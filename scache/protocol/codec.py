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


def token_at(buffer: bytes, at: int) -> tuple[bytes, int] | None:
    """Return the name or value that begins at ``at``, and where the next one does.

    None if the NUL that ends it has not been received yet.
    """
    end = buffer.find(NUL, at)
    return None if end < 0 else (buffer[at:end], end + 1)


def decode(buffer: bytes, at: int) -> tuple[Attributes, int] | None:
    """Return the message that begins at ``at``, and where it ends; None if it is not complete."""
    attributes: Attributes = []
    while (name := token_at(buffer, at)) is not None:
        if not name[0]:
            return attributes, name[1]
        value = token_at(buffer, name[1])
        if value is None:
            return None
        attributes.append((name[0], value[0]))
        at = value[1]
    return None


LARGEST_ID = 2**63 - 1
"""What SQLite keeps as an INTEGER."""


def decode_id(value: bytes) -> int | None:
    """Return the row id that is written there in decimal, or None if it is none.

    Nothing but digits is one: an id that wraps around would name another row.
    """
    if not value.isdigit() or len(value) > len(str(LARGEST_ID)):
        return None
    number = int(value)
    return number if number <= LARGEST_ID else None


_NUMBER = re.compile(rb"[ \t\n\v\f\r]*([+-]?)0*([0-9]*)")
_UNSIGNED_LONG_MAX = 2**64 - 1
_UNSIGNED_LONG_DIGITS = 20
_SURELY_SMALL = 9
"""Digits that an int holds whatever they are."""


def decode_integer(value: bytes) -> int | None:
    """Return the integer that the genuine program reads there, or None if it reads none.

    It scans an unsigned int with C's ``%u`` and keeps it in an int: blanks and a
    sign may come first, nothing may follow, and strtoul(3) gives the largest
    unsigned long for what is larger, of which the lowest 32 bits are kept.
    """
    if len(value) <= _SURELY_SMALL and value.isdigit():
        return int(value)
    match = _NUMBER.fullmatch(value)
    if match is None or not value[-1:].isdigit():
        return None
    sign, digits = match.groups()
    number = _UNSIGNED_LONG_MAX
    if len(digits) <= _UNSIGNED_LONG_DIGITS and int(digits or b"0") <= _UNSIGNED_LONG_MAX:
        number = int(digits or b"0") * (-1 if sign == b"-" else 1)
    return (number + 2**31) % 2**32 - 2**31


def decode_ttl(value: bytes) -> int | None:
    """Return the ttl that the genuine program reads there, at least 1, or None if it reads none."""
    ttl = decode_integer(value)
    return ttl if ttl is not None and ttl > 0 else None
