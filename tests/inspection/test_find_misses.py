"""The views of misses and of deliveries, on events that the test has written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scache.inspection.image import Image
from tests.support.sample_database import NOW, Cached, filling


def rows(path: Path, fill: Callable[[Cached], None], sql: str) -> list[tuple[object, ...]]:
    """Fill a database; return the rows of a statement on it."""
    with filling(path) as cached:
        fill(cached)
    with Image.from_file(path) as image:
        return list(image.execute(sql).rows)


def test_find_miss_has_the_reason_and_the_seconds_of_the_detail(tmp_path: Path) -> None:
    """An event of an earlier version has no reason; a refused find is no miss."""

    def fill(cached: Cached) -> None:
        for detail in ("expired 3.2 s ago", "unknown", "fault: disk full", "limit 0.0 s ago", None):
            cached.event("find_endp", 2, endpoint=b"e", detail=detail)
        for detail in ("limit: clients", "not allowed", "descriptor not sent: no memory"):
            cached.event("find_endp", 2, endpoint=b"e", detail=detail)
        cached.event("find_endp", 0, endpoint=b"e")
        cached.event("find_endp", 1, endpoint=b"e")

    sql = "SELECT reason, since FROM find_miss"
    assert rows(tmp_path / "cache.db", fill, sql) == [
        (b"expired", 3.2),
        (b"unknown", None),
        (b"fault", None),
        (b"limit", 0.0),
        (None, None),
    ]


def test_delivery_is_a_find_dest_and_the_finds_that_follow_it(tmp_path: Path) -> None:
    """It ends with a hit, or with another request than find_endp."""
    steps = [
        ("find_dest", 2),  # the first delivery: it hits at the third find
        ("find_endp", 2),
        ("find_endp", 0),
        ("find_endp", 2),  # without a destination
        ("find_dest", 0),  # the second one
        ("find_endp", 2),  # without a destination
        ("find_dest", 2),  # the third one: it misses
        ("find_endp", 1),  # malformed: ignored
        ("find_endp", 2),
        ("save_endp", 0),
        ("find_endp", 0),  # without a destination
    ]

    def fill(cached: Cached) -> None:
        for number, (kind, status) in enumerate(steps):
            destination = b"d" if kind == "find_dest" else None
            for client in (1, 2):  # their requests alternate
                at = NOW + number
                cached.event(kind, status, at=at, client_id=client, destination=destination)

    sql = """
        SELECT destination, deliveries, hits, misses, rate_per_delivery, finds, rate_per_find
        FROM delivery_hit_rate
    """
    assert rows(tmp_path / "cache.db", fill, sql) == [
        (None, 6, 2, 4, 0.3333, 6, 0.3333),
        (b"d", 6, 4, 2, 0.6667, 12, 0.3333),
    ]
