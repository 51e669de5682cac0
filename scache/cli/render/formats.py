"""How rows leave a command: a table for people; JSON, JSON lines or CSV, which lose nothing."""

from __future__ import annotations

import base64
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import click

from scache.escape import shown

if TYPE_CHECKING:
    from scache.inspection.image import Result, Value

Format = Literal["table", "json", "jsonl", "csv"]

Command = Callable[..., None]


def format_option(command: Command) -> Command:
    """Give a command the option ``--format``, which is never None when it runs."""
    option = click.option(
        "--format",
        "layout",
        type=click.Choice(["table", "json", "jsonl", "csv"]),
        callback=_format,
        help="How to write it; csv is exact, except on a terminal.  "
        "[default: table on a terminal, else json]",
    )
    return option(command)


def _format(_: click.Context, __: click.Parameter, value: Format | None) -> Format:
    if value is None:
        return "table" if sys.stdout.isatty() else "json"
    return value


def write(result: Result, layout: Format) -> None:
    """Write the rows of one result to standard output, as they come."""
    match layout:
        case "table":
            from scache.cli.render.tables import write_table

            write_table(result.columns, result.rows)
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
    """Yield an object for each row; ``more`` are keys and texts that each begins with."""
    begin = "".join(f"{json.dumps(key)}: {json.dumps(text)}, " for key, text in more.items())
    keys = [f"{json.dumps(name)}: " for name in _distinct(result.columns)]
    for row in result.rows:
        pairs = ", ".join([key + json_value(value) for key, value in zip(keys, row, strict=True)])
        yield f"{{{begin}{pairs}}}"


def json_value(value: Value) -> str:
    """Return a value as JSON.

    Bytes that are no UTF-8 are an object that says so (the convention of
    Datasette and sqlite-utils).
    """
    if isinstance(value, bytes):
        try:
            return json.dumps(value.decode())
        except UnicodeDecodeError:
            return json.dumps({"$base64": True, "encoded": base64.b64encode(value).decode()})
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"  # JSON has no word for it, but readers agree
    return json.dumps(value)


def _distinct(columns: Sequence[str]) -> list[str]:
    """Return the names of columns, numbered where two are alike: an object has no like keys."""
    seen: Counter[str] = Counter()
    names = []
    for column in columns:
        seen[column] += 1
        names.append(f"{column}_{seen[column]}" if seen[column] > 1 else column)
    return names


def write_csv(columns: Sequence[str], rows: Iterable[Iterable[Value]]) -> None:
    """Write a header and the rows as CSV; nothing if there are no columns."""
    if columns:
        write_csv_rows([[column.encode() for column in columns]])
        write_csv_rows(rows)


def write_csv_rows(rows: Iterable[Iterable[Value]]) -> None:
    """Write rows as CSV: text is quoted and exact, NULL is nothing at all.

    A terminal, which a label might drive, gets text as people see it.
    """
    sys.stdout.flush()
    to_terminal = sys.stdout.isatty()
    for row in rows:
        sys.stdout.buffer.write(csv_line(map(_visible, row) if to_terminal else row))


def _visible(value: Value) -> Value:
    return shown(value).encode() if isinstance(value, bytes) else value


def csv_line(row: Iterable[Value]) -> bytes:
    """Return a line of CSV."""
    return b",".join(map(_csv_field, row)) + b"\n"


def _csv_field(value: Value) -> bytes:
    if isinstance(value, bytes):
        return b'"' + value.replace(b'"', b'""') + b'"'
    return b"" if value is None else str(value).encode()


def flat(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the figures of nested dictionaries under names with dots; truth is 1 or 0."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", int(value) if isinstance(value, bool) else value
