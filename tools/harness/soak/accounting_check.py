"""The accounting invariants of an image: every connection that was saved is accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from scache import Client
from scache.clock import wall_time
from scache.inspection.checks import WRONG
from scache.inspection.checks import check as check_image
from scache.inspection.image import Image
from scache.inspection.reports import statistics
from scache.store.serialized import read
from scache.vocabulary import WAYS_OUT

LATE = 2.0
"""Seconds after its time to live by which a connection must have expired on a busy machine."""

_LEFT = f"kind IN ({', '.join(repr(way) for way in WAYS_OUT)}) AND connection_id IS NOT NULL"
_SAVED = """
    SELECT s.connection_id, o.age, s.ttl FROM event AS o JOIN event AS s USING (connection_id)
    WHERE s.kind = 'save_endp'"""

CHECKS = {
    "out at another endpoint than saved": f"""
        SELECT o.connection_id FROM (SELECT * FROM event WHERE {_LEFT}) AS o
        JOIN event AS s USING (connection_id)
        WHERE s.kind = 'save_endp' AND o.endpoint <> s.endpoint""",
    "expired too early": f"{_SAVED} AND o.kind = 'expired' AND o.age < s.ttl - 0.001",
    "found when it had expired": f"""
        {_SAVED} AND o.kind IN ('find_endp', 'find_dest') AND o.age > s.ttl + 0.001""",
    "expired too late": f"{_SAVED} AND o.kind = 'expired' AND o.age > s.ttl + {LATE}",
}
"""Rules besides those of ``scache check``; each statement selects the violations."""


class AccountingCheck(NamedTuple):
    """The result of a check."""

    wrong: list[str]
    """A sentence for each violated rule."""
    saved: int
    ways_out: dict[str, int]
    """Connections that left, by close reason."""


@contextmanager
def image_of(client: Client) -> Iterator[Image]:
    """Yield the image of a new snapshot."""
    with Image.from_bytes(read(client.snapshot())) as image:
        yield image


def check(image: Image) -> AccountingCheck:
    """Check an image, whose audit log may have been trimmed."""
    rows = check_image(image, live=True).result.rows
    wrong = [f"{name!r}: {detail!r}" for name, result, _, detail in rows if result == WRONG]
    image.execute("CREATE INDEX by_connection ON event (connection_id, kind)")
    for name, sql in CHECKS.items():
        if found := list(image.execute(f"{sql} LIMIT 5").rows):
            wrong.append(f"{name}: {found}")
    figures = statistics(image, wall_time(), live=True)
    saved, ways_out = figures["counters"]["save_endp_ok"], figures["ways_out"]
    if saved != sum(ways_out.values()) + figures["connections"]["cached"]:
        wrong.append(f"counters: saved {saved}, out {ways_out}, {figures['connections']}")
    if figures["events"]["dropped"]:
        wrong.append(f"{figures['events']['dropped']} events dropped")
    return AccountingCheck(wrong, saved, ways_out)
