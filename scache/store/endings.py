"""The memory of endings: how the latest connection or binding of each label ended, and when."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from scache.vocabulary import MISS_REASONS, MissReason

MAX_LABELS = 65_536
"""Labels that are remembered. They take 9.7 MiB, and up to 13.3 MiB after many were forgotten."""

RECENT = 64
"""Endpoints whose finds wait until they are sorted in; see `Endings.found`."""

_TICKS = 1_000_000
"""A time is kept in microseconds."""
_REASON_BITS = 3
_REASON_MASK = (1 << _REASON_BITS) - 1
_OF_WAY_OUT: dict[str, MissReason] = {
    "found": "none_left",
    "expired": "expired",
    "evicted": "limit",
    "hung_up": "hung_up",
    "purged": "purged",
}


class Ending(NamedTuple):
    """Why a label has no connection, and since when."""

    at: float
    """A time of `Clock.now`, in seconds. Of an expiry it is the end of the time to live."""
    reason: MissReason


class Miss(NamedTuple):
    """Why a find missed."""

    reason: MissReason
    detail: str
    """The text in the audit log; it begins with the reason."""

    @classmethod
    def after(cls, ending: Ending | None, now: float) -> Miss:
        """Return the miss of a label whose latest ending is this; None if nothing is remembered."""
        if ending is None:
            return cls("unknown", "unknown")
        at, reason = ending
        return cls(reason, f"{reason} {max(now - at, 0):.1f} s ago")

    @classmethod
    def because(cls, reason: MissReason, why: str) -> Miss:
        """Return a miss with its explanation, for reasons without an ending."""
        return cls(reason, f"{reason}: {why}")


class Endings:
    """The latest ending of each endpoint and destination since the start of the daemon.

    The memory is bounded: the labels whose endings are oldest are forgotten first. It does not
    depend on the audit log.

    A label is known by 60 bits of its hash, because labels may be long. Two labels of the same hash
    are taken for one, which makes a reason wrong and does no other harm. With 65,536 labels the
    probability of such a pair is 2e-9.

    The ending by a find is its time, a float. Another ending is an integer, the time above the
    reason. Both take the least memory, and are no work for the garbage collector.
    """

    def __init__(self) -> None:
        self._latest: OrderedDict[int, float] = OrderedDict()
        """The latest endings by hash, the oldest record first."""
        self._found: dict[int, float] = {}
        """Times of finds that are not in `_latest` yet, by the whole hash of the endpoint."""

    def found(self, endpoint: bytes, at: float) -> None:
        """Remember that a find took a connection.

        This happens tens of thousands of times a second, mostly for few endpoints, so that only the
        latest find of each one is sorted in, with those of other endpoints.
        """
        found = self._found
        found[hash(endpoint)] = at
        if len(found) >= RECENT:
            self._sort_in()

    def of_connection(self, endpoint: bytes, way_out: str, at: float) -> None:
        """Remember how a connection left that was not found."""
        self._record(hash(endpoint), at, _OF_WAY_OUT[way_out])

    def of_binding(self, destination: bytes, way_out: str, at: float) -> None:
        """Remember how a binding left."""
        self._record(~hash(destination), at, _OF_WAY_OUT[way_out])

    def save_refused(self, endpoint: bytes, at: float) -> None:
        """Remember that the save of a connection was refused."""
        self._record(hash(endpoint), at, "refused")

    def binding_refused(self, destination: bytes, at: float) -> None:
        """Remember that the save of a binding was refused."""
        self._record(~hash(destination), at, "refused")

    def of_endpoint(self, endpoint: bytes) -> Ending | None:
        """Return the latest ending of an endpoint; None if nothing is remembered."""
        self._sort_in()
        return self._of(hash(endpoint))

    def of_destination(self, destination: bytes) -> Ending | None:
        """Return the latest ending of a binding of a destination; None if none is remembered."""
        return self._of(~hash(destination))

    def __len__(self) -> int:
        """Return the number of labels that are remembered."""
        self._sort_in()
        return len(self._latest)

    def _record(self, key: int, at: float, reason: MissReason) -> None:
        ending = self._of(key)
        if ending is None or ending.at <= at:
            code = int(at * _TICKS) << _REASON_BITS | MISS_REASONS.index(reason)
            self._latest[key >> 4] = code
        self._latest.move_to_end(key >> 4)
        self._forget()

    def _sort_in(self) -> None:
        latest = self._latest
        for key, at in self._found.items():
            short = key >> 4
            if short in latest:
                latest.move_to_end(short)
                ending = self._of(key)
                if ending is not None and ending.at > at:
                    continue
            latest[short] = at
        self._found.clear()
        self._forget()

    def _forget(self) -> None:
        for _ in range(len(self._latest) - MAX_LABELS):
            self._latest.popitem(last=False)

    def _of(self, key: int) -> Ending | None:
        ending = self._latest.get(key >> 4)
        if ending is None:
            return None
        if isinstance(ending, int):
            return Ending((ending >> _REASON_BITS) / _TICKS, MISS_REASONS[ending & _REASON_MASK])
        return Ending(ending, "none_left")
