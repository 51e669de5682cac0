"""The table of a soak: what was checked, what was measured, and the bounds."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from harness.soak import good_clients
from harness.soak.latency_probe import Latency

ALONE, AT_ONCE, BETWEEN = "alone", "hostile at once", "between"
"""The phases that the report compares, and the time between two phases, which it omits."""

MEDIAN_RATIO, P99, WORST = 2.0, 15.0, 50.0
"""Bounds for the latency with all hostile clients: the ratio of medians, and milliseconds."""

MEMORY_INTERVAL = 0.5
"""Seconds between two samples of memory."""

WARM = 60.0
"""Seconds of memory samples that are left out, because the daemon is still growing."""
LONG = 10.0
"""Seconds of samples after that from which on memory must be flat."""
RETURN, RETURN_KIB = 1.10, 4096
"""Growth that is allowed when all clients have left: this factor or this size, the larger one."""


class Fact(NamedTuple):
    """One line of the table."""

    database: str
    what: str
    verdict: str
    """ok, FAILED, or missed: a latency above its bound, perhaps because the machine is busy."""
    bound: str
    value: str


class Report:
    """The lines of the table for one run."""

    def __init__(self, database: str) -> None:
        self._database = database
        self.facts: list[Fact] = []

    def add(
        self,
        what: str,
        value: object,
        bound: str = "",
        *,
        ok: bool | None = None,
        timing: bool = False,
    ) -> None:
        """Add a line; ``ok`` is None for a value without a bound."""
        verdict = {None: "", True: "ok", False: "missed" if timing else "FAILED"}[ok]
        self.facts.append(Fact(self._database, what, verdict, bound, str(value)))

    def add_clients(self, reports: Sequence[good_clients.Report]) -> None:
        """Add the connections that the well-behaved clients found."""
        counts = sum((report.counts for report in reports), Counter[str]())
        wrong = [text for report in reports for text in report.wrong]
        found = sum(len(report.tokens) for report in reports)
        tokens = {token for report in reports for token in report.tokens}
        never_saved = sum(
            token % good_clients.TOKENS >= reports[token // good_clients.TOKENS].saved
            for token in tokens
        )
        for text in wrong[:10]:
            self.add("", text, ok=False)
        counts["requests"] = sum(counts[work] for work in good_clients.WORK)
        self.add("wrong hits", len(wrong), f"0 of {found}", ok=not wrong and found > 0)
        self.add("found twice", found - len(tokens), "0", ok=found == len(tokens))
        self.add("found, and never saved", never_saved, "0", ok=not never_saved)
        self.add("requests of good clients", listed(counts))

    def add_latencies(self, latencies: Mapping[str, Latency]) -> None:
        """Add the latencies of each phase, and the ratio of the two that are compared."""
        for name, each in latencies.items():
            if name == BETWEEN:
                continue
            worst = ", ".join(f"{value:.1f}" for value in each.worst)
            text = f"median {each.median:.3f}, p99 {each.p99:.2f}, worst {worst} ms"
            bound, ok = "", None
            if name == AT_ONCE:
                bound = f"p99 {P99:.0f}, worst {WORST:.0f} ms"
                ok = each.p99 < P99 and each.worst[0] < WORST
            self.add(f"latency, {name} ({each.requests})", text, bound, ok=ok, timing=True)
        ratio = latencies[AT_ONCE].median / latencies[ALONE].median
        bound, ok = f"{MEDIAN_RATIO}", ratio <= MEDIAN_RATIO
        self.add("its median, against alone", f"{ratio:.2f}", bound, ok=ok, timing=True)

    def add_memory(self, samples: Sequence[tuple[float, int]], before: int, after: int) -> None:
        """Add memory over time, and memory before and after all clients left; seconds and KiB.

        In a short run the daemon is still growing, so the bound is wide.
        """
        warm = [each for each in samples if each[0] > samples[0][0] + WARM]
        long = len(warm) * MEMORY_INTERVAL >= LONG
        factor, kib, bound = (1.05, 1024, "flat: 5 % or 1 MiB") if long else (1.5, 16384, "no leap")
        seconds, values = zip(*(warm if long else samples), strict=True)
        quarter = max(1, len(values) // 4)
        first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
        slope = statistics.linear_regression(seconds, values).slope * 60 if quarter > 1 else 0.0
        grown = f"{first:.0f} to {last:.0f} KiB, {slope:+.0f} a minute"
        grown += " after the first" if long else "; too short a run to judge"
        flat = last <= max(first * factor, first + kib)
        self.add("memory, with all clients", grown, bound, ok=flat)
        returned = after <= max(before * RETURN, before + RETURN_KIB)
        text = f"{before} to {after} KiB"
        self.add("memory, before and after", text, "10 % or 4 MiB", ok=returned)


def listed(counts: Counter[str]) -> str:
    """Return counts as text, sorted by name."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
