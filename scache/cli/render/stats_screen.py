"""The figures of the cache on one screen of 60 columns or more."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from textwrap import wrap
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from scache.cli.render.color import VisibleCursor, make_console, width_of
from scache.cli.render.tables import shortened, span
from scache.cli.streams import fitted
from scache.cli.target import Target
from scache.escape import one_line

_ABOUT = ("open_files_limit",)
"""Limits whose use an image shows only approximately."""

_ROOM = 500
"""Characters of the widest line before it is shortened to the terminal."""

_FEWEST_LIMITS = 3
"""Limits that stay on a screen without room for all."""

_Row = tuple[str, ...]


def show(target: Target, figures: dict[str, Any]) -> None:
    """Write the screen to standard output."""
    console = make_console()
    height = console.height - 1 if sys.stdout.isatty() else None  # the shell's prompt needs a line
    console.print(screen(target, figures, width_of(console) or 80, height), soft_wrap=True)


def live(target: Target, first: dict[str, Any], rest: Iterable[dict[str, Any]]) -> None:
    """Show the screen, and redraw it in place with each of the figures that follow.

    The cursor stays on the line below it, where the shell's prompt begins if a signal ends the
    process.
    """
    console = make_console(VisibleCursor)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as display:
        for figures in chain([first], rest):
            text = screen(target, figures, console.width, console.height - 1)
            display.update(text.append("\n"), refresh=True)


def screen(target: Target, figures: dict[str, Any], width: int, height: int | None = None) -> Text:
    """Return the figures as text, no line of which is wider than ``width``.

    If they do not fit into ``height`` lines, close reasons with 0 are left out first, then blank
    lines, and then the limits that are least used. If that is not enough, the last line says how
    many are left out.
    """
    fault = figures["database"]["fault"]
    alarm = [] if fault is None else wrap(fitted(one_line(f"DATABASE: {fault}")), width)
    room = None if height is None else height - len(alarm) - bool(alarm)
    sections = _sections(target, figures)
    lines = _joined(sections, blank=True)
    if room is not None and len(lines) > room:
        sections = _sections(target, figures, brief=True)
        lines = _joined(sections, blank=True)
    if room is not None and len(lines) > room:
        lines = _joined(sections, blank=False)
    if room is not None and len(lines) > room:
        most = max(len(figures["limits"]) - (len(lines) - room), _FEWEST_LIMITS)
        lines = _joined(_sections(target, figures, brief=True, limits=most), blank=False)
    if room is not None and len(lines) > max(room, 1):
        kept = max(room - 1, 0)
        missing = len(lines) - kept
        lines = [*lines[:kept], f"({missing} more lines: add --format table | cat)"]
    text = Text("\n".join(shortened(fitted(line), width) for line in lines), no_wrap=True)
    if not alarm:
        return text
    return Text(no_wrap=True).append("\n".join(alarm), "bold red").append("\n\n").append(text)


def _sections(
    target: Target, figures: dict[str, Any], *, brief: bool = False, limits: int | None = None
) -> list[list[str]]:
    rates = figures.get("per_second")
    speed = () if rates is None else ("/s",)
    tables: list[tuple[_Row, Iterable[_Row]]] = [
        (("", "now", "in all"), _populations(figures)),
        (
            ("requests", "ok", "fail", "bad", "hit rate", *speed),
            _requests(figures, rates, brief=brief),
        ),
        (
            ("ways out", "connections", "bindings", *speed),
            _ways_out(figures, rates, brief=brief),
        ),
        (("limits", "now", "limit", "used"), _limits(figures["limits"], limits)),
        (("limits reached", "times"), _limits_reached(figures["limits_reached"])),
    ]
    sections = [list(_heading(target, figures))]
    for header, rows in tables:
        if there := list(rows):
            sections.append(_table(header, there))
    return sections


def _joined(sections: Iterable[list[str]], *, blank: bool) -> list[str]:
    lines: list[str] = []
    for section in sections:
        lines += [*[""] * (blank and bool(lines)), *section]
    return lines


def _heading(target: Target, figures: dict[str, Any]) -> Iterator[str]:
    daemon = figures["daemon"]
    if daemon:
        yield f"scache {daemon['version']}, process {daemon['pid']}, {_state(daemon)}"
    yield one_line(f"{target}, {figures['at']}")
    kept = f"image {figures['database']['bytes'] / 1e6:,.1f} MB"
    if (log := figures["database"]["log_bytes"]) is not None:
        kept += f", write-ahead log {log / 1e6:,.1f} MB"
    if "database" in figures["settings"]:
        kept += f", database {figures['settings']['database']}"
    yield one_line(kept)


def _state(daemon: dict[str, Any]) -> str:
    if daemon["running"] is None:
        return "running or crashed"
    return f"{'up' if daemon['running'] else 'stopped; was up'} {span(daemon['uptime'])}"


def _populations(figures: dict[str, Any]) -> Iterator[_Row]:
    clients, connections = figures["clients"], figures["connections"]
    bindings, events = figures["bindings"], figures["events"]
    saved = figures["requests"]["save_endp"]["ok"]
    endpoints = connections["endpoints"]
    note = f"{endpoints:,} endpoint{'s' * (endpoints != 1)}"
    if connections["oldest"] is not None:
        note += f", oldest {span(connections['oldest'])}"
    yield "clients", f"{clients['connected']:,}", f"{clients['total']:,}", ""
    yield "connections", f"{connections['cached']:,}", f"{saved:,}", note
    destinations = bindings["destinations"]
    served = f"{destinations:,} destination{'s' * (destinations != 1)}"
    yield "bindings", f"{bindings['live']:,}", "", served
    note = f"{events['dropped']:,} dropped" if events["dropped"] else ""
    if events["oldest"] is not None:
        note = f"oldest {span(events['oldest'])}" + (f", {note}" if note else "")
    yield "events", f"{events['kept']:,}", "", note


def _requests(
    figures: dict[str, Any], rates: dict[str, float] | None, *, brief: bool
) -> Iterator[_Row]:
    for kind, outcomes in figures["requests"].items():
        counts = [outcomes[each] for each in ("ok", "fail", "bad")]
        if not any(counts):
            continue
        hit_rate = outcomes.get("hit_rate")
        shown_rate = "" if hit_rate is None else f"{hit_rate:.1%}"
        rate = _rate(rates, *(f"{kind}_{each}" for each in ("ok", "fail", "bad")))
        yield kind, *(f"{count:,}" for count in counts), shown_rate, *rate
    for name, share in figures["hit_rate"].items():
        if share is not None and not brief:
            yield name.replace("_", " "), "", "", "", f"{share:.1%}"


def _ways_out(
    figures: dict[str, Any], rates: dict[str, float] | None, *, brief: bool
) -> Iterator[_Row]:
    bindings = figures["bindings_out"]
    for way, count in figures["ways_out"].items():
        if brief and not count and not bindings.get(way):
            continue
        of_bindings = f"{bindings[way]:,}" if way in bindings else ""
        yield way, f"{count:,}", of_bindings, *_rate(rates, f"connections_{way}", f"bindings_{way}")


def _limits(limits: dict[str, Any], most: int | None) -> Iterator[_Row]:
    closest = sorted(limits, key=lambda name: -limits[name]["now"] / limits[name]["limit"])[:most]
    for name, each in limits.items():
        if name in closest:
            now, limit = each["now"], each["limit"]
            about = "about " if name in _ABOUT else ""
            yield name, f"{about}{now:,.0f}", f"{limit:,.0f}", f"{now / limit:.0%}"


def _limits_reached(reached: dict[str, int]) -> Iterator[_Row]:
    for name, count in reached.items():
        if count:
            yield name, f"{count:,}"


def _rate(rates: dict[str, float] | None, *counters: str) -> _Row:
    """Return the growth of these counters per second; no cell if there are no rates."""
    if rates is None:
        return ()
    return (f"{sum(rates.get(counter, 0) for counter in counters):,.1f}",)


def _table(header: _Row, rows: Iterable[_Row]) -> list[str]:
    """Return the lines of a table: names, figures aligned to the right, notes."""
    name, *figures = header
    columns = [Column(name, min_width=11), *(Column(each, justify="right") for each in figures)]
    table = Table(*columns, "", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    paper = Console(width=_ROOM, color_system=None, markup=False, highlight=False, emoji=False)
    with paper.capture() as lines:
        paper.print(table)
    return list(map(str.rstrip, lines.get().splitlines()))
