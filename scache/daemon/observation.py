"""What observers ask for: the figures of ``stats``, and the followers of ``follow``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple, cast

from scache.cache import Cache
from scache.clock import Clock
from scache.daemon.followers import Followers
from scache.protocol.observation import Histogram, Stats, Use
from scache.store.database import Database
from scache.unix.process import OwnUse
from scache.version import __version__

Limited = dict[str, tuple[int, int]]
"""For each limit the limit, which is 0 if there is none, and what is used."""


class Population(NamedTuple):
    """The sessions of the daemon."""

    clients: int
    observers: int
    sessions: int
    """All that are connected, also those that are refused."""


class Figures:
    """The figures of a running daemon: all are known without a query, a fork or a file."""

    def __init__(
        self,
        clock: Clock,
        database: Database,
        cache: Cache,
        population: Callable[[], Population],
        limits: Callable[[], Limited],
        open_files: int,
    ) -> None:
        """Describe this process, which may have ``open_files`` open files.

        Create this before clients are served: open descriptors are counted then.
        """
        self._clock = clock
        self._database = database
        self._cache = cache
        self._population = population
        self._limits = limits
        self._open_files = open_files
        self._own = OwnUse(clock.offset)
        self._started_at, self._started = clock.stamp(), clock.now()

    def encoded(self) -> bytes:
        """Return the figures of now, in JSON."""
        import json  # not needed without observers

        return json.dumps(self._read(), separators=(",", ":")).encode()

    def _read(self) -> Stats:
        cache, database = self._cache, self._database
        statistics, population = cache.statistics, self._population()
        closing, ages = cache.closer.pending, database.audit_log.connection_ages.report()
        of_clients = statistics.connections + population.sessions + closing
        open_descriptors = self._own.open_descriptors(of_clients)
        limited = self._limits() | {
            "open_files": (self._open_files, open_descriptors),
            "events": (database.audit_rows, database.audit_log.events.kept),
        }
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started_at": round(self._started_at, 3),
            "now": round(self._clock.stamp(), 3),
            "uptime": round(self._clock.now() - self._started, 3),
            "counters": {
                name: {"total": total, "since_start": since_start}
                for name, (total, since_start) in database.counters.read().items()
            },
            "gauges": {
                "connections": statistics.connections,
                "endpoints": statistics.endpoints,
                "bindings": statistics.bindings,
                "destinations": statistics.destinations,
                "clients": population.clients,
                "observers": population.observers,
                "descriptors_closing": closing,
            },
            "limits": {
                name: Use(limit=limit or None, used=used) for name, (limit, used) in limited.items()
            },
            "classes": database.audit_log.classes.figures(),
            "histograms": {"connection_age_seconds": cast(Histogram, ages)},
            "database": {"files": database.sizes, "fault": database.fault},
            "process": {
                "cpu_seconds": round(self._own.cpu_seconds(), 3),
                "resident_bytes": self._own.resident_bytes(),
                "open_descriptors": open_descriptors,
                "start_time": round(self._own.start_time, 3),
            },
        }


class Observation(NamedTuple):
    """What the sessions of observers are given."""

    figures: Callable[[], bytes]
    """Returns the figures of now, in JSON."""
    followers: Followers
