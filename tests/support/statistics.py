"""An answer to the request ``stats``, for tests of what is made of it."""

from __future__ import annotations

from typing import Any

from scache.vocabulary import COUNTERS

BUCKETS = [0.1, 1, 10]


def statistics(**changed: int) -> dict[str, Any]:
    """Return an answer with every figure; ``changed`` are counters that are not 0."""
    counters = {name: {"total": 1000, "since_start": 0} for name in COUNTERS}
    for name, value in changed.items():
        counters[name] = {"total": 1000 + value, "since_start": value}
    return {
        "version": "1.2.3",
        "pid": 42,
        "started_at": 1000.5,
        "now": 2000.0,
        "uptime": 999.5,
        "counters": counters,
        "gauges": {
            "connections": 3,
            "endpoints": 2,
            "bindings": 5,
            "destinations": 4,
            "clients": 1,
            "observers": 1,
        },
        "limits": {"clients": {"limit": 10, "used": 1}, "bindings": {"limit": None, "used": 5}},
        "histograms": {
            "connection_age_seconds": {
                "buckets": BUCKETS,
                "reasons": {"found": {"counts": [1, 2, 0, 4], "sum": 123.5}},
            }
        },
        "classes": {"requests": {}, "find_misses": {}},
        "database": {"files": {"database": 4096, "log": 0}, "fault": None},
        "process": {
            "cpu_seconds": 1.5,
            "resident_bytes": 1_000_000,
            "open_descriptors": 20,
            "start_time": 999.75,
        },
    }
