"""The statistics of a daemon as families of metrics, named by the rules of Prometheus.

A counter counts since the start of the daemon's process, so a restart is a reset, which Prometheus
knows. There are no rates and no ratios, and each label has few values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from scache.settings.classes import OTHER
from scache.vocabulary import (
    BINDING_COUNTERS,
    CLIENTS_CONNECTED,
    CONNECTION_COUNTERS,
    EVENTS_DROPPED,
    EVENTS_TRIMMED,
    LIMIT_COUNTERS,
    MISS_COUNTERS,
    OUTCOMES,
    REQUESTS,
)

_GAUGES: Final = {
    "connections": "Connections cached now.",
    "endpoints": "Endpoints with a cached connection.",
    "bindings": "Bindings of destinations to endpoints now.",
    "destinations": "Destinations with a binding.",
    "clients": "Clients served now.",
}

_PROCESS_GAUGES: Final = {
    "resident_bytes": ("process_resident_memory_bytes", "Memory of the daemon in bytes."),
    "open_descriptors": ("process_open_fds", "Open descriptors of the daemon."),
    "start_time": ("process_start_time_seconds", "Start of the daemon, in seconds since 1970."),
}


def families(statistics: Mapping[str, Any] | None) -> Iterator[Metric]:
    """Yield the families of one answer to the request ``stats``; None: the daemon did not answer.

    A figure that a daemon of another version does not have is left out.
    """
    yield GaugeMetricFamily(
        "scache_up", "1 if the daemon answered this scrape, else 0.", int(statistics is not None)
    )
    if statistics is None:
        return
    yield InfoMetricFamily(
        "scache_build", "Version of the daemon.", {"version": str(statistics["version"])}
    )
    yield GaugeMetricFamily(
        "scache_start_time_seconds",
        "Start of the daemon, in seconds since 1970.",
        statistics["started_at"],
    )
    yield from _counters(statistics)
    gauges = statistics.get("gauges", {})
    for name, text in _GAUGES.items():
        if name in gauges:
            yield GaugeMetricFamily(f"scache_{name}", text, gauges[name])
    yield from _limits(statistics.get("limits", {}))
    yield from _ages(statistics.get("histograms", {}))
    yield from _database(statistics.get("database", {}))
    yield from _process(statistics.get("process", {}))


def _counters(statistics: Mapping[str, Any]) -> Iterator[Metric]:
    counts = {name: each["since_start"] for name, each in statistics["counters"].items()}
    classes = statistics.get("classes", {})
    yield _requests(counts, classes.get("requests", {}))
    yield _misses(counts, classes.get("find_misses", {}))
    for name, text, label, names in (
        ("connections_closed", "Connections that left, by reason.", "reason", CONNECTION_COUNTERS),
        ("bindings_closed", "Bindings that left, by reason.", "reason", BINDING_COUNTERS),
        ("limit_hits", "Requests and clients over a limit.", "limit", LIMIT_COUNTERS),
    ):
        family = CounterMetricFamily(f"scache_{name}", text, labels=[label])
        for value, counter in names.items():
            if counter in counts:
                family.add_metric([value], counts[counter])
        yield family
    for counter, text in (
        (CLIENTS_CONNECTED, "Clients that have connected."),
        (EVENTS_TRIMMED, "Events that the audit log has deleted, to keep the newest ones."),
        (EVENTS_DROPPED, "Events that the audit log could not record."),
    ):
        if counter in counts:
            yield CounterMetricFamily(f"scache_{counter}", text, counts[counter])


def _requests(counts: Mapping[str, int], classes: Mapping[str, Any]) -> Metric:
    """Return the requests; those of no configured class are of the class `OTHER`."""
    family = CounterMetricFamily(
        "scache_requests",
        "Requests by kind, status and class of the label.",
        labels=["request", "status", "class"],
    )
    for request in REQUESTS:
        for status in OUTCOMES:
            if (rest := counts.get(f"{request}_{status}")) is None:
                continue
            for name, requests in classes.items():
                if name != OTHER and request in requests:
                    number = requests[request].get(status, 0)
                    family.add_metric([request, status, name], number)
                    rest -= number
            family.add_metric([request, status, OTHER], rest)
    return family


def _misses(counts: Mapping[str, int], classes: Mapping[str, Any]) -> Metric:
    family = CounterMetricFamily(
        "scache_find_misses",
        "Finds that found nothing, by reason and class of the label.",
        labels=["reason", "class"],
    )
    for reason, counter in MISS_COUNTERS.items():
        if (rest := counts.get(counter)) is None:
            continue
        for name, reasons in classes.items():
            if name != OTHER:
                number = reasons.get(reason, 0)
                family.add_metric([reason, name], number)
                rest -= number
        family.add_metric([reason, OTHER], rest)
    return family


def _limits(limits: Mapping[str, Mapping[str, float | None]]) -> Iterator[Metric]:
    most = GaugeMetricFamily("scache_limit", "Limits of the daemon.", labels=["limit"])
    used = GaugeMetricFamily("scache_limit_used", "Use of each limit now.", labels=["limit"])
    for name, each in limits.items():
        if (limit := each.get("limit")) is not None:
            most.add_metric([name], limit)
        if (use := each.get("used")) is not None:
            used.add_metric([name], use)
    yield most
    yield used


def _ages(histograms: Mapping[str, Any]) -> Iterator[Metric]:
    ages = histograms.get("connection_age_seconds")
    if ages is None:
        return
    family = HistogramMetricFamily(
        "scache_connection_age_seconds",
        "Age of connections when they left, by reason.",
        labels=["reason"],
    )
    bounds = [*(str(float(bound)) for bound in ages["buckets"]), "+Inf"]
    for reason, each in ages["reasons"].items():
        buckets = list(zip(bounds, accumulate(each["counts"]), strict=True))
        family.add_metric([reason], buckets, each["sum"])
    yield family


def _database(database: Mapping[str, Any]) -> Iterator[Metric]:
    sizes = GaugeMetricFamily(
        "scache_database_size_bytes", "Bytes of the files of the database.", labels=["file"]
    )
    for file, size in database.get("files", {}).items():
        sizes.add_metric([file], size)
    yield sizes
    fault = database.get("fault") is not None
    yield GaugeMetricFamily(
        "scache_database_fault", "1 if the database cannot be read or written, else 0.", int(fault)
    )


def _process(process: Mapping[str, float]) -> Iterator[Metric]:
    if "cpu_seconds" in process:
        yield CounterMetricFamily(
            "process_cpu_seconds", "Processor time of the daemon.", process["cpu_seconds"]
        )
    for key, (name, text) in _PROCESS_GAUGES.items():
        if key in process:
            yield GaugeMetricFamily(name, text, process[key])
