"""The rows of the table: what each measures, against what, and what we demand of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

GENUINE = "genuine"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    """To select it by."""
    title: str
    unit: str = "us"
    reference: str = GENUINE
    """What ours is divided by."""
    must: float | None = None
    aim: float | None = None
    judged: Literal["ratio", "ours"] = "ratio"
    """What `must` and `aim` bound from above."""
    summary: Literal["median", "worst"] = "median"
    """What stands for several rounds."""


ROWS = (
    Row("base-1", "base protocol, 1 connection", must=1.7, aim=1.2),
    Row("base-16", "base protocol, 16 connections", must=0.95, aim=0.7),
    Row("base-64", "base protocol, 64 connections", must=0.9, aim=0.6),
    Row("inline-1", "inline, 1 connection", must=1.2, aim=0.8),
    Row("inline-16", "inline, 16 connections", must=0.7, aim=0.5),
    Row("inline-deep", "inline, 4 connections, 32 pairs deep", must=0.25, aim=0.15),
    Row("cached", "base protocol, 16 connections, {cached:,} cached", must=0.35, aim=0.25),
    Row("save-dest", "save_dest with {cached:,} live bindings", must=0.5, aim=0.3),
    Row("save-dest-again", "the same, saved again"),
    Row(
        "file", "file database, base protocol, 16 connections", "us", "ours, memory", 1.15, aim=1.0
    ),
    Row("audit", "audit trail, base protocol, 16 connections", "us", "ours, audit off", must=1.1),
    Row("audit-deep", "the same, inline, 4 connections, 32 pairs deep", "us", "ours, audit off"),
    Row("flat", "a pair with {cached:,} cached against none", "us", "ours, none", must=1.3),
    Row("flat-genuine", "the same, genuine against genuine", "us", "genuine, none"),
    Row("memory-empty", "resident memory, nothing cached", "MB"),
    Row("memory", "resident memory, {cached:,} cached", "MB", must=45, judged="ours"),
    Row("memory-each", "memory for each connection cached", "KiB", must=1, judged="ours"),
    Row(
        "expiry",
        "worst find while {cached:,} expire at once",
        "ms",
        must=10,
        judged="ours",
        summary="worst",
    ),
    Row("expiry-median", "median find meanwhile", "ms"),
    Row("expiry-quiet", "worst find just before", "ms", summary="worst"),
    Row(
        "snapshot",
        "worst find while snapshots of {cached:,} are taken",
        "ms",
        "ours, quiet",
        must=10,
        judged="ours",
        summary="worst",
    ),
    Row("snapshot-time", "time of a snapshot meanwhile", "ms", must=None, judged="ours"),
    Row("startup", "from exec to the announcement", "ms", "python -c pass", must=10),
    Row("startup-genuine", "the same, against the genuine program", "ms"),
    Row("postfix", "Postfix delivers {messages:,} messages", "s", must=1.05),
)


@dataclass(frozen=True)
class Series:
    """The same thing measured several times."""

    rounds: Sequence[float] = ()
    summary: Literal["median", "worst"] = "median"

    @property
    def value(self) -> float:
        """The one number that stands for them."""
        return max(self.rounds) if self.summary == "worst" else statistics.median(self.rounds)

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.rounds)

    def as_json(self) -> dict[str, object]:
        """Return every figure."""
        if not self:
            return {}
        return {
            self.summary: self.value,
            "min": min(self.rounds),
            "max": max(self.rounds),
            "rounds": list(self.rounds),
        }


@dataclass(frozen=True)
class Result:
    """What came out for a row."""

    row: Row
    ours: Series = field(default_factory=Series)
    reference: Series = field(default_factory=Series)
    cpu_ratio: Series = field(default_factory=Series)
    """The servers' processor time for one, ours divided by the reference's."""
    note: str = ""
    """Why figures are missing, or what to know of them."""

    @property
    def ratio(self) -> Series:
        """Ours divided by the reference: round by round if both have been interleaved."""
        if not (self.ours and self.reference):
            return Series()
        if self.row.summary == "worst" or len(self.ours.rounds) != len(self.reference.rounds):
            return Series([self.ours.value / self.reference.value])
        pairs = zip(self.ours.rounds, self.reference.rounds, strict=False)
        return Series([ours / reference for ours, reference in pairs])

    @property
    def best_ratio(self) -> float | None:
        """The best round of ours divided by the best of the reference: what noise hurts least."""
        if not (self.ours and self.reference) or self.row.summary == "worst":
            return None
        return min(self.ours.rounds) / min(self.reference.rounds)

    @property
    def verdict(self) -> str:
        """Whether it is what it must be, or even what we aim at.

        Where the median and the best rounds disagree on "must", noise decided: unclear.
        """
        by_ratio = self.row.judged == "ratio"
        judged = self.ratio if by_ratio else self.ours
        if not judged or self.row.must is None:
            return ""
        value, best = judged.value, self.best_ratio if by_ratio else None
        if best is not None and (value <= self.row.must) != (best <= self.row.must):
            return "unclear"
        if self.row.aim is not None and value <= self.row.aim:
            return "aim"
        return "ok" if value <= self.row.must else "MISSED"

    def as_json(self) -> dict[str, object]:
        """Return everything that there is to know."""
        return {
            "name": self.row.name,
            "title": self.row.title,
            "unit": self.row.unit,
            "reference_is": self.row.reference,
            "must": self.row.must,
            "aim": self.row.aim,
            "judged": self.row.judged,
            "ours": self.ours.as_json(),
            "reference": self.reference.as_json(),
            "ratio": self.ratio.as_json(),
            "best_ratio": self.best_ratio,
            "cpu_ratio": self.cpu_ratio.as_json(),
            "verdict": self.verdict,
            "note": self.note,
        }
