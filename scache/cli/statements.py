"""Execution of SQL statements on an image."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING

from scache.cli.render.formats import Format, json_array, write
from scache.cli.streams import echo
from scache.errors import QueryError
from scache.settings.loading import did_you_mean

if TYPE_CHECKING:
    from scache.inspection.image import Image, Result, Value

_ABSENT = re.compile(r"no such (table|column): (?:\w+\.)*(\w+)")
"""The errors of SQLite for a name that does not exist."""

_COMMAND = re.compile(r"\s*(\.[a-z]+)")


def execute(
    image: Image,
    text: str,
    layout: Format,
    parameters: Mapping[str, Value | str],
    *,
    all_columns: bool = False,
) -> None:
    """Execute the statements of a text in order; write the result of each as it is read.

    JSON is one value: the array of rows, or an array of these arrays if several statements may
    return rows. Raises QueryError at the first statement that fails; the rest is not executed.
    """
    from scache.inspection.sql_text import may_return_rows, statements

    given = list(statements(text))
    if layout == "json" and sum(map(may_return_rows, given)) > 1:
        _write_arrays(image, given, parameters)
        return
    separator = ""
    for statement in given:
        result = _execute(image, statement, parameters)
        if result.columns:
            sys.stdout.write(separator)
            write(result, layout, all_columns=all_columns)
            separator = "\n" if layout in ("csv", "table") else ""
        elif layout == "table" and result.changed >= 0:
            rows = "row" if result.changed == 1 else "rows"
            echo(f"{result.changed} {rows} changed, in this copy alone")


def _write_arrays(
    image: Image, given: Iterable[str], parameters: Mapping[str, Value | str]
) -> None:
    """Execute statements; write an array with the array of rows of each that returns rows."""
    begin = "[\n"
    for statement in given:
        result = _execute(image, statement, parameters)
        if result.columns:
            sys.stdout.write(begin)
            sys.stdout.writelines(json_array(result))
            sys.stdout.flush()
            begin = ",\n"
    sys.stdout.write("[]\n" if begin == "[\n" else "\n]\n")
    sys.stdout.flush()


def _execute(image: Image, statement: str, parameters: Mapping[str, Value | str]) -> Result:
    """Execute a statement; in the error for an unknown name, suggest a similar one."""
    try:
        return image.execute(statement, parameters)
    except QueryError as error:
        if command := _COMMAND.match(statement):
            raise QueryError(
                f"{command[1]} is a command of the prompt: run `scache sql` on a terminal, "
                "without a statement"
            ) from error
        absent = _ABSENT.match(str(error))
        if absent is None:
            raise
        relations = image.relations()
        known = [relation.name for relation in relations]
        if absent[1] == "column":
            holders = [each.name for each in relations if absent[2].casefold() in each.columns]
            if holders:
                raise QueryError(f"{error}: it is a column of {', '.join(holders)}") from error
            known = list(chain.from_iterable(relation.columns for relation in relations))
        raise QueryError(f"{error}{did_you_mean(absent[2], known)}") from error
