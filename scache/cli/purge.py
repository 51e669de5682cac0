"""``scache purge``: close connections of a live daemon before their time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scache.cli.naming import PATTERNS, Labels, field_option, give_hints
from scache.cli.output import accept_any_text, write_text
from scache.cli.reach import Origin, inside, socket_option
from scache.printed import one_line, shown

if TYPE_CHECKING:
    from scache.store.labels import Selection

EPILOG = rf"""{PATTERNS}

\b
Examples:
  scache purge --field 203.0.113.5
  scache purge --field 203.0.113.5 --field 587 --dry-run
  scache purge --field '[mx1.example.org]:587'
  scache purge --endpoint 'smtp\n203.0.113.5\n587\n0\n'
  scache purge --destination '*example.org\n' --yes
  scache purge --all
"""

_SHOWN_BEFORE_A_QUESTION = 20
"""Connections, and bindings, so that the question stays on the screen."""


@click.command(epilog=EPILOG)
@socket_option
@click.option("--endpoint", metavar="GLOB", help="What belongs to these endpoints.")
@click.option("--destination", metavar="GLOB", help="What belongs to these destinations.")
@field_option("What belongs to endpoints and destinations with this field; repeatable.")
@click.option("--all", "everything", is_flag=True, help="All that is cached.")
@click.option("--dry-run", is_flag=True, help="List what would be purged, and purge nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(
    *,
    socket: Path,
    endpoint: str | None,
    destination: str | None,
    fields: Sequence[str],
    everything: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Close connections and remove bindings of a live daemon.

    What belongs to an endpoint are its connections; what belongs to a
    destination are its bindings, and the connections of the endpoints that they
    lead to. On a terminal it lists them and asks first.
    """
    if (endpoint is not None) + (destination is not None) + bool(fields) + everything != 1:
        raise click.UsageError("say exactly one of --endpoint, --destination, --field and --all")
    from scache.store.labels import select

    # What fits is found in an image, at our cost; the daemon is told the exact labels.
    with Origin(socket, database=None).image() as image:
        chosen = select(
            image,
            endpoint=None if endpoint is None else os.fsencode(endpoint),
            destination=None if destination is None else os.fsencode(destination),
            fields=list(map(os.fsencode, fields)),
        )
        labels = Labels(endpoint, destination, fields)
        give_hints(image, labels, trail=False, nothing=not any(chosen))
    if dry_run:
        accept_any_text()
        write_text(f"{line}\n" for line in _listed(chosen))
        click.echo(f"{_counted(chosen)} would be purged")
        return
    if not yes and any(chosen) and sys.stdin.isatty():
        for line in _listed(chosen, _SHOWN_BEFORE_A_QUESTION):
            click.echo(line, err=True)
        what = "everything" if everything else f"what fits {labels}"
        where = f"from the daemon at {one_line(str(socket))}"
        if not click.confirm(f"Purge {what}: {_counted(chosen)}, {where}?", err=True):
            click.echo("nothing was purged")
            return
    with inside(socket) as client:
        purged = client.purge(chosen.endpoints, chosen.destinations)
    click.echo(
        f"{_number(purged.connections, 'connection')} closed, "
        f"{_number(purged.bindings, 'binding')} removed"
    )


def _listed(chosen: Selection, most: int | None = None) -> Iterator[str]:
    """Yield a line for each connection and binding, ``most`` of each."""
    connections = [f"  {number}  {shown(endpoint)}" for number, endpoint in chosen.connections]
    bindings = [
        f"  {number}  {shown(destination)} > {shown(endpoint)}"
        for number, destination, endpoint in chosen.bindings
    ]
    for title, lines in (("connections:", connections), ("bindings:", bindings)):
        if lines:
            yield title
            yield from lines[:most]
        if most is not None and len(lines) > most:
            yield f"  and {len(lines) - most} more, which --dry-run lists"


def _counted(chosen: Selection) -> str:
    return (
        f"{_number(len(chosen.connections), 'connection')} and "
        f"{_number(len(chosen.bindings), 'binding')}"
    )


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
