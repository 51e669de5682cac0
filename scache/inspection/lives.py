"""The life of a label: what was saved for it, how it went, and what its misses lacked."""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple

from scache.inspection import labels
from scache.inspection.image import Image, Value

Column = Literal["endpoint", "destination"]

_MATCHING = """
    SELECT DISTINCT label FROM (
        SELECT {0} AS label FROM event UNION SELECT {0} FROM {1}
    ) WHERE {2} ORDER BY label LIMIT :limit
"""
_TABLES = {"endpoint": "connection", "destination": "binding"}
_LIVE = "SELECT count(*) FROM {1} WHERE {0} = CAST(:label AS TEXT)"
_SAVES = """
    SELECT coalesce(sum(status = 0), 0), max(CASE WHEN status = 0 THEN ttl END) FROM event
    WHERE kind = :save AND {0} = CAST(:label AS TEXT)
"""
_REFUSED = """
    SELECT coalesce(detail, ''), count(*) FROM event
    WHERE kind = :save AND status = 2 AND {0} = CAST(:label AS TEXT) GROUP BY 1 ORDER BY 2 DESC
"""
_GONE = """
    SELECT kind, count(*), avg(age) FROM event
    WHERE status IS NULL AND kind <> 'put_back' AND {0} = CAST(:label AS TEXT)
        AND ({1}) IS NOT NULL
    GROUP BY kind ORDER BY 2 DESC, kind
"""
_FINDS = """
    SELECT count(*), coalesce(sum(status = 0), 0) FROM event
    WHERE kind = :find AND status <> 1 AND {0} = CAST(:label AS TEXT)
"""
_MISSES = """
    SELECT reason, count(*), min(since), max(since) FROM find_miss
    WHERE kind = :find AND {0} = CAST(:label AS TEXT) GROUP BY reason ORDER BY 2 DESC, reason
"""
_BOUND = """
    SELECT DISTINCT endpoint FROM event
    WHERE kind = 'save_dest' AND status = 0 AND destination = CAST(:label AS TEXT)
    ORDER BY endpoint LIMIT 3
"""
_ID = {"endpoint": "connection_id", "destination": "binding_id"}


class Gone(NamedTuple):
    """The connections or bindings that left for one reason."""

    number: int
    mean_age: float | None
    """Seconds since the save; None if no event has an age, as after a step of the clock."""


class Missed(NamedTuple):
    """The finds that missed for one reason."""

    number: int
    shortest: float | None
    """Seconds from what ended to the find; None for a reason without a time."""
    longest: float | None


class Life(NamedTuple):
    """What the audit log and the live tables know of one label."""

    column: Column
    label: bytes
    live: int
    """Connections or bindings that are cached now."""
    saved: int
    ttl: float | None
    """The longest time to live that was granted, in seconds."""
    refused: dict[str, int]
    """Refused saves, by the detail of their events."""
    gone: dict[str, Gone]
    """By close reason; bindings are never found."""
    finds: int
    hits: int
    misses: dict[str | None, Missed]
    """By reason; None for events of an earlier version."""
    endpoints: list[bytes]
    """Of a destination: endpoints that it was bound to, a few of them."""


def lives(image: Image, pattern: bytes, limit: int) -> list[Life]:
    """Return the lives of up to ``limit`` endpoints and destinations that match a pattern.

    The pattern is one of `labels.fits`. If no label matches, it is taken for a field of a label.
    """
    labels.prepare(image)
    for condition in (labels.fits, labels.has_field):
        found = [
            (column, label)
            for column in ("destination", "endpoint")
            for label in _matching(
                image, column, condition("label", "text", pattern), pattern, limit
            )
        ]
        if found:
            return [_life(image, column, label) for column, label in found[:limit]]  # type: ignore[arg-type]
    return []


def _matching(image: Image, column: str, condition: str, pattern: bytes, limit: int) -> list[bytes]:
    sql = _MATCHING.format(column, _TABLES[column], condition)
    rows = image.execute(sql, {"text": pattern, "limit": limit}).rows
    return [label for (label,) in rows if isinstance(label, bytes)]


def _life(image: Image, column: Column, label: bytes) -> Life:
    short = "endp" if column == "endpoint" else "dest"
    parameters: dict[str, Value | str] = {
        "label": label,
        "save": f"save_{short}",
        "find": f"find_{short}",
    }

    def rows(sql: str) -> list[tuple[Value, ...]]:
        return list(image.execute(sql.format(column, _TABLES[column]), parameters).rows)

    ((live,),) = rows(_LIVE)
    ((saved, ttl),) = rows(_SAVES)
    ((finds, hits),) = rows(_FINDS)
    gone = image.execute(_GONE.format(column, _ID[column]), parameters).rows
    return Life(
        column,
        label,
        live,  # type: ignore[arg-type]
        saved,  # type: ignore[arg-type]
        ttl,  # type: ignore[arg-type]
        Counter({_text(why): number for why, number in rows(_REFUSED)}),
        {_text(kind): Gone(number, age) for kind, number, age in gone},  # type: ignore[arg-type]
        finds,  # type: ignore[arg-type]
        hits,  # type: ignore[arg-type]
        {
            None if reason is None else _text(reason): Missed(*others)  # type: ignore[arg-type]
            for reason, *others in rows(_MISSES)
        },
        [endpoint for (endpoint,) in rows(_BOUND)] if column == "destination" else [],  # type: ignore[misc]
    )


def _text(value: Value) -> str:
    assert isinstance(value, bytes)
    return value.decode(errors="backslashreplace")
