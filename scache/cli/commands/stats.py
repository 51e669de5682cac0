"""``scache stats``: show the figures of the cache on one screen."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from scache.cli.option_types import seconds
from scache.cli.render.formats import Format, flat, format_option, write_csv, write_csv_rows
from scache.cli.target import Target, repeated, target_options

if TYPE_CHECKING:
    from scache.inspection.image import Value

EPILOG = """\b
Examples:
  scache stats
  scache stats --watch 2
  scache stats --format json | jq .requests.find_dest.hit_rate
"""


@click.command(epilog=EPILOG)
@target_options
@format_option
@click.option(
    "--watch",
    metavar="SECONDS",
    callback=seconds,
    help="Repeat at this interval, with rates per second, until Ctrl-C.",
)
def stats(*, target: Target, layout: Format, watch: float | None) -> None:
    """Show what is cached, requests, close reasons and limits."""
    meter = Meter(target)
    first = meter.read()
    if layout == "table" and watch is not None and sys.stdout.isatty():
        from scache.cli.render.stats_screen import live

        live(target, first, repeated(meter.read, watch))
        return
    _write(first, target, layout, header=True)
    if watch is not None:
        for figures in repeated(meter.read, watch):
            _write(figures, target, layout, header=False)


class Meter:
    """A reader of the figures, which adds rates from the second time on."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._counters: Mapping[str, int] | None = None
        self._read_at = 0.0

    def read(self) -> dict[str, Any]:
        """Return the figures of now (`reports.statistics`), their time ``at``, and rates.

        ``per_second`` has the growth per second of each counter that has grown since the last
        call. It is absent at the first call, and when the counters have started over.
        """
        from scache.clock import wall_time
        from scache.inspection.reports import statistics

        live = self._target.is_live
        with self._target.image() as image:
            read_at = time.monotonic()
            now = wall_time()
            at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
            figures = {"at": at.replace("+00:00", "Z"), **statistics(image, now, live=live)}
        before, self._counters = self._counters, figures["counters"]
        elapsed, self._read_at = read_at - self._read_at, read_at
        if before is not None:
            grown = {
                name: value - before.get(name, 0) for name, value in figures["counters"].items()
            }
            if min(grown.values(), default=0) >= 0 and before.keys() <= grown.keys():
                figures["per_second"] = {
                    name: round(more / elapsed, 2) for name, more in grown.items() if more
                }
        return figures


def _write(figures: dict[str, Any], target: Target, layout: Format, *, header: bool) -> None:
    match layout:
        case "table":
            from scache.cli.render.stats_screen import show

            show(target, figures)
        case "csv":
            at = figures["at"].encode()
            rows = ((at, name.encode(), _field(value)) for name, value in flat(figures))
            if header:
                write_csv(["at", "name", "value"], rows)
            else:
                write_csv_rows(rows)
        case _:
            import json

            indent = 2 if layout == "json" else None
            sys.stdout.write(json.dumps(figures, indent=indent) + "\n")
    sys.stdout.flush()


def _field(value: Any) -> Value:  # noqa: ANN401 - a text or a number
    return value.encode() if isinstance(value, str) else value
