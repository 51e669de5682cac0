"""``scache purge``: close connections of a live daemon before their time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from scache.cli.logs import one_line
from scache.cli.reach import Origin, inside, socket_option

EPILOG = """A GLOB is SQLite's: * stands for anything, ? for one character, [a-z] for one of
these, [[] for a bracket; case matters. It fits the very same text, too: what is
called [::1]:25 can be named so.

\b
Examples:
  scache purge --endpoint 'mx1.example.org:*'
  scache purge --destination '*.example.org' --yes
  scache purge --all
"""


@click.command(epilog=EPILOG)
@socket_option
@click.option("--endpoint", metavar="GLOB", help="What belongs to these endpoints.")
@click.option("--destination", metavar="GLOB", help="What belongs to these destinations.")
@click.option("--all", "everything", is_flag=True, help="All that is cached.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(
    *,
    socket: Path,
    endpoint: str | None,
    destination: str | None,
    everything: bool,
    yes: bool,
) -> None:
    """Close connections and remove bindings of a live daemon.

    What belongs to an endpoint are its connections; what belongs to a
    destination are its bindings, and the connections of the endpoints that they
    lead to. On a terminal it asks first.
    """
    if (endpoint is not None) + (destination is not None) + everything != 1:
        raise click.UsageError("say exactly one of --endpoint, --destination and --all")
    from scache.store.inside import labels_that_fit

    if not yes and sys.stdin.isatty():
        what = _described(endpoint, destination)
        if not click.confirm(f"Purge {what} from the daemon at {one_line(str(socket))}?", err=True):
            click.echo("nothing was purged")
            return
    # What fits is found in an image, at our cost; the daemon is told the exact labels.
    with Origin(socket, database=None).image() as image:
        endpoints, destinations = labels_that_fit(
            image,
            None if endpoint is None else os.fsencode(endpoint),
            None if destination is None else os.fsencode(destination),
        )
    with inside(socket) as client:
        purged = client.purge(endpoints, destinations)
    click.echo(
        f"{_counted(purged.connections, 'connection')} closed, "
        f"{_counted(purged.bindings, 'binding')} removed"
    )


def _described(endpoint: str | None, destination: str | None) -> str:
    if endpoint is not None:
        return f"what fits the endpoint {one_line(endpoint)}"
    if destination is not None:
        return f"what fits the destination {one_line(destination)}"
    return "everything"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
