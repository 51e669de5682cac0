"""How requests are told from the bytes that a client has sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from scache.protocol.codec import NUL
from scache.protocol.messages import GRAMMAR, Grammar, Hello, Request, read_features


class Malformed(NamedTuple):
    """A request that nobody can serve."""

    name: bytes
    """What it called itself."""
    descriptor: int | None = None
    """The one that it carried, in inline mode; the taker's to close."""
    too_long: bool = False
    """Whether it is longer than it may be."""


REQUEST = b"request\0"
"""How every request begins."""

ATTRIBUTES = re.compile(b"(?:[^\0]++\0[^\0]*+\0)*+")
"""Every whole attribute from here on, up to an empty name or to what is not complete yet."""

MESSAGES = re.compile(b"(?:(?:[^\0]++\0[^\0]*+\0)*+\0)*+")
"""Every whole message from here on."""


def _well_formed() -> tuple[re.Pattern[bytes], dict[int | None, tuple[Grammar, slice]]]:
    """Return what matches a whole well-formed request, and how to read a match.

    By the index of the last group that took part: the grammar of the request,
    and the groups that are its values.
    """
    alternatives = []
    readings: dict[int | None, tuple[Grammar, slice]] = {}
    groups = 0
    for name, grammar in GRAMMAR.items():
        if grammar.names:
            values = b"".join(each + b"\0([^\0]*)\0" for each in grammar.names)
            alternatives.append(name + NUL + values)
            readings[groups + len(grammar.names)] = (
                grammar,
                slice(groups, groups + len(grammar.names)),
            )
            groups += len(grammar.names)
    return re.compile(REQUEST + b"(?:" + b"|".join(alternatives) + b")\0"), readings


WELL_FORMED, _READINGS = _well_formed()
"""A whole request, its number apart, which may be none."""


_new = tuple.__new__
"""Makes a request of the values of its fields, without the Python function that a named tuple has
for it."""


def parse(buffer: bytes, at: int, max_size: int) -> tuple[Request, int] | None:
    """Return the well-formed request that begins at ``at``, and where it ends.

    None if it is not complete, or if anything about it is odd: see `read_odd`.
    """
    match = WELL_FORMED.match(buffer, at)
    if match is None:
        return None
    end = match.end()
    if end - at > max_size:
        return None
    grammar, groups = _READINGS[match.lastindex]
    values: Sequence[Any] = match.groups()[groups]
    if grammar.number is not None:
        number = grammar.number(values[0])
        if number is None:
            return None
        values = (number, *values[1:])
    return _new(grammar.kind, values), end


def read_odd(tokens: list[bytes], *, complete: bool) -> Request | Malformed:
    """Return the request that these strings are, of which the first is its name.

    They are names and values in turn, those of a message that is too long if they are not
    complete, and are read as the genuine program reads them: what follows the last attribute that
    it expects is not looked at.
    """
    name = tokens[0] if tokens else b""
    grammar = GRAMMAR.get(name)
    if grammar is None or not complete:
        return Malformed(name, too_long=not complete)
    if grammar.kind is Hello:
        return Hello(read_features(zip(tokens[1::2], tokens[2::2], strict=False)))
    names = tuple(tokens[1 : 1 + 2 * len(grammar.names) : 2])
    values: list[Any] = tokens[2 : 2 + 2 * len(grammar.names) : 2]
    if names != grammar.names or len(values) < len(names):
        return Malformed(name)
    if grammar.number is not None:
        number = grammar.number(values[0])
        if number is None:
            return Malformed(name)
        values[0] = number
    return grammar.kind._make(values)
