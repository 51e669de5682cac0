"""The figures of the cache as people read them: one screen, 60 columns or more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import Any

from rich.live import Live
from rich.text import Text

from scache.cli.logs import one_line
from scache.cli.reach import Origin
from scache.cli.tables import Layout, make_console, shortened, span, width_of

_ALWAYS = ("save_endp", "find_endp", "save_dest", "find_dest")
"""Requests that have a line even if there was none."""

_Row = tuple[str, ...]


def show(origin: Origin, figures: dict[str, Any]) -> None:
    """Write the screen to standard output."""
    console = make_console()
    console.print(screen(origin, figures, width_of(console) or 80), soft_wrap=True)


def live(origin: Origin, first: dict[str, Any], rest: Iterable[dict[str, Any]]) -> None:
    """Show the screen, and again in its place with each of the figures that follow."""
    console = make_console()
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as display:
        display.update(screen(origin, first, console.width), refresh=True)
        for figures in rest:
            display.update(screen(origin, figures, console.width), refresh=True)


def screen(origin: Origin, figures: dict[str, Any], width: int) -> Text:
    """Return the figures as text, no line of which is wider than ``width``."""
    rates = figures.get("per_second")
    lines = [
        *_heading(origin, figures),
        "",
        *_table(("", "now", "in all"), _populations(figures)),
        "",
        *_table(
            ("requests", "ok", "fail", "bad", "hit rate", "/s"),
            _requests(figures["requests"], rates),
        ),
        "",
        *_table(("ways out", "connections", "bindings", "/s"), _ways_out(figures, rates)),
    ]
    if figures["limits"]:
        lines += ["", *_table(("limits", "now", "limit", "used"), _limits(figures["limits"]))]
    text = Text("\n".join(shortened(line, width) for line in lines), no_wrap=True)
    fault = figures["database"]["fault"]
    if fault is None:
        return text
    alarm = "\n".join(wrap(one_line(f"DATABASE: {fault}"), width))
    return Text(no_wrap=True).append(alarm, "bold red").append("\n\n").append(text)


def _heading(origin: Origin, figures: dict[str, Any]) -> Iterator[str]:
    daemon = figures["daemon"]
    if daemon:
        state = "up" if daemon["running"] else "stopped; was up"
        state += f" {span(daemon['uptime'])}"
        yield f"scache {daemon['version']}, process {daemon['pid']}, {state}"
    yield one_line(f"{origin}, {figures['at']}")
    kept = f"image {figures['database']['bytes'] / 1e6:,.1f} MB"
    if "database" in figures["settings"]:
        kept += f", database {figures['settings']['database']}"
    yield one_line(kept)


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
    yield "bindings", f"{bindings['live']:,}", "", f"{bindings['destinations']:,} destinations"
    note = f"{events['dropped']:,} dropped" if events["dropped"] else ""
    if events["oldest"] is not None:
        note = f"back {span(events['oldest'])}" + (f", {note}" if note else "")
    yield "events", f"{events['kept']:,}", "", note


def _requests(requests: dict[str, Any], rates: dict[str, float] | None) -> Iterator[_Row]:
    for kind, outcomes in requests.items():
        counts = [outcomes[each] for each in ("ok", "fail", "bad")]
        if not any(counts) and kind not in _ALWAYS:
            continue
        hit_rate = outcomes.get("hit_rate")
        shown_rate = "" if hit_rate is None else f"{hit_rate:.1%}"
        rate = _rate(rates, *(f"{kind}_{each}" for each in ("ok", "fail", "bad")))
        yield kind, *(f"{count:,}" for count in counts), shown_rate, rate


def _ways_out(figures: dict[str, Any], rates: dict[str, float] | None) -> Iterator[_Row]:
    bindings = figures["bindings_out"]
    for way, count in figures["ways_out"].items():
        of_bindings = f"{bindings[way]:,}" if way in bindings else ""
        yield way, f"{count:,}", of_bindings, _rate(rates, f"connections_{way}", f"bindings_{way}")


def _limits(limits: dict[str, Any]) -> Iterator[_Row]:
    for name, each in limits.items():
        now, limit = each["now"] or 0, each["limit"]
        used = f"{now / limit:.0%}" if limit else ""
        yield name, f"{now:,.0f}", f"{limit:,.0f}", used


def _rate(rates: dict[str, float] | None, *counters: str) -> str:
    """Return by how much these grew in a second; nothing if that is not known."""
    if rates is None:
        return ""
    return f"{sum(rates.get(counter, 0) for counter in counters):,.1f}"


def _table(header: _Row, rows: Iterable[_Row]) -> Iterator[str]:
    """Yield lines: names on the left, figures on the right, notes after them."""
    cells = [(*row, "")[: len(header) + 1] for row in ((*header, ""), *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [False, *[True] * (len(header) - 1), False]
    layout = Layout([max(widths[0], 11), *widths[1:]], right)
    return map(layout.line, cells)
