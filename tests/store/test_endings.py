"""The memory of endings, and the histograms of ages."""

from __future__ import annotations

import tracemalloc

import pytest

from scache.store.ages import BUCKETS, ConnectionAges
from scache.store.endings import MAX_LABELS, RECENT, Ending, Endings, Miss

NOW = 1_000_000.0


def test_endings_keep_the_latest_of_a_label() -> None:
    """A find that is sorted in later than an ending does not replace it."""
    endings = Endings()
    endings.found(b"e", NOW)
    endings.of_connection(b"e", "purged", NOW + 1)
    assert endings.of_endpoint(b"e") == Ending(NOW + 1, "purged")
    endings.found(b"e", NOW + 3)
    endings.of_connection(b"e", "expired", NOW + 2)
    assert endings.of_endpoint(b"e") == Ending(NOW + 3, "none_left")


def test_endings_of_endpoints_and_destinations_are_apart() -> None:
    """The same label may name both."""
    endings = Endings()
    endings.of_binding(b"x", "expired", NOW)
    assert endings.of_endpoint(b"x") is None
    assert endings.of_destination(b"x") == Ending(NOW, "expired")


def test_endings_forget_the_labels_that_ended_first() -> None:
    """The memory is bounded in labels and in bytes; a label that ends again is not forgotten."""
    tracemalloc.start()
    endings = Endings()
    for number in range(2 * MAX_LABELS):
        endings.found(b"%d" % number, NOW + number)
        if not number % (MAX_LABELS // 2):
            endings.of_connection(b"0", "expired", NOW + number + 0.5)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(endings) == MAX_LABELS
    assert endings.of_endpoint(b"0") is not None
    assert endings.of_endpoint(b"1") is None
    assert endings.of_endpoint(b"%d" % (MAX_LABELS - 2 * RECENT)) is None
    assert endings.of_endpoint(b"%d" % (MAX_LABELS + 2 * RECENT)) is not None
    assert size < 14 * 2**20


def test_miss_detail_begins_with_the_reason() -> None:
    """The seconds are rounded to one place, and are never negative."""
    assert Miss.after(Ending(NOW - 3.21, "expired"), NOW).detail == "expired 3.2 s ago"
    assert Miss.after(Ending(NOW + 1, "none_left"), NOW).detail == "none_left 0.0 s ago"
    assert Miss.after(None, NOW) == Miss("unknown", "unknown")
    assert Miss.because("fault", "disk full") == Miss("fault", "fault: disk full")


def test_ages_are_counted_by_bucket_and_close_reason() -> None:
    """A bound is part of its bucket; the last count is of all that are older."""
    ages = ConnectionAges()
    for age in (0.0, *BUCKETS, 301.0):
        ages.of["expired"].add(age)
    report = ages.report()
    assert report["buckets"] == [0.1, 0.3, 1, 3, 10, 30, 100, 300]
    assert set(report["reasons"]) == {"found", "expired", "evicted", "hung_up", "purged"}
    assert report["reasons"]["expired"] == {
        "counts": [2, 1, 1, 1, 1, 1, 1, 1, 1],
        "sum": pytest.approx(sum(BUCKETS) + 301),
    }
    assert report["reasons"]["found"] == {"counts": [0] * 9, "sum": 0}
