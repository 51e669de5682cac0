"""``scache dump``: write all tables, or some tables and views."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scache.cli.naming import no_such
from scache.cli.render.formats import Format, format_option, json_array, json_objects, write
from scache.cli.target import Target, target_options
from scache.escape import one_line

if TYPE_CHECKING:
    from scache.inspection.image import Image

EPILOG = """\b
Examples:
  scache dump
  scache dump live_connection
  scache dump --format json event | jq '.event[] | select(.status == 2)'
  scache dump --output /tmp/cache.db
"""


@click.command(epilog=EPILOG)
@target_options
@format_option
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write all tables to a database file instead; it may replace an earlier dump.",
)
@click.argument("names", nargs=-1, metavar="[TABLE_OR_VIEW]...")
def dump(*, target: Target, layout: Format, output: Path | None, names: Sequence[str]) -> None:
    """Write the tables and views that are named, or all tables.

    JSON is one object with an array for each name. In JSON lines, if there are
    several names, each line begins with the name of its table. CSV takes exactly
    one name.
    """
    if output is not None and names:
        raise click.UsageError("--output writes all tables: name no tables with it")
    source = click.get_current_context().get_parameter_source("layout")
    if output is not None and source is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--output writes a database file: it takes no --format")
    if output is None and layout == "csv" and len(names) != 1:
        raise click.UsageError("CSV holds one table: name exactly one, or choose another --format")
    with target.image() as image:
        if output is not None:
            image.write_to(output)
            click.echo(_written(image, output))
            return
        chosen = _chosen(image, names)
        match layout:
            case "json":
                sys.stdout.writelines(_json(image, chosen))
            case "jsonl" if len(chosen) > 1:
                sys.stdout.writelines(_json_lines(image, chosen))
            case "table" if len(chosen) > 1:
                for name in chosen:
                    sys.stdout.write(f"{one_line(name)}:\n")
                    write(image.all_of(name), layout)
                    sys.stdout.write("\n")
            case _:
                write(image.all_of(chosen[0]), layout)
        sys.stdout.flush()


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


def _json(image: Image, names: Sequence[str]) -> Iterator[str]:
    begin = "{"
    for name in names:
        yield f"{begin}\n  {json.dumps(name)}: "
        yield from json_array(image.all_of(name), "  ")
        begin = ","
    yield "\n}\n"


def _json_lines(image: Image, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        for row in json_objects(image.all_of(name), table=name):
            yield f"{row}\n"
