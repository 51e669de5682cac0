"""The rows of the table: what each measures, its reference, its limit and its goal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rich.table import Column

OURS, POSTFIX, FILE = "scache", "Postfix", "scache, file"
EMPTY, POSTFIX_EMPTY, AUDIT_OFF = "scache, none", "Postfix, none", "scache, audit off"
"""Labels of the programs under measurement."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    """The name for --rows."""
    title: str
    unit: str = "us"
    reference: str = POSTFIX
    """The label of the program whose figures are the divisor."""
    must: float | None = None
    aim: float | None = None
    judged: Literal["ratio", "ours"] = "ratio"
    """The figure of which `must` and `aim` are upper bounds."""
    summary: Literal["median", "worst"] = "median"
    """The figure that represents several rounds."""
    ours: str = OURS
    """The label of the program that is measured."""


ROWS = (
    Row("base-1", "base protocol, 1 connection", must=1.7, aim=1.2),
    Row("base-16", "base protocol, 16 connections", must=0.95, aim=0.7),
    Row("file", "file database, the same", reference=OURS, must=1.15, aim=1.0, ours=FILE),
    Row("base-64", "base protocol, 64 connections", must=0.9, aim=0.6),
    Row("inline-1", "inline, 1 connection", must=1.2, aim=0.8),
    Row("inline-16", "inline, 16 connections", must=0.7, aim=0.5),
    Row("inline-deep", "inline, 4 connections, 32 pairs deep", must=0.25, aim=0.15),
    Row("cached", "base protocol, 16 connections, {cached:,} cached", must=0.35, aim=0.25),
    Row("save-dest", "save_dest with {cached:,} live bindings", must=0.5, aim=0.3),
    Row("save-dest-again", "the same, saved again"),
    Row("audit", "audit log, base protocol, 16 connections", reference=AUDIT_OFF, must=1.1),
    Row("audit-deep", "the same, inline, 4 connections, 32 pairs deep", reference=AUDIT_OFF),
    Row("flat", "a pair with {cached:,} cached against none", reference=EMPTY, must=1.3),
    Row("flat-postfix", "the same, Postfix against Postfix", "us", POSTFIX_EMPTY, ours=POSTFIX),
    Row("memory-empty", "resident memory, nothing cached", "MB"),
    Row("memory", "resident memory, {cached:,} cached", "MB", must=45, judged="ours"),
    Row("memory-each", "memory for each connection cached", "KiB", must=1, judged="ours"),
    Row(
        "expiry", "worst find while {cached:,} expire at once", "ms",
        must=10, judged="ours", summary="worst",
    ),
    Row("expiry-median", "median find meanwhile", "ms"),
    Row("expiry-quiet", "worst find just before", "ms", summary="worst"),
    Row(
        "snapshot", "worst find while snapshots of {cached:,} are taken", "ms",
        reference="scache, quiet", must=10, judged="ours", summary="worst",
    ),
    Row("snapshot-time", "time of a snapshot meanwhile", "ms", judged="ours"),
    Row("startup", "from exec to the announcement", "ms", "python -c pass", must=10),
    Row("startup-postfix", "the same, against Postfix", "ms"),
    Row("postfix", "Postfix delivers {messages:,} messages", "s", must=1.05),
)  # fmt: skip

COLUMNS: Sequence[str | Column] = (
    *("work", Column("ours", justify="right"), Column("reference", justify="right")),
    *(Column(name, justify="right") for name in ("ratio", "spread", "best", "cpu", "must", "aim")),
    *("", "notes"),
)
"""The columns of the table; `Result.cells` returns their values."""


@dataclass(frozen=True)
class Result:
    """The result for a row."""

    row: Row
    ours: Sequence[float] = ()
    """One figure for each round."""
    reference: Sequence[float] = ()
    cpu_ratio: Sequence[float] = ()
    """Processor time of the servers for each piece of work, as a ratio."""
    note: str = ""
    """The reason why figures are missing, or a remark on them."""

    def value(self, rounds: Sequence[float]) -> float:
        """Return the figure that represents several rounds."""
        return max(rounds) if self.row.summary == "worst" else statistics.median(rounds)

    @property
    def ratio(self) -> list[float]:
        """The ratio to the reference, for each round if the rounds were interleaved."""
        if not (self.ours and self.reference):
            return []
        if self.row.summary == "worst" or len(self.ours) != len(self.reference):
            return [self.value(self.ours) / self.value(self.reference)]
        return [one / other for one, other in zip(self.ours, self.reference, strict=True)]

    @property
    def best_ratio(self) -> float | None:
        """The ratio of the best rounds, which noise affects least."""
        if not (self.ours and self.reference) or self.row.summary == "worst":
            return None
        return min(self.ours) / min(self.reference)

    @property
    def verdict(self) -> str:
        """The comparison with `must` and `aim`.

        It is "unclear" if the median and the best rounds disagree on `must`, because of noise.
        """
        by_ratio, must, aim = self.row.judged == "ratio", self.row.must, self.row.aim
        judged = self.ratio if by_ratio else self.ours
        if not judged or must is None:
            return ""
        value, best = self.value(judged), self.best_ratio if by_ratio else None
        if best is not None and (value <= must) != (best <= must):
            return "unclear"
        if aim is not None and value <= aim:
            return "aim"
        return "ok" if value <= must else "MISSED"

    def cells(self) -> tuple[str, ...]:
        """Return the values for a line of the table."""
        row, ratio, best = self.row, self.ratio, self.best_ratio
        unit = "" if row.judged == "ratio" else f" {row.unit}"
        against = "" if row.reference == POSTFIX else f"against {row.reference}"
        return (
            row.title,
            *(
                f"{_three_digits(self.value(rounds))} {row.unit}" if rounds else "-"
                for rounds in (self.ours, self.reference)
            ),
            f"{self.value(ratio):.2f}" if ratio else "-",
            f"{min(ratio):.2f}-{max(ratio):.2f}" if len(ratio) > 1 else "",
            f"{best:.2f}" if best is not None and len(ratio) > 1 else "",
            f"{self.value(self.cpu_ratio):.2f}" if self.cpu_ratio else "",
            *("" if bound is None else f"{bound:g}{unit}" for bound in (row.must, row.aim)),
            self.verdict,
            "; ".join(filter(None, [against, self.note])),
        )

    def as_json(self) -> dict[str, object]:
        """Return every figure as values for JSON."""

        def summed_up(rounds: Sequence[float]) -> dict[str, object]:
            if not rounds:
                return {}
            figures = {"min": min(rounds), "max": max(rounds), "rounds": list(rounds)}
            return {self.row.summary: self.value(rounds), **figures}

        return {
            **asdict(self.row),
            "reference_is": self.row.reference,
            "ours": summed_up(self.ours),
            "reference": summed_up(self.reference),
            "ratio": summed_up(self.ratio),
            "best_ratio": self.best_ratio,
            "cpu_ratio": summed_up(self.cpu_ratio),
            "verdict": self.verdict,
            "note": self.note,
        }


def _three_digits(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
