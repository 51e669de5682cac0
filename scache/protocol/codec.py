r"""The attribute codec: ``name NUL value NUL ... NUL``; an empty name ends the list.

A value may have any byte but NUL. A message is a list of pairs and not a dict, because two
attributes may have the same name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, final

NUL = b"\0"

MAX_MESSAGE_SIZE = 65536
"""Most bytes of one message, from its first name to its last NUL."""

Attributes = list[tuple[bytes, bytes]]


@final
class NeedData:
    """The type of `NEED_DATA`."""

    def __repr__(self) -> str:
        return "NEED_DATA"


NEED_DATA: Final = NeedData()
"""More data must be received before the next step."""


def encode(attributes: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the message with these attributes, in this order.

    Raises ValueError for an empty name or a NUL byte, because the receiver would take it for the
    end of the message or of the value.
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
    """Return the name or value that begins at ``at``, and the position of the next one.

    Return None if its final NUL has not been received yet.
    """
    end = buffer.find(NUL, at)
    return None if end < 0 else (buffer[at:end], end + 1)


def decode(buffer: bytes, at: int) -> tuple[Attributes, int] | None:
    """Return the message that begins at ``at``, and its end; None if it is not complete."""
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
"""The largest INTEGER of SQLite."""


def decode_id(value: bytes) -> int | None:
    """Return the row id of a decimal string, or None if it is not a valid id.

    Only digits are accepted, and large numbers do not wrap around to the id of another row.
    """
    if not value.isdigit() or len(value) > len(str(LARGEST_ID)):
        return None
    number = int(value)
    return number if number <= LARGEST_ID else None


_NUMBER = re.compile(rb"[ \t\n\v\f\r]*([+-]?)0*([0-9]*)")
_UNSIGNED_LONG_MAX = 2**64 - 1
_UNSIGNED_LONG_DIGITS = 20
_SURELY_SMALL = 9
"""Any number of this many digits fits into a C int."""


def decode_integer(value: bytes) -> int | None:
    """Return the integer that Postfix's scache(8) reads from a value, or None if it is invalid.

    Postfix scans an unsigned int with C's ``%u`` and stores it in an int. Blanks and a sign may
    precede the digits, and nothing may follow them. For a number that is too large, strtoul(3)
    returns the largest unsigned long. The lowest 32 bits of the result are kept.
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
    """Return the ttl that Postfix's scache(8) reads from a value, or None if it is below 1."""
    ttl = decode_integer(value)
    return ttl if ttl is not None and ttl > 0 else None
