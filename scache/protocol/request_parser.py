"""The parser of requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from scache.protocol.codec import NUL
from scache.protocol.messages import GRAMMAR, Grammar, Hello, Request, read_features


class Malformed(NamedTuple):
    """A malformed request, which cannot be served."""

    name: bytes
    """The name of the request as the client sent it."""
    descriptor: int | None = None
    """The descriptor that came with it, in inline mode; the receiver of the event must close it."""
    too_long: bool = False
    """True if the request is longer than the limit."""


REQUEST = b"request\0"
"""The first bytes of every request."""

ATTRIBUTES = re.compile(b"(?:[^\0]++\0[^\0]*+\0)*+")
"""Matches all complete attributes up to an empty name or to an incomplete attribute."""

MESSAGES = re.compile(b"(?:(?:[^\0]++\0[^\0]*+\0)*+\0)*+")
"""Matches all complete messages."""


def _well_formed() -> tuple[re.Pattern[bytes], dict[int | None, tuple[Grammar, slice]]]:
    """Return a pattern for a complete well-formed request, and a table to read its matches.

    The key of the table is the index of the last group that matched. The value is the grammar of
    the request and the slice of groups that are its values.
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
"""The pattern matches a complete request; it does not check that a number is valid."""


_new = tuple.__new__
"""Creates a request from its values faster than the Python function of a named tuple does."""


def parse(buffer: bytes, at: int, max_size: int) -> tuple[Request, int] | None:
    """Return the well-formed request that begins at ``at``, and its end.

    Return None if it is incomplete, too long or not well-formed; `read_odd` handles these.
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
    """Return the request that these tokens form: its name, then attribute names and values.

    Like Postfix's scache(8), ignore all tokens after the last expected attribute. If the tokens
    are not ``complete``, they are the beginning of a message that is too long.
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
