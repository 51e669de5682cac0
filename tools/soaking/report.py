"""What a soak came to, as a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Fact:
    """A line of the table."""

    leg: str
    what: str
    value: str
    bound: str = ""
    verdict: str = ""
    """ok, FAILED, or missed: a time that is too long, for which a busy machine may be to blame."""


def judged(
    leg: str, what: str, value: object, bound: str, *, ok: bool, timing: bool = False
) -> Fact:
    """Return a line about something that must hold."""
    verdict = "ok" if ok else "missed" if timing else "FAILED"
    return Fact(leg, what, str(value), bound, verdict)


def render(facts: Iterable[Fact]) -> str:
    """Return the table."""
    lines = [("leg", "what", "", "bound", "value")]
    lines += [(fact.leg, fact.what, fact.verdict, fact.bound, fact.value) for fact in facts]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[-1] = 0
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def as_json(facts: Iterable[Fact]) -> list[dict[str, str]]:
    """Return the table for a file."""
    return [asdict(fact) for fact in facts]
