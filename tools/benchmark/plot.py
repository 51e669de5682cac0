"""A picture: the cost of a pair against the number of connections that are cached."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from itertools import product
from pathlib import Path

from benchmark import servers
from benchmark.errors import NotRun
from benchmark.load import Option
from benchmark.rows import Series
from benchmark.scenarios import (
    GENUINE,
    OURS,
    Bench,
    Contenders,
    fill,
    require_descriptors,
)
from benchmark.servers import Server

_STEPS = 8
_ROUNDS = 7
_WORK: tuple[tuple[str, dict[str, Option]], ...] = (
    ("base protocol, 16 connections", {"protocol": "base", "clients": 16}),
    ("inline, 4 connections, 32 pairs deep", {"protocol": "inline", "clients": 4, "depth": 32}),
)

Curves = dict[str, dict[int, Series]]
"""Microseconds for a pair, by program and work, by the number of connections cached."""


def curves(bench: Bench, say: Callable[[str], None]) -> Curves:
    """Measure both programs while more and more connections are cached."""
    require_descriptors(bench.cached)
    found: Curves = {}
    with ExitStack() as stack:
        both = Contenders(stack, {GENUINE: servers.genuine(), OURS: servers.ours()})
        if both.missing:
            say(both.missing)
        for step in range(_STEPS + 1):
            cached = bench.cached * step // _STEPS
            more = cached - bench.cached * max(step - 1, 0) // _STEPS
            for server in both.running.values() if more else ():
                fill(bench, server, more)
            say(f"{cached} cached")
            for curve, figures in interleaved(bench, both.running).items():
                found.setdefault(curve, {})[cached] = Series(figures)
    return found


def interleaved(bench: Bench, running: Mapping[str, Server]) -> Mapping[str, list[float]]:
    """Measure every program at every work that it knows, in turn, again and again."""
    figures: dict[str, list[float]] = {}
    for _ in range(min(bench.rounds, _ROUNDS)):
        for (work, options), (label, server) in product(_WORK, running.items()):
            with suppress(NotRun):  # the genuine program has no inline mode
                sample = bench.pairs(server, **options)
                figures.setdefault(f"{label}, {work}", []).append(sample.each)
    return figures


def draw(found: Curves, path: Path) -> None:
    """Write the picture; the bars are the spread over the rounds."""
    from matplotlib.figure import Figure  # not needed for anything else

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for label, curve in found.items():
        middles = [statistics.median(series.rounds) for series in curve.values()]
        below = [
            at - min(series.rounds) for at, series in zip(middles, curve.values(), strict=True)
        ]
        above = [
            max(series.rounds) - at for at, series in zip(middles, curve.values(), strict=True)
        ]
        axes.errorbar(list(curve), middles, yerr=[below, above], marker="o", capsize=3, label=label)
    axes.set_xlabel("connections cached")
    axes.set_ylabel("microseconds for a save_endp and a find_endp")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
