"""The statistics of a running daemon, read by one conversation for each scrape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from scache.client.sync import Client
from scache.clock import wall_time
from scache.errors import ScacheError
from scache.inspection.image import Image
from scache.inspection.reports import instance
from scache.inspection.reports import statistics as report
from scache.store import serialized

DEADLINE: Final = 0.9
"""Seconds for connecting, for the greeting and for the answer together."""

_LIMIT_NAMES: Final = {
    "max_clients": "clients",
    "max_connections": "connections",
    "max_connections_per_endpoint": "connections_per_endpoint",
    "max_bindings_per_destination": "bindings_per_destination",
    "max_bindings": "bindings",
    "max_bytes": "bytes",
    "open_files_limit": "open_files",
}
"""The labels of limits, by the names that an image has; the others are no numbers of things."""


def read(socket: Path) -> Mapping[str, Any] | None:
    """Return the statistics of the daemon on this socket; None if it does not answer in time.

    A daemon that refuses the request, or that has no memory for it, does not answer either.
    """
    try:
        with Client(socket, timeout=DEADLINE) as client:
            snapshot = client.snapshot()
        with Image.from_bytes(serialized.read(snapshot)) as image:
            return from_image(image, wall_time())
    except (ScacheError, OSError, MemoryError):
        return None


def from_image(image: Image, now: float) -> dict[str, Any]:
    """Return the statistics of a daemon from an image that it has just made.

    The counters of a file database are not those of this run only.
    """
    figures = report(image, now, live=True)
    run = instance(image)
    started_at = now if run is None else run.started_at
    sizes = {"database": figures["database"]["bytes"], "log": figures["database"]["log_bytes"]}
    return {
        "version": "" if run is None else run.version,
        "pid": None if run is None else run.pid,
        "started_at": started_at,
        "now": now,
        "uptime": now - started_at,
        "counters": {
            name: {"total": count, "since_start": count}
            for name, count in figures["counters"].items()
        },
        "gauges": {
            "connections": figures["connections"]["cached"],
            "endpoints": figures["connections"]["endpoints"],
            "bindings": figures["bindings"]["live"],
            "destinations": figures["bindings"]["destinations"],
            "clients": figures["clients"]["connected"],
        },
        "limits": {
            _LIMIT_NAMES[name]: {"limit": each["limit"], "used": each["now"]}
            for name, each in figures["limits"].items()
            if name in _LIMIT_NAMES
        },
        "classes": figures["classes"],
        "database": {
            "files": {name: size for name, size in sizes.items() if size is not None},
            "fault": figures["database"]["fault"],
        },
    }
