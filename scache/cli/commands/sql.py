"""``scache sql``: execute SQL on a private copy of the cache."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from scache.cli.option_types import as_text, bytes_of
from scache.cli.render.formats import Format, all_columns_option, format_option
from scache.cli.statements import execute
from scache.cli.target import Target, target_options
from scache.errors import QueryError
from scache.settings.loading import did_you_mean

if TYPE_CHECKING:
    from scache.inspection.image import Value

EPILOG = """A VALUE that is not UTF-8 is a BLOB, which equals no text: compare labels with
CAST(:NAME AS TEXT).

\b
Examples:
  scache sql "SELECT * FROM saved_never_found"
  scache sql "SELECT * FROM live_connection WHERE remaining < :s" -p s=10
  scache sql --database /var/lib/postfix/scache.db < report.sql
  scache sql
"""

_INTEGER = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,18})")
_INTEGER_LIMIT = 2**63
_REAL = re.compile(r"[+-]?(?!0[0-9])(?=\.?[0-9])(?=.*[.eE])[0-9]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?")
"""Decimal digits with a point, an exponent or both; no zero before other digits."""


@click.command(epilog=EPILOG)
@target_options
@format_option
@all_columns_option
@click.option(
    "-p",
    "--parameter",
    "parameters",
    metavar="NAME=VALUE",
    type=as_text,
    multiple=True,
    help="Value of :NAME in the statement: a number if it is written as one, else text.",
)
@click.argument("statement", type=as_text, required=False)
def sql(
    *,
    target: Target,
    layout: Format,
    all_columns: bool,
    parameters: Sequence[str],
    statement: str | None,
) -> None:
    """Execute SQL on a copy of the cache as it is now.

    The copy is private and ends with the command: no statement changes the cache,
    its database or any file. Without STATEMENT there is a prompt on a terminal;
    elsewhere statements are read from standard input. The results of several
    statements are written one after another; JSON is one array of them then.
    """
    bound: dict[str, Value | str] = {}
    for name, value in map(_parameter, parameters):
        if name in bound:
            raise click.UsageError(f"-p gives :{name} twice")
        bound[name] = value
    if statement is None and sys.stdin.isatty() and sys.stdout.isatty():
        from scache.cli.sql_prompt import run_prompt

        run_prompt(target, layout, bound, all_columns=all_columns)
        return
    if statement is not None and not statement.strip("; \t\r\n"):
        raise click.UsageError("the statement is empty: leave it out to get a prompt")
    text = _standard_input() if statement is None else statement
    _check_used(bound, text)
    with target.image() as image:
        execute(image, text, layout, bound, all_columns=all_columns)


def _parameter(given: str) -> tuple[str, Value | str]:
    name, equals, value = given.partition("=")
    if not equals or not name:
        raise click.UsageError(f"-p takes NAME=VALUE, not {given!r}")
    return name.lstrip(":@$"), _value(value)


def _check_used(bound: Mapping[str, object], text: str) -> None:
    """Raise UsageError for a parameter that no statement has: it may be misspelled."""
    from scache.inspection.sql_text import parameters

    used = parameters(text)
    for name in bound:
        if name not in used:
            hint = did_you_mean(name, used)
            raise click.UsageError(f"-p {name}=...: no statement has the parameter :{name}{hint}")


def _value(text: str) -> Value | str:
    """Return a number if the text is a decimal one, bytes if it is not UTF-8, else the text.

    A number that is too large for SQLite or has leading zeros is probably an id, and stays text.
    """
    if _INTEGER.fullmatch(text) and -_INTEGER_LIMIT <= int(text) < _INTEGER_LIMIT:
        return int(text)
    if _REAL.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        return bytes_of(text)
    return text


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise QueryError(f"the statements on standard input are not UTF-8: {error}") from None
