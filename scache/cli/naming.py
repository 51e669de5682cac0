"""How ``purge`` and ``events`` are told labels, and hints where what they are told fits none."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

import click

from scache.escape import one_line, shown

if TYPE_CHECKING:
    from scache.inspection.image import Image

PATTERNS = r"""A GLOB is SQLite's: * stands for anything, ? for one character, [a-z] for one of
these, [[] for a bracket; case matters. It also fits the very same text, such as
[::1]:25, and the printed form of a label, such as smtp\n203.0.113.5\n587\n0\n.
This is the form in tables, which are the output on a terminal, and in the lists
of purge. Elsewhere the output is JSON, which has labels in JSON's own escapes.

A label of Postfix consists of fields, each with a newline behind it. A --field
is a whole one: 203.0.113.5 is no field of a label with 203.0.113.55. Where
several are given, a label must have each."""
"""For the help of a command that takes labels."""

LARGEST_ID = 2**63 - 1
"""The largest integer that SQLite knows."""

_SIMILAR = 3
"""Labels that a hint names."""

_CLASS = re.compile(r"\[(\^?\]?[^\]]*)\]")
"""In a GLOB, one character out of several."""
_DOTTED = re.compile(r"(?:\w(?:[\w-]*\w)?\.)+\w(?:[\w-]*\w)?\.?", re.ASCII)
_RANGES = re.compile(r"(?:\w-\w|\.)+")
_BARE = re.compile(r"[A-Za-z][A-Za-z0-9]{2,}")
_ESCAPE = re.compile(r"\\(?:[nrt]|x..|u....|U.{8})")
_WORD = re.compile(r"[\w.-]{2,1000}", re.ASCII)
_ELLIPSIS = "…"

Command = Callable[..., None]


def field_option(text: str) -> Callable[[Command], Command]:
    """Return what gives a command the option ``--field``, with this help."""
    return click.option(
        "--field", "fields", metavar="TEXT", multiple=True, callback=_fields, help=text
    )


def _fields(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    if "" in values:
        raise click.UsageError("--field must not be empty: nearly every label has an empty field")
    return values


def id_option(text: str) -> Callable[[Command], Command]:
    """Return what gives a command the option ``--id``, with this help."""
    return click.option(
        "--id", "ids", metavar="N", type=click.IntRange(1, LARGEST_ID), multiple=True, help=text
    )


class Named(NamedTuple):
    """What a command was told of labels and ids."""

    endpoint: str | None
    """A pattern."""
    destination: str | None
    """A pattern."""
    fields: Sequence[str]
    ids: Sequence[int]

    def __str__(self) -> str:
        named = [
            f"the {what} {one_line(pattern)}"
            for what, pattern in self.patterns()
            if pattern is not None
        ]
        if self.fields:
            named.append(f"the field {' and '.join(map(one_line, self.fields))}")
        if self.ids:
            named.append(f"the id {' or '.join(map(str, self.ids))}")
        return " and ".join(named)

    def patterns(self) -> tuple[tuple[str, str | None], ...]:
        """Return each kind of label with its pattern."""
        return ("endpoint", self.endpoint), ("destination", self.destination)


def give_hints(image: Image, named: Named, *, trail: bool, nothing: bool) -> None:
    """Say on stderr where labels may not be what was meant.

    They were searched for in the trail, or in what is cached, and ``nothing`` was found.
    """
    from scache.inspection.labels import any_has_fields, count_fits

    for column, pattern in named.patterns():
        advice = None if pattern is None else bracket_hint(pattern)
        if pattern is None or not (advice or nothing):
            continue
        fitting, exact = count_fits(image, column, os.fsencode(pattern), trail=trail)
        if advice and (not fitting or fitting > exact):
            say(advice)
        if not fitting:
            say(*_nothing_hint(image, column, pattern, trail=trail))
    fields = list(map(os.fsencode, named.fields))
    if fields and nothing and not any_has_fields(image, fields, trail=trail):
        say(*_nothing_hint(image, "field", " and ".join(named.fields), trail=trail))


def say(*sentences: str) -> None:
    """Say something on stderr, each in one line."""
    for each in sentences:
        click.echo(f"scache: {one_line(each)}", err=True)


def bracket_hint(pattern: str) -> str | None:
    """Return what to write instead of a GLOB whose brackets hold names or addresses, if any do."""
    odd = [found[0] for found in _CLASS.finditer(pattern) if _is_host(found[1])]
    if not odd:
        return None
    literal = _CLASS.sub(lambda found: ("[[]" if found[0] in odd else "[") + found[0][1:], pattern)
    return f"in a GLOB {odd[0]} is one of these characters: for the text itself write {literal}"


def _is_host(text: str) -> bool:
    """Return True if a text is a name or an address rather than a list of characters.

    A list without ranges is in alphabetical order, where people write one.
    """
    try:
        ip_address(text.removeprefix("IPv6:"))
    except ValueError:
        if _DOTTED.fullmatch(text):
            return not _RANGES.fullmatch(text)
        return bool(_BARE.fullmatch(text)) and list(text) != sorted(text)
    return True


def _nothing_hint(image: Image, what: str, text: str, *, trail: bool) -> Iterator[str]:
    """Yield what to say if nothing that is cached fits a text, or nothing in the trail.

    Without a reason or a similar label, nothing is said of the trail: the command shows no event.
    """
    from scache.inspection.labels import near

    words = [word.strip(".-") for word in _WORD.findall(_ESCAPE.sub(" ", text))]
    word = max(words, key=len, default="")
    similar = near(image, word.encode(), _SIMILAR, trail=trail) if word else []
    reasons = []
    if _ELLIPSIS in text:
        reasons.append(f"{_ELLIPSIS} is what a table left out, and --format json shows it")
    if similar:
        reasons.append(f"similar labels: {', '.join(map(shown, similar))}")
    if reasons or not trail:
        yield "; ".join([f"nothing fits the {what} {text}", *reasons])
