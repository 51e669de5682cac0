"""An incremental parser of requests, sans-IO.

A well-formed request is parsed by one regular expression. Everything else is parsed as in Postfix's
scache(8), so that malformed requests get the same replies. It reads names and values one by one,
searches them for ``request``, stops at the first attribute that it does not expect, and ignores
the attributes after the last expected one.

One thing differs from Postfix on purpose: a message that is too long is malformed. A label has no
other limit than that of its message.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from scache.protocol.codec import NEED_DATA, NUL, NeedData
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

_ATTRIBUTES = re.compile(b"(?:[^\0]++\0[^\0]*+\0)*+")
"""Matches all complete attributes up to an empty name or to an incomplete attribute."""

_MESSAGES = re.compile(b"(?:(?:[^\0]++\0[^\0]*+\0)*+\0)*+")
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


_WELL_FORMED, _READINGS = _well_formed()
"""The pattern matches a complete request; it does not check that a number is valid."""

_new = tuple.__new__
"""Creates a request from its values faster than the Python function of a named tuple does."""


class RequestParser:
    """The bytes received from one client, and the position of the next message in them.

    Memory is bounded: of a message that is too long, only a few bytes are kept.
    """

    def __init__(self, max_message_size: int) -> None:
        """Call a message malformed if it has more bytes than ``max_message_size``."""
        self._max_message_size = max_message_size
        self.buffer = b""
        self.at = 0
        """The position of the next message in `buffer`."""
        self._scanned = 0
        """Bytes of the message at `at` that are known to be complete attributes."""
        self.skipping = False
        """True if the message at `at` is the rest of one that was too long."""

    def next_request(self) -> Request | Malformed | NeedData:
        """Return the next request, or NEED_DATA; skip messages that are not requests."""
        match = None if self.skipping else _WELL_FORMED.match(self.buffer, self.at)
        if match is None or match.end() - self.at > self._max_message_size:
            return self._next_odd_request()
        grammar, groups = _READINGS[match.lastindex]
        values: Sequence[Any] = match.groups()[groups]
        if grammar.number is not None:
            number = grammar.number(values[0])
            if number is None:
                return self._next_odd_request()
            values = (number, *values[1:])
        self.at = match.end()
        self._scanned = 0
        return _new(grammar.kind, values)

    def take_odd_dummy(self) -> bool | None:
        """Take a message; return True if it is a dummy in an unusual form.

        Return None if the message is not complete.
        """
        end = self._message_end()
        if end is None:
            return None if not self._too_long else self._skip()
        fits = end - self.at <= self._max_message_size
        is_dummy = fits and self.buffer.startswith(b"dummy\0", self.at)
        self.advance(end)
        return is_dummy

    def skip_rest(self) -> NeedData | None:
        """Skip the rest of a message that is too long; return NEED_DATA if more of it follows."""
        end = self._message_end()
        if end is not None:
            self.advance(end)
            return None
        if self._too_long:
            self._skip()
        return NEED_DATA

    def advance(self, at: int) -> None:
        """Set the position of the next message."""
        self.at = at
        self._scanned = 0
        self.skipping = False

    def _next_odd_request(self) -> Request | Malformed | NeedData:
        """Parse the next request if it is not complete or not well-formed."""
        while True:
            start = self._skip_other_messages()
            end = self._message_end()
            match = _WELL_FORMED.match(self.buffer, start) if start > self.at else None
            if match is not None and (end is None or match.end() <= end):
                # The bytes before the request are a stray string and not a message.
                self.advance(start)
                return self.next_request()
            if end is None and not self._too_long:
                return NEED_DATA
            # Parse only the beginning of a message that is too long, so that the result does not
            # depend on how many of its bytes have arrived.
            limit = self.at + self._max_message_size
            complete = end is not None and end <= limit
            tokens = self.buffer[self.at : end if complete else limit].split(NUL)
            skipping = self.skipping
            if end is None:
                self._skip()
            else:
                self.advance(end)
            if b"request" in tokens and not skipping:
                return _read_odd(tokens[tokens.index(b"request") + 1 :], complete=complete)

    def _skip_other_messages(self) -> int:
        """Skip complete messages that are not requests.

        Return the position where a request may begin, or 0 if there is none.
        """
        if self.buffer.startswith(REQUEST, self.at):
            return self.at
        start = self.buffer.find(NUL + REQUEST, self.at) + len(NUL)
        if not (self._scanned or self.skipping):
            match = _MESSAGES.match(self.buffer, self.at, start or len(self.buffer))
            assert match is not None
            self.advance(match.end())
        return start

    def _message_end(self) -> int | None:
        """Return the end of the next message; None if it is not complete."""
        match = _ATTRIBUTES.match(self.buffer, self.at + self._scanned)
        assert match is not None
        if self.buffer.startswith(NUL, match.end()):
            return match.end() + len(NUL)
        self._scanned = match.end() - self.at
        return None

    @property
    def _too_long(self) -> bool:
        return len(self.buffer) - self.at > self._max_message_size

    def _skip(self) -> bool:
        """Discard the received part of a message that is too long, and skip its rest; return False.

        A few bytes of the current attribute are kept, so that names and values can still be told
        apart.
        """
        name, end, value = self.buffer[self.at + self._scanned :].partition(NUL)
        self.buffer = name[:1] + end + value[:1]
        self.advance(0)
        self.skipping = True
        return False


def _read_odd(tokens: list[bytes], *, complete: bool) -> Request | Malformed:
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
