"""``scache events``: print the audit log, and follow it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain, islice
from typing import TYPE_CHECKING

import click

from scache.cli.naming import (
    PATTERNS,
    Named,
    field_option,
    give_hints,
    id_option,
    no_such,
)
from scache.cli.option_types import LARGEST, as_text, bytes_of, seconds, whole_number
from scache.cli.render.formats import (
    Format,
    format_option,
    json_objects,
    write,
    write_csv,
    write_csv_rows,
)
from scache.cli.shell_completion import words
from scache.cli.streams import echo
from scache.cli.target import Target, repeated, target_options
from scache.vocabulary import KINDS, OUTCOMES

if TYPE_CHECKING:
    from scache.inspection.image import Image, Result, Value
    from scache.inspection.reports import Filter, Instance

EPILOG = f"""Events are printed in the order of time. Ids are in the order of writing, which
may be another one within one write of about 50 ms.

Each look at a running daemon takes a snapshot, which is an event. Snapshots that
succeeded are left out, unless --kind snapshot asks for them.

{PATTERNS}

\b
Examples:
  scache events --limit 20
  scache events --kind find_dest --since 10m
  scache events --field example.org --follow
  scache events --endpoint 'smtp\\n203.0.113.5\\n587\\n0\\n'
  scache events --id 4711
  scache events --outcome fail --since 1h --local
  scache events --client smtp --format jsonl
"""

FOLLOWED = 10
"""Earlier events that ``--follow`` begins with by default."""

INTERVAL = 1.0
"""Seconds between two looks of ``--follow`` by default."""

_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command(epilog=EPILOG)
@target_options
@format_option
@click.option("--endpoint", metavar="GLOB", type=as_text, help="Only of endpoints that match.")
@click.option(
    "--destination", metavar="GLOB", type=as_text, help="Only of destinations that match."
)
@field_option("Only of labels with this field; repeatable.")
@id_option("Only of the connection or binding with this id; repeatable.")
@click.option(
    "--client",
    metavar="PID|GLOB",
    type=as_text,
    help="Only of this process, or of programs whose name matches.",
)
@click.option(
    "--kind",
    "kinds",
    metavar="KIND",
    type=as_text,
    multiple=True,
    shell_complete=words(lambda: KINDS),
    help="Only of this kind; repeatable.",
)
@click.option(
    "--outcome",
    "outcomes",
    type=click.Choice(OUTCOMES),
    multiple=True,
    help="Only requests with this outcome; repeatable.",
)
@click.option(
    "--since",
    metavar="TIME",
    help="Only since this time: ISO 8601, by default in UTC, or a span such as 90s, 10m, 1d.",
)
@click.option("--local", is_flag=True, help="Times in the local time zone, also that of --since.")
@click.option("--limit", metavar="N", callback=whole_number(0), help="Only the last N.")
@click.option(
    "--follow",
    is_flag=True,
    help="Go on with new events, until Ctrl-C. JSON has one line for each event then.",
)
@click.option(
    "--interval",
    metavar="SECONDS",
    callback=seconds,
    help=f"Time between two looks of --follow.  [default: {INTERVAL:g}]",
)
def events(
    *,
    target: Target,
    layout: Format,
    endpoint: str | None,
    destination: str | None,
    fields: Sequence[str],
    ids: Sequence[int],
    client: str | None,
    kinds: Sequence[str],
    outcomes: Sequence[str],
    since: str | None,
    local: bool,
    limit: int | None,
    follow: bool,
    interval: float | None,
) -> None:
    """Print the events of the audit log, the oldest first.

    An event is a request with its outcome, or a connection or binding that left.
    On a terminal each is one line, with the fields of a label joined by spaces, and
    a find that hit is one line with the `found` event of its connection. In a pipe
    or a file the output is JSON, with all events and exact labels (see --format).
    """
    from scache.inspection.reports import Filter

    if interval is not None and not follow:
        raise click.UsageError("--interval is for --follow: give both")
    named = Named(endpoint, destination, fields, ids)
    pid = None if client is None else _pid(client)
    wanted = Filter(
        endpoint=None if endpoint is None else bytes_of(endpoint),
        destination=None if destination is None else bytes_of(destination),
        fields=list(map(bytes_of, fields)),
        ids=ids,
        pid=pid,
        program=None if client is None or pid is not None else bytes_of(client),
        kinds=_known(kinds),
        outcomes=outcomes,
        since=None if since is None else moment(since, local=local),
        one_for_a_hit=layout == "table",
    )
    if follow:
        interval = INTERVAL if interval is None else interval
        if limit is None and since is None:
            limit = FOLLOWED
        _Follower(target, layout, wanted, interval, local=local).run(limit, named)
        return
    with target.image() as image:
        found = _write(image, wanted, layout, limit, local=local)
        give_hints(image, named, recorded=True, nothing=not found)
        _warn(image)


def _warn(image: Image) -> None:
    from scache.inspection.reports import records_events

    if not records_events(image):
        echo("scache: no event is recorded while audit_rows is 0", err=True)


def _write(image: Image, wanted: Filter, layout: Format, limit: int | None, *, local: bool) -> bool:
    """Write the events that match; return True if there was one."""
    from scache.inspection.reports import events as ask

    result = _in_zone(ask(image, wanted, last=limit), local=local)
    first = list(islice(result.rows, 1))
    result = result._replace(rows=chain(first, result.rows))
    if layout == "table":
        from scache.cli.render.event_lines import EventLines

        if not EventLines().write(result.columns, result.rows):
            echo("(no events)")
    else:
        write(result, layout)
    return bool(first)


class _Follower:
    """Writes the last events, and new ones as they are recorded."""

    def __init__(
        self, target: Target, layout: Format, wanted: Filter, interval: float, *, local: bool
    ) -> None:
        from scache.cli.render.event_lines import EventLines

        self._target = target
        self._layout = layout
        self._wanted = wanted
        self._interval = interval
        self._local = local
        self._lines = EventLines()
        self._seen = 0
        """Highest id of an event in the images so far."""
        self._instance: Instance | None = None
        self._has_header = False

    def run(self, limit: int | None, named: Named) -> None:
        """Write the last ``limit`` events, and then each new one; never return."""
        with self._target.image() as image:
            give_hints(image, named, recorded=True, nothing=False)
            self._write_new(image, limit)
            _warn(image)
        for _ in repeated(self._look, self._interval):
            pass

    def _look(self) -> None:
        with self._target.image() as image:
            self._write_new(image, None)

    def _write_new(self, image: Image, limit: int | None) -> None:
        from scache.inspection.reports import events as ask
        from scache.inspection.reports import instance, latest_event, remembers

        if self._instance is not None and not remembers(image, self._instance):
            self._seen = 0  # another database, with ids of its own
        self._instance = instance(image)
        latest = latest_event(image)
        self._write(_in_zone(ask(image, self._wanted, self._seen, limit), local=self._local))
        self._seen = latest
        sys.stdout.flush()

    def _write(self, result: Result) -> None:
        match self._layout:
            case "table":
                self._lines.write(result.columns, result.rows)
            case "csv":
                if self._has_header:
                    write_csv_rows(result.rows)
                else:
                    write_csv(result.columns, result.rows)
                self._has_header = True
            case _:  # also for json: an array would never end
                sys.stdout.writelines(f"{row}\n" for row in json_objects(result))


def _in_zone(result: Result, *, local: bool) -> Result:
    """Return events with the times in the local time zone if ``local`` is true."""
    if not local:
        return result
    place = result.columns.index("at")
    rows = ((*row[:place], _in_local_zone(row[place]), *row[place + 1 :]) for row in result.rows)
    return result._replace(rows=rows)


def _in_local_zone(at: Value) -> Value:
    if not isinstance(at, bytes):  # strftime(3) of SQLite gives NULL for an impossible time
        return at
    return datetime.fromisoformat(at.decode()).astimezone().isoformat("T", "milliseconds").encode()


def _known(kinds: Sequence[str]) -> Sequence[str]:
    for kind in kinds:
        if kind not in KINDS:
            raise no_such("kind", repr(kind), KINDS)
    return kinds


def _pid(client: str) -> int | None:
    if not client:
        raise click.UsageError("--client must not be empty: it takes the id of a process or a GLOB")
    if not (client.isascii() and client.isdecimal()):
        return None
    if len(client) > len(str(LARGEST)) or int(client) > LARGEST:
        raise click.UsageError("--client takes the id of a process or a GLOB: no id is that large")
    return int(client)


def moment(text: str, *, local: bool = False) -> float:
    """Return an ISO 8601 time, or the time a span ago, in seconds since the epoch.

    A time without a zone is in UTC, or in the local zone if ``local`` is true. A time before the
    epoch becomes the epoch: no event is older, and SQLite has a limit.
    """
    from scache.clock import wall_time

    if span := _SPAN.fullmatch(text):
        return max(wall_time() - float(span[1]) * _UNITS[span[2]], 0)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(
            f"--since takes a time such as 2026-11-24T20:45:00Z or a span such as 10m, not {text!r}"
        ) from None
    if time.tzinfo is None and not local:
        time = time.replace(tzinfo=UTC)
    return max(time.timestamp(), 0)
