"""The table, as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmark.rows import GENUINE, Result, Series

_HEADINGS = (
    "work",
    "ours",
    "reference",
    "ratio",
    "spread",
    "best",
    "cpu",
    "must",
    "aim",
    "",
    "notes",
)
_LEFT = {0, 9, 10}
"""Columns that are text."""


def _figure(value: float, unit: str = "") -> str:
    """Return a number with three digits that matter, and its unit."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}".rstrip()


def _ratio(series: Series) -> str:
    return f"{series.value:.2f}" if series else "-"


def _bound(result: Result, bound: float | None) -> str:
    if bound is None:
        return ""
    return f"{bound:g}" if result.row.judged == "ratio" else f"{bound:g} {result.row.unit}"


def _cells(result: Result) -> Sequence[str]:
    row, ratio, best = result.row, result.ratio, result.best_ratio
    against = "" if row.reference == GENUINE else f"against {row.reference}"
    return (
        row.title,
        _figure(result.ours.value, row.unit) if result.ours else "-",
        _figure(result.reference.value, row.unit) if result.reference else "-",
        _ratio(ratio),
        f"{min(ratio.rounds):.2f}-{max(ratio.rounds):.2f}" if len(ratio.rounds) > 1 else "",
        f"{best:.2f}" if best is not None and len(ratio.rounds) > 1 else "",
        _ratio(result.cpu_ratio) if result.cpu_ratio else "",
        _bound(result, row.must),
        _bound(result, row.aim),
        result.verdict,
        "; ".join(filter(None, [against, result.note])),
    )


def render(results: Iterable[Result]) -> str:
    """Return the table of these results."""
    lines = [_HEADINGS, *map(_cells, results)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in _LEFT else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
