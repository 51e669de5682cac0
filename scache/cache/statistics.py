"""The statistics that Postfix's scache(8) logs, in the format that log parsers expect."""

from __future__ import annotations

import time

from scache.clock import Clock


class Statistics:
    """Lookups and peaks since the last report (scache(8), connection_cache_status_update_time).

    A hit of ``find_dest`` counts as a domain lookup and not as an address lookup. Only saves
    update the peaks.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._connections = 0
        self._endpoints: dict[bytes, int] = {}
        self._destinations: dict[bytes, int] = {}
        self.bindings = 0
        """The number of bindings."""
        self.size = 0
        """Bytes of the labels and properties of all parked connections and bindings."""
        self._reset()

    def _reset(self) -> None:
        self._since = self._clock.now()
        self.domain_hits = 0
        self.domain_misses = 0
        self.address_hits = 0
        self.address_misses = 0
        self._most_destinations = 0
        self._most_endpoints = 0
        self._most_connections = 0

    def denied(self, *, domain: bool) -> None:
        """Count a hit as a miss, because its connection cannot be sent."""
        if domain:
            self.domain_hits = max(0, self.domain_hits - 1)
            self.domain_misses += 1
        else:
            self.address_hits = max(0, self.address_hits - 1)
            self.address_misses += 1

    def connection_added(self, endpoint: bytes, size: int) -> None:
        """Count a connection that is now parked, with labels and properties of ``size`` bytes."""
        self._endpoints[endpoint] = self._endpoints.get(endpoint, 0) + 1
        self._connections += 1
        self.size += size

    def connection_removed(self, endpoint: bytes, size: int) -> None:
        """Count a connection that is no longer parked."""
        _decrease(self._endpoints, endpoint)
        self._connections -= 1
        self.size -= size

    @property
    def connections(self) -> int:
        """The number of parked connections."""
        return self._connections

    @property
    def endpoints(self) -> int:
        """The number of endpoints that have a parked connection."""
        return len(self._endpoints)

    @property
    def destinations(self) -> int:
        """The number of destinations that have a binding."""
        return len(self._destinations)

    def connections_of(self, endpoint: bytes) -> int:
        """Return the number of parked connections of an endpoint."""
        return self._endpoints.get(endpoint, 0)

    def bindings_of(self, destination: bytes) -> int:
        """Return the number of bindings of a destination."""
        return self._destinations.get(destination, 0)

    def bindings_added(self, destination: bytes, size: int, count: int = 1) -> None:
        """Count new bindings of a destination, with labels and properties of ``size`` bytes."""
        self._destinations[destination] = self._destinations.get(destination, 0) + count
        self.bindings += count
        self.size += size

    def binding_removed(self, destination: bytes, size: int) -> None:
        """Count a binding that was removed."""
        _decrease(self._destinations, destination)
        self.bindings -= 1
        self.size -= size

    def saved(self) -> None:
        """Update the peaks; called after every save."""
        if len(self._destinations) > self._most_destinations:
            self._most_destinations = len(self._destinations)
        if len(self._endpoints) > self._most_endpoints:
            self._most_endpoints = len(self._endpoints)
        if self._connections > self._most_connections:
            self._most_connections = self._connections

    def report(self) -> list[str]:
        """Return the lines to log, and reset the statistics. Return no line if all are zero."""
        lines = []
        if self.domain_hits or self.domain_misses:
            lines.append(_lookups("domain", self.domain_hits, self.domain_misses))
        if self.address_hits or self.address_misses:
            lines.append(_lookups("address", self.address_hits, self.address_misses))
        if self._most_destinations or self._most_endpoints or self._most_connections:
            lines.append(
                f"statistics: max simultaneous domains={self._most_destinations} "
                f"addresses={self._most_endpoints} connection={self._most_connections}"
            )
        if lines:
            # The 15 characters of ctime(3) after the weekday.
            since = time.ctime(self._since + self._clock.offset)
            lines.insert(0, f"statistics: start interval {since[4:19]}")
        self._reset()
        return lines


def _decrease(counts: dict[bytes, int], label: bytes) -> None:
    count = counts.pop(label, 1)
    if count > 1:
        counts[label] = count - 1


def _lookups(kind: str, hits: int, misses: int) -> str:
    success = hits * 100 // (hits + misses)
    return f"statistics: {kind} lookup hits={hits} miss={misses} success={success}%"
