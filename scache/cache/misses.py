"""The reason of each miss, decided when the find misses."""

from __future__ import annotations

from scache.cache.statistics import Statistics
from scache.store.endings import Ending, Endings, Miss
from scache.store.live_rows import LiveRows

_ROWS = 64
"""Bindings of a destination, and expired connections of an endpoint, that one decision reads."""


class Misses:
    """Decides why a find missed, from the memory of endings and from rows that are still there.

    A row that has expired is removed up to 100 ms later, and is no hit from the first moment on.
    Its expiry is taken from the row until then. Decisions raise DatabaseFault if the database
    cannot be read.
    """

    def __init__(self, rows: LiveRows, statistics: Statistics, endings: Endings) -> None:
        self._rows = rows
        self._statistics = statistics
        self._endings = endings

    def of_endpoint(self, endpoint: bytes, now: float) -> Miss:
        """Return why an endpoint has no connection: its latest ending decides."""
        return Miss.after(self._of_endpoint(endpoint, now), now)

    def of_destination(self, destination: bytes, now: float) -> Miss:
        """Return why no endpoint of a destination has a connection.

        The latest ending of any endpoint that the destination is bound to decides. Without such a
        binding, or if nothing is remembered of these endpoints, it is the latest ending of a
        binding.
        """
        bindings = []
        if self._statistics.bindings_of(destination):
            bindings = self._rows.endpoints_of_destination(destination, _ROWS)
        endings = [
            self._of_endpoint(endpoint, now)
            for endpoint, expires_at in bindings
            if expires_at > now
        ]
        ending = _latest(endings)
        if ending is None:
            expired = [Ending(at, "expired") for _, at in bindings if at <= now]
            ending = _latest([*expired, self._endings.of_destination(destination)])
        return Miss.after(ending, now)

    def _of_endpoint(self, endpoint: bytes, now: float) -> Ending | None:
        ending = self._endings.of_endpoint(endpoint)
        if not self._statistics.connections_of(endpoint):
            return ending
        expired_at = self._rows.latest_expiry_of_endpoint(endpoint, now, _ROWS)
        return _latest([ending, None if expired_at is None else Ending(expired_at, "expired")])


def _latest(endings: list[Ending | None]) -> Ending | None:
    return max((each for each in endings if each is not None), default=None)
