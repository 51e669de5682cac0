"""``scache dump``: write all tables, or some tables and views."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scache.cli.naming import no_such, say
from scache.cli.option_types import as_text, whole_number
from scache.cli.render.formats import (
    Format,
    all_columns_option,
    format_option,
    json_array,
    json_objects,
    write,
)
from scache.cli.render.progress import progress
from scache.cli.shell_completion import words
from scache.cli.streams import OutputError, echo
from scache.cli.target import Target, target_options
from scache.escape import one_line

if TYPE_CHECKING:
    from scache.inspection.image import Image, Result

EPILOG = """\b
Examples:
  scache dump
  scache dump live_connection
  scache dump --format json event | jq '.event[] | select(.status == 2)'
  scache dump --output /tmp/cache.db
"""

ROWS = 50
"""Rows of each table that are written to a terminal by default."""


def _tables_and_views() -> list[str]:
    """Return the names of the tables and views of this version."""
    from scache.inspection.empty import empty_image

    with empty_image() as image:
        return [relation.name for relation in image.relations()]


@click.command(epilog=EPILOG)
@target_options
@format_option
@all_columns_option
@click.option(
    "--limit",
    metavar="N",
    callback=whole_number(0),
    help=f"Only the first N rows of each table.  [default: {ROWS} on a terminal, else all]",
)
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write all tables to a database file instead; it may replace an earlier dump.",
)
@click.argument(
    "names",
    nargs=-1,
    metavar="[TABLE_OR_VIEW]...",
    type=as_text,
    shell_complete=words(_tables_and_views),
)
def dump(
    *,
    target: Target,
    layout: Format,
    all_columns: bool,
    limit: int | None,
    output: Path | None,
    names: Sequence[str],
) -> None:
    """Write the tables and views that are named, or all tables.

    JSON is one object with an array for each name. In JSON lines, if there are
    several names, each line begins with the name of its table. CSV takes exactly
    one name. On a terminal only the first rows of each table are written; a line
    says so.
    """
    if output is not None:
        _check_alone(names, limit, all_columns=all_columns)
    elif layout == "csv" and len(names) != 1:
        raise click.UsageError("CSV holds one table: name exactly one, or choose another --format")
    if output is not None:
        _write_to(output, target)
        return
    with target.image() as image:
        chosen = _chosen(image, names)
        most = ROWS if limit is None and sys.stdout.isatty() else limit
        rows = _Rows(image, most)
        match layout:
            case "json":
                sys.stdout.writelines(_json(rows, chosen))
            case "jsonl" if len(chosen) > 1:
                sys.stdout.writelines(_json_lines(rows, chosen))
            case "table" if len(chosen) > 1:
                for name in chosen:
                    sys.stdout.write(f"{one_line(name)}:\n")
                    write(rows.of(name), layout, all_columns=all_columns)
                    sys.stdout.write("\n")
            case _:
                write(rows.of(chosen[0]), layout, all_columns=all_columns)
        sys.stdout.flush()
        if limit is None:
            rows.say_what_is_missing(chosen)


def _write_to(output: Path, target: Target) -> None:
    with progress(f"taking an image of the {one_line(str(target))}") as step:
        image = target.image()
        with image:
            step(f"writing {one_line(str(output))}", None)
            image.write_to(output)
            written = _written(image, output)
    with suppress(OutputError):  # the file is there, even if no output is
        echo(written)


def _check_alone(names: Sequence[str], limit: int | None, *, all_columns: bool) -> None:
    """Raise UsageError for options and arguments that have no effect with ``--output``."""
    if names:
        raise click.UsageError("--output writes all tables: name no tables with it")
    source = click.get_current_context().get_parameter_source("layout")
    if source is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--output writes a database file: it takes no --format")
    if limit is not None:
        raise click.UsageError("--output writes all rows: it takes no --limit")
    if all_columns:
        raise click.UsageError("--output writes all columns: it takes no --all-columns")


class _Rows:
    """The first rows of the tables and views of an image."""

    def __init__(self, image: Image, most: int | None) -> None:
        """Use at most ``most`` rows of each; all of them if it is None."""
        self._image = image
        self._most = most

    def of(self, name: str) -> Result:
        """Return the rows of a table or view."""
        return self._image.all_of(name, -1 if self._most is None else self._most)

    def say_what_is_missing(self, names: Sequence[str]) -> None:
        """Write a line to stderr if some of these tables and views have further rows."""
        if self._most is None:
            return
        counts = {name: self._image.count(name) for name in names}
        longer = [f"{name} {count:,}" for name, count in counts.items() if count > self._most]
        if longer:
            say(
                f"only the first {self._most} rows are shown of: {', '.join(longer)}; "
                "use --limit N, or a pipe (| less) for all"
            )


def _chosen(image: Image, names: Sequence[str]) -> list[str]:
    """Return the names of the tables and views to write; without names, of all tables."""
    relations = image.relations()
    if not names:
        return [relation.name for relation in relations if not relation.is_view]
    known = [relation.name for relation in relations]
    for name in names:
        if name not in known:
            raise no_such("table or view", name, known)
    return list(dict.fromkeys(names))


def _written(image: Image, output: Path) -> str:
    """Return what was written to a file, in words."""
    names = [relation.name for relation in image.relations() if not relation.is_view]
    rows = sum(image.count(name) for name in names)
    size = output.stat().st_size / 1e6
    return one_line(f"wrote {output}: {len(names)} tables, {rows:,} rows, {size:,.1f} MB")


def _json(rows: _Rows, names: Sequence[str]) -> Iterator[str]:
    begin = "{"
    for name in names:
        yield f"{begin}\n  {json.dumps(name)}: "
        yield from json_array(rows.of(name), "  ")
        begin = ","
    yield "\n}\n"


def _json_lines(rows: _Rows, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        for row in json_objects(rows.of(name), table=name):
            yield f"{row}\n"
