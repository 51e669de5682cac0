"""A plot of the cost of a pair against the number of connections cached."""

from __future__ import annotations

import statistics
from collections import defaultdict
from itertools import product
from pathlib import Path

from rich.progress import Progress

from harness.bench.load import Option
from harness.bench.rows import OURS, POSTFIX
from harness.bench.scenarios import Bench, contenders, fill, require_descriptors

_STEPS = 8
_ROUNDS = 7
_WORK: dict[str, dict[str, Option]] = {
    "base protocol, 16 connections": {"protocol": "base", "clients": 16},
    "inline, 4 connections, 32 pairs deep": {"protocol": "inline", "clients": 4, "depth": 32},
}

Curves = dict[str, dict[int, list[float]]]
"""Microseconds for a pair, by program and work, then by the number of connections cached."""


def curves(bench: Bench, progress: Progress) -> Curves:
    """Measure both programs with a growing number of connections cached."""
    require_descriptors(bench.cached)
    found: Curves = defaultdict(lambda: defaultdict(list))
    cached = 0
    with contenders((POSTFIX, OURS)) as both:
        for why in both.missing.values():
            progress.console.print(why)
        for step in progress.track(range(_STEPS + 1), description="measuring"):
            before, cached = cached, bench.cached * step // _STEPS
            for server in both.running.values() if step else ():
                fill(bench, server, cached - before)
            for _ in range(min(bench.rounds, _ROUNDS)):
                for work, (label, server) in product(_WORK, both.running.items()):
                    options = _WORK[work]
                    if server.inline or options["protocol"] == "base":
                        sample = bench.pairs(options)(server)
                        found[f"{label}, {work}"][cached].append(sample.each)
    return found


def draw(found: Curves, path: Path) -> None:
    """Write the plot; the bars show the spread over the rounds."""
    from matplotlib.figure import Figure  # slow to import, and needed here only

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for label, curve in found.items():
        middles = list(map(statistics.median, curve.values()))
        spread = [
            [middle - min(each) for middle, each in zip(middles, curve.values(), strict=True)],
            [max(each) - middle for middle, each in zip(middles, curve.values(), strict=True)],
        ]
        axes.errorbar(list(curve), middles, yerr=spread, marker="o", capsize=3, label=label)
    axes.set_xlabel("connections cached")
    axes.set_ylabel("microseconds for a save_endp and a find_endp")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
