"""``scache purge``: close cached connections of a running daemon."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from scache.cli.daemon_socket import announced, connect, given_socket, socket_options
from scache.cli.naming import PATTERNS, Named, field_option, give_hints, id_option, say
from scache.cli.option_types import as_text, bytes_of
from scache.cli.streams import echo, fitted
from scache.cli.target import image_through
from scache.errors import TooOld
from scache.escape import one_line, shown

if TYPE_CHECKING:
    from scache.client.exchanges import Purged
    from scache.client.sync import Client
    from scache.inspection.image import Image
    from scache.inspection.labels import Selection

EPILOG = f"""{PATTERNS}

\b
Examples:
  scache purge --field 203.0.113.5
  scache purge --field 203.0.113.5 --field 587 --dry-run
  scache purge --field '[mx1.example.org]:587'
  scache purge --endpoint 'smtp\\n203.0.113.5\\n587\\n0\\n'
  scache purge --destination '*example.org\\n' --yes
  scache purge --id 4711 --id 4712
  scache purge --all
"""

_SHOWN_BEFORE_A_QUESTION = 20
"""Connections, and bindings, that are listed before a question, so that it stays on the screen."""


@click.command(epilog=EPILOG)
@socket_options
@click.option(
    "--endpoint", metavar="GLOB", type=as_text, help="Purge what belongs to endpoints that match."
)
@click.option(
    "--destination",
    metavar="GLOB",
    type=as_text,
    help="Purge what belongs to destinations that match.",
)
@field_option("Purge what belongs to labels with this field; repeatable.")
@id_option("Purge the connection with this id, as live_connection shows it; repeatable.")
@click.option("--all", "everything", is_flag=True, help="Purge all connections and bindings.")
@click.option("--dry-run", is_flag=True, help="List what would be purged; purge nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(
    *,
    socket: str | None,
    timeout: float | None,
    endpoint: str | None,
    destination: str | None,
    fields: Sequence[str],
    ids: Sequence[int],
    everything: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Close connections and remove bindings of a running daemon.

    To an endpoint belong its connections. To a destination belong its bindings,
    and the connections of their endpoints. On a terminal the command lists them
    and asks first. Lists are text, with labels in their printed form, also in a
    pipe.
    """
    given = [endpoint is not None, destination is not None, bool(fields), bool(ids), everything]
    if sum(given) != 1:
        raise click.UsageError(
            "give exactly one of --endpoint, --destination, --field, --id and --all"
        )
    named = Named(endpoint, destination, fields, ids)
    # The image is searched in this process, and the daemon closes the ids that were found. Both go
    # over one connection to the daemon: after a restart the ids may name other connections.
    daemon = given_socket(socket, timeout)
    with connect(daemon) as client:
        with image_through(client, daemon) as image:
            chosen = _chosen(image, named)
        if dry_run:
            sys.stdout.writelines(f"{line}\n" for line in _listed(chosen))
            echo(f"{_counted(chosen)} would be purged")
            return
        if not yes and any(chosen) and sys.stdin.isatty():
            what = "everything" if everything else f"what matches {named}"
            where = f"from the daemon at {one_line(str(daemon.path))}"
            if not _agreed(chosen, f"Purge {what}", f"{where}?"):
                echo("nothing was purged")
                return
        with announced(daemon):
            purged = _purge(client, chosen, labels_may_do=not ids)
    echo(
        f"{_number(purged.connections, 'connection')} closed, "
        f"{_number(purged.bindings, 'binding')} removed"
    )


def _chosen(image: Image, named: Named) -> Selection:
    """Return the connections and bindings that match; write hints to stderr."""
    from scache.inspection.labels import select

    chosen = select(
        image,
        endpoint=None if named.endpoint is None else bytes_of(named.endpoint),
        destination=None if named.destination is None else bytes_of(named.destination),
        fields=list(map(bytes_of, named.fields)),
        ids=named.ids,
    )
    give_hints(image, named, recorded=False, nothing=not any(chosen))
    _hint_at_ids(image, named.ids, chosen)
    return chosen


def _agreed(chosen: Selection, begin: str, end: str) -> bool:
    """List the connections and bindings, and ask; return True if the answer is yes."""
    for line in _listed(chosen, _SHOWN_BEFORE_A_QUESTION):
        echo(line, err=True)
    return click.confirm(fitted(f"{begin}: {_counted(chosen)}, {end}"), err=True)


def _purge(client: Client, chosen: Selection, *, labels_may_do: bool) -> Purged:
    """Close the chosen connections by id, or all of their endpoints if the daemon is too old."""
    try:
        ids = [number for number, _ in chosen.connections]
        return client.purge((), chosen.destinations, ids)
    except TooOld:
        if not labels_may_do:
            raise
        say(
            "the daemon is too old to purge by id: all connections of these endpoints are closed, "
            "also those that were saved meanwhile"
        )
        return client.purge(chosen.endpoints, chosen.destinations)


def _hint_at_ids(image: Image, ids: Sequence[int], chosen: Selection) -> None:
    """Write a hint to stderr for each id that is not a cached connection."""
    from scache.inspection.labels import binding_of

    for number in sorted({*ids} - {number for number, _ in chosen.connections}):
        destination = binding_of(image, number)
        if destination is None:
            say(f"no connection {number} is cached: scache events --id {number} may tell why")
        else:
            say(f"{number} is a binding, of the destination {shown(destination)}")


def _listed(chosen: Selection, most: int | None = None) -> Iterator[str]:
    """Yield a line for each connection and binding, at most ``most`` of each."""
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
