"""Output formats: a table for people; JSON, JSON lines and CSV, which lose nothing."""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import click

from scache.cli.streams import visible

if TYPE_CHECKING:
    from scache.inspection.image import Result, Value

Format = Literal["table", "json", "jsonl", "csv"]

Command = Callable[..., None]


def format_option(command: Command) -> Command:
    """Add the option ``--format`` to a command, which gets it as ``layout``, never None."""
    option = click.option(
        "--format",
        "layout",
        type=click.Choice(["table", "json", "jsonl", "csv"]),
        callback=_format,
        help="Output format; csv is exact, except on a terminal.  "
        "[default: table on a terminal, else json]",
    )
    return option(command)


def _format(_: click.Context, __: click.Parameter, value: Format | None) -> Format:
    if value is None:
        return "table" if sys.stdout.isatty() else "json"
    return value


def all_columns_option(command: Command) -> Command:
    """Add the option ``--all-columns`` to a command."""
    option = click.option(
        "--all-columns",
        is_flag=True,
        help="Show every column of a table that is wider than the terminal, one on a line.",
    )
    return option(command)


def write(result: Result, layout: Format, *, all_columns: bool = False) -> None:
    """Write the rows of a result to standard output as they are read.

    A table that is wider than the terminal leaves out columns, unless ``all_columns`` is true.
    """
    match layout:
        case "table":
            from scache.cli.render.tables import write_table

            write_table(result.columns, result.rows, all_columns=all_columns)
        case "json":
            sys.stdout.writelines(json_array(result))
            sys.stdout.write("\n")
        case "jsonl":
            sys.stdout.writelines(f"{row}\n" for row in json_objects(result))
        case "csv":
            write_csv(result.columns, result.rows)
    sys.stdout.flush()


def json_array(result: Result, indent: str = "") -> Iterator[str]:
    """Yield the pieces of an array of objects, one object a line, without a final newline."""
    begin = "["
    for row in json_objects(result):
        yield f"{begin}\n{indent}  {row}"
        begin = ","
    yield "[]" if begin == "[" else f"\n{indent}]"


def json_objects(result: Result, **more: str) -> Iterator[str]:
    """Yield an object for each row; each begins with the keys and texts ``more``.

    The keys are distinct: a column with the name of another column or key gets a number.
    """
    begin = "".join(f"{json.dumps(key)}: {json.dumps(text)}, " for key, text in more.items())
    names = distinct([*more, *result.columns])[len(more) :]
    keys = [f"{json.dumps(name)}: " for name in names]
    for row in result.rows:
        pairs = ", ".join([key + json_value(value) for key, value in zip(keys, row, strict=True)])
        yield f"{{{begin}{pairs}}}"


def json_value(value: Value) -> str:
    """Return a value as JSON.

    Bytes that are not UTF-8 become an object with their Base64 form, as in Datasette and
    sqlite-utils.
    """
    if isinstance(value, bytes):
        try:
            return json.dumps(value.decode())
        except UnicodeDecodeError:
            return json.dumps({"$base64": True, "encoded": base64.b64encode(value).decode()})
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"  # JSON has no infinity; parsers read this as one
    return json.dumps(value)


def distinct(columns: Sequence[str]) -> list[str]:
    """Return names of columns that are distinct; the first column of each name keeps it.

    A name that comes again gets the first number from 2 on with which no column has it: the columns
    a, a, a_2 become a, a_3, a_2.
    """
    taken = set(columns)
    seen = set[str]()
    names = []
    numbers: dict[str, Iterator[int]] = {}
    for column in columns:
        name = column
        while name in seen or (name != column and name in taken):
            name = f"{column}_{next(numbers.setdefault(column, count(2)))}"
        seen.add(name)
        names.append(name)
    return names


def write_csv(columns: Sequence[str], rows: Iterable[Iterable[Value]]) -> None:
    """Write a header and the rows as CSV; without columns, write nothing."""
    if columns:
        write_csv_rows([[column.encode() for column in columns]])
        write_csv_rows(rows)


def write_csv_rows(rows: Iterable[Iterable[Value]]) -> None:
    """Write rows as CSV: text is quoted and exact, and NULL is an empty field.

    On a terminal, text is escaped as in tables: a label may contain control sequences.
    """
    sys.stdout.flush()
    to_terminal = sys.stdout.isatty()
    for row in rows:
        sys.stdout.buffer.write(csv_line(map(_visible, row) if to_terminal else row))


def _visible(value: Value) -> Value:
    return visible(value).encode(sys.stdout.encoding) if isinstance(value, bytes) else value


def csv_line(row: Iterable[Value]) -> bytes:
    """Return a line of CSV."""
    return b",".join(map(_csv_field, row)) + b"\n"


def _csv_field(value: Value) -> bytes:
    if isinstance(value, bytes):
        return b'"' + value.replace(b'"', b'""') + b'"'
    return b"" if value is None else str(value).encode()


def flat(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the figures of nested dictionaries under names with dots; a truth value is 1 or 0."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", int(value) if isinstance(value, bool) else value
