"""Families of metrics, made of recorded answers to the request ``stats``."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from prometheus_client import exposition
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Sample

from scache.screens.exporter.families import families
from scache.vocabulary import COUNTERS
from tests.support.statistics import statistics


class Recorded(Collector):
    def __init__(self, answer: Mapping[str, Any] | None) -> None:
        self.answer = answer

    def collect(self) -> list[Metric]:
        """Return the families of the answer."""
        return list(families(self.answer))


def written(
    answer: Mapping[str, Any] | None, encode: Callable[[Any], bytes] = generate_latest
) -> str:
    """Return the metrics of an answer as text."""
    registry = CollectorRegistry()
    registry.register(Recorded(answer))
    return encode(registry).decode()


def parsed(answer: Mapping[str, Any] | None) -> list[Sample]:
    """Return the samples that the parser of OpenMetrics reads."""
    read = text_string_to_metric_families(written(answer))  # type: ignore[no-untyped-call]
    return [sample for family in read for sample in family.samples]


def samples(answer: Mapping[str, Any] | None) -> dict[tuple[str, frozenset[str]], float]:
    """Return the value of each sample by its name and the values of its labels."""
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value for sample in parsed(answer)
    }


def value(answer: Mapping[str, Any] | None, name: str, *labels: str) -> float:
    """Return the value of one sample."""
    return samples(answer)[name, frozenset(labels)]


def test_daemon_that_does_not_answer_is_down() -> None:
    """There is no other metric, so that no old figure stays."""
    assert samples(None) == {("scache_up", frozenset()): 0}


def test_figures_have_the_names_of_the_manual() -> None:
    """Each kind of figure is there, in base units."""
    answer = statistics(connections_found=7, clients_connected=9)
    assert value(answer, "scache_up") == 1
    assert value(answer, "scache_build_info", "1.2.3") == 1
    assert value(answer, "scache_start_time_seconds") == 1000.5
    assert value(answer, "scache_connections") == 3
    assert value(answer, "scache_connections_closed_total", "found") == 7
    assert value(answer, "scache_clients_connected_total") == 9
    assert value(answer, "scache_limit", "clients") == 10
    assert value(answer, "scache_limit_used", "bindings") == 5
    assert value(answer, "scache_database_size_bytes", "database") == 4096
    assert value(answer, "scache_database_fault") == 0
    assert value(answer, "process_cpu_seconds_total") == 1.5
    assert ("scache_limit", frozenset(["bindings"])) not in samples(answer), "it has no limit"


def test_counters_are_those_since_the_start() -> None:
    """No metric has the total, which persists in a file."""
    figures = samples(statistics(**dict.fromkeys(COUNTERS, 77)))
    assert 77 in figures.values()
    assert not {1000, 1077} & set(figures.values())


def test_database_fault_is_one() -> None:
    """The text of a fault has no bound, so it is no label."""
    answer = statistics()
    answer["database"]["fault"] = "disk full"
    assert value(answer, "scache_database_fault") == 1
    assert "disk full" not in written(answer)


def test_histogram_is_cumulative() -> None:
    """The bucket +Inf holds all."""
    figures = [
        (sample.labels.get("le"), sample.value)
        for sample in parsed(statistics())
        if sample.name.startswith("scache_connection_age_seconds")
    ]
    assert figures == [("0.1", 1), ("1.0", 3), ("10.0", 3), ("+Inf", 7), (None, 7), (None, 123.5)]


def test_class_other_has_what_the_configured_classes_lack() -> None:
    """The sum over the classes is the plain counter."""
    answer = statistics(find_endp_ok=10, find_misses_expired=5)
    answer["classes"] = {
        "requests": {"smtp": {"find_endp": {"ok": 4, "fail": 0, "bad": 0}}},
        "find_misses": {"smtp": {"expired": 2}},
    }
    assert value(answer, "scache_requests_total", "find_endp", "ok", "smtp") == 4
    assert value(answer, "scache_requests_total", "find_endp", "ok", "other") == 6
    assert value(answer, "scache_requests_total", "save_dest", "ok", "other") == 0
    assert value(answer, "scache_find_misses_total", "expired", "smtp") == 2
    assert value(answer, "scache_find_misses_total", "expired", "other") == 3
    assert value(answer, "scache_find_misses_total", "none_left", "other") == 0


def test_figures_of_another_version_are_left_out() -> None:
    """A scrape of an older daemon has the figures that it knows."""
    answer = statistics()
    for name in ("histograms", "process", "classes", "limits", "gauges", "database"):
        del answer[name]
    assert value(answer, "scache_up") == 1


@pytest.mark.parametrize("answer", [None, statistics(find_endp_ok=1)])
def test_promtool_finds_nothing_to_improve(answer: Mapping[str, Any] | None) -> None:
    """Names, types and help texts follow the rules of Prometheus."""
    text = written(answer, exposition.generate_latest)
    found = subprocess.run(
        ("promtool", "check", "metrics"), input=text, capture_output=True, text=True, check=False
    )
    assert found.stdout + found.stderr == ""
    assert found.returncode == 0
