"""Options of ``purge`` and ``events`` that name labels and ids; hints if a name matches nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

import click

from scache.cli.option_types import as_text, bytes_of, whole_number
from scache.cli.streams import echo
from scache.escape import one_line, shown
from scache.settings.loading import did_you_mean

if TYPE_CHECKING:
    from scache.inspection.image import Image

PATTERNS = r"""A GLOB is a pattern of SQLite: * stands for any text, ? for one character, [a-z]
for one of these characters, [[] for a bracket. Case matters. The exact text of a
label matches as well, such as [::1]:25, and so does its printed form, such as
smtp\n203.0.113.5\n587\n0\n. Tables and the lists of purge show the printed form;
JSON has escapes of its own.

A label of Postfix consists of fields, each followed by a newline. --field matches
one whole field: 203.0.113.5 does not match a label with 203.0.113.55. If several
are given, a label must have all of them."""
"""Part of the help of commands that take labels."""

_SIMILAR = 3
"""Labels that a hint names at most."""

_CLASS = re.compile(r"\[(\^?\]?[^\]]*)\]")
"""A list of characters in a GLOB."""
_DOTTED = re.compile(r"(?:\w(?:[\w-]*\w)?\.)+\w(?:[\w-]*\w)?\.?", re.ASCII)
_RANGES = re.compile(r"(?:\w-\w|\.)+")
_BARE = re.compile(r"[A-Za-z][A-Za-z0-9]{2,}")
_ESCAPE = re.compile(r"\\(?:[nrt]|x..|u....|U.{8})")
_WORD = re.compile(r"[\w.-]{2,1000}", re.ASCII)
_ELLIPSES = ("…", "...")

Command = Callable[..., None]


def field_option(text: str) -> Callable[[Command], Command]:
    """Return a decorator that adds the option ``--field`` with this help to a command."""
    return click.option(
        "--field",
        "fields",
        metavar="TEXT",
        type=as_text,
        multiple=True,
        callback=_fields,
        help=text,
    )


def _fields(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    if "" in values:
        raise click.UsageError("--field must not be empty: nearly every label has an empty field")
    return values


def id_option(text: str) -> Callable[[Command], Command]:
    """Return a decorator that adds the option ``--id``, alias ``--connection``, to a command."""
    return click.option(
        "--id",
        "--connection",
        "ids",
        metavar="N",
        callback=whole_number(1),
        multiple=True,
        help=text,
    )


class Named(NamedTuple):
    """The labels and ids that a command was given."""

    endpoint: str | None
    """A GLOB."""
    destination: str | None
    """A GLOB."""
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
        """Return the kinds of labels with their patterns."""
        return ("endpoint", self.endpoint), ("destination", self.destination)


def give_hints(image: Image, named: Named, *, recorded: bool, nothing: bool) -> None:
    """Write hints to stderr about patterns and fields that may be mistakes.

    ``recorded`` is true if the audit log was searched, and false for what is cached. ``nothing`` is
    true if the search matched nothing.
    """
    from scache.inspection.labels import any_has_fields, count_fits

    for column, pattern in named.patterns():
        advice = None if pattern is None else bracket_hint(pattern)
        if pattern is None or not (advice or nothing):
            continue
        fitting, exact = count_fits(image, column, bytes_of(pattern), recorded=recorded)
        if advice and (not fitting or fitting > exact):
            say(advice)
        if not fitting:
            say(*_nothing_hint(image, column, pattern, recorded=recorded))
    fields = list(map(bytes_of, named.fields))
    if fields and nothing and not any_has_fields(image, fields, recorded=recorded):
        say(*_nothing_hint(image, "field", " and ".join(named.fields), recorded=recorded))


def no_such(what: str, name: str, known: Iterable[str]) -> click.UsageError:
    """Return the error for a name that does not exist; it lists those that do."""
    known = list(known)
    hint = did_you_mean(name, known).replace(", ", "; ", 1)
    return click.UsageError(f"there is no {what} {name}: there are {', '.join(known)}{hint}")


def say(*sentences: str) -> None:
    """Write each sentence to stderr as one line."""
    for each in sentences:
        echo(f"scache: {one_line(each)}", err=True)


def bracket_hint(pattern: str) -> str | None:
    """Return a hint if brackets of a GLOB hold a name or an address; else None."""
    odd = [found[0] for found in _CLASS.finditer(pattern) if _is_host(found[1])]
    if not odd:
        return None
    literal = _CLASS.sub(lambda found: ("[[]" if found[0] in odd else "[") + found[0][1:], pattern)
    return f"in a GLOB, {odd[0]} is one of these characters: for the text itself, write {literal}"


def _is_host(text: str) -> bool:
    """Return True if a text is a name or an address rather than a list of characters.

    A list of characters without ranges is taken for one only if it is in alphabetical order.
    """
    try:
        ip_address(text.removeprefix("IPv6:"))
    except ValueError:
        if _DOTTED.fullmatch(text):
            return not _RANGES.fullmatch(text)
        return bool(_BARE.fullmatch(text)) and list(text) != sorted(text)
    return True


def _nothing_hint(image: Image, what: str, text: str, *, recorded: bool) -> Iterator[str]:
    """Yield the hint that nothing matches a text.

    For the audit log there is no hint without a reason or a similar label: the command itself shows
    that there is no event.
    """
    from scache.inspection.labels import near

    words = [word.strip(".-") for word in _WORD.findall(_ESCAPE.sub(" ", text))]
    word = max(words, key=len, default="")
    similar = near(image, word.encode(), _SIMILAR, recorded=recorded) if word else []
    reasons = []
    for mark in _ELLIPSES:
        if mark in text:
            reasons.append(
                f"{mark} stands for text that a table left out, and --format json shows it"
            )
    if similar:
        reasons.append(f"similar labels: {', '.join(map(shown, similar))}")
    if reasons or not recorded:
        yield "; ".join([f"nothing matches the {what} {text}", *reasons])
