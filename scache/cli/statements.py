"""Execution of SQL statements on an image."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import click

from scache.cli.render.formats import Format, json_array, write
from scache.errors import QueryError
from scache.settings.loading import did_you_mean

if TYPE_CHECKING:
    from scache.inspection.image import Image, Result, Value

_ABSENT = re.compile(r"no such (table|column): (?:\w+\.)*(\w+)")
"""The errors of SQLite for a name that does not exist."""


def execute(
    image: Image,
    text: str,
    layout: Format,
    parameters: Mapping[str, Value | str],
    *,
    all_columns: bool = False,
) -> None:
    """Execute the statements of a text in order; write the result of each.

    JSON is one value: the array of rows if one statement returns rows, and an array of these
    arrays if several do. Raises QueryError at the first statement that fails; the rest is not
    executed.
    """
    from scache.inspection.sql_text import statements

    given = list(statements(text))
    arrays = []
    separator = ""
    for statement in given:
        result = _execute(image, statement, parameters)
        if not result.columns:
            if layout == "table" and result.changed >= 0:
                rows = "row" if result.changed == 1 else "rows"
                click.echo(f"{result.changed} {rows} changed, in this copy alone")
        elif layout == "json" and len(given) > 1:
            arrays.append(list(json_array(result)))
        else:
            sys.stdout.write(separator)
            write(result, layout, all_columns=all_columns)
            separator = "\n" if layout == "csv" else ""
    if arrays:
        sys.stdout.writelines(_joined(arrays))
        sys.stdout.write("\n")
        sys.stdout.flush()


def _execute(image: Image, statement: str, parameters: Mapping[str, Value | str]) -> Result:
    """Execute a statement; in the error for an unknown name, suggest a similar one."""
    try:
        return image.execute(statement, parameters)
    except QueryError as error:
        absent = _ABSENT.match(str(error))
        if absent is None:
            raise
        relations = image.relations()
        known = [relation.name for relation in relations]
        if absent[1] == "column":
            known = list(chain.from_iterable(relation.columns for relation in relations))
        raise QueryError(f"{error}{did_you_mean(absent[2], known)}") from error


def _joined(arrays: Sequence[Sequence[str]]) -> Sequence[str]:
    """Return the pieces of an array of these arrays; of the only array as it is."""
    if len(arrays) == 1:
        return arrays[0]
    joined = ["["]
    for array in arrays:
        joined += [",\n" if len(joined) > 1 else "\n", *array]
    return [*joined, "\n]"]
