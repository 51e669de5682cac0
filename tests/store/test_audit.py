"""The audit trail in times of trouble: nothing is lost, told twice, or told late."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scache.model import Delivery, Status
from scache.store import LiveRows, event_writer
from scache.store.event_writer import ROWS_AT_ONCE
from tests.support.rig import Rig, rigged
from tests.support.store_fixture import NOW, Opened, connection, locked, no_space, read


@pytest.fixture
def rig(file: Path) -> Iterator[Rig]:
    """Work on a file, whose disk can be full."""
    with rigged(file) as rig:
        yield rig


def events(file: Path) -> list[tuple[Any, ...]]:
    """Return what the trail says: kinds and connections."""
    return read(file, "SELECT kind, connection_id FROM event ORDER BY id")


def count_of(file: Path, name: str) -> int:
    """Return a counter."""
    rows = read(file, f"SELECT value FROM counter WHERE name = '{name}'")
    return int(rows[0][0]) if rows else 0


def find(rig: Rig) -> Delivery:
    """Find a connection that is there."""
    delivery = rig.cache.find_endp(b"e", 1)
    assert delivery is not None
    return delivery


def test_what_happened_while_the_disk_was_full_is_recorded_once_it_is_not(
    rig: Rig, file: Path
) -> None:
    """The commit that succeeds at last leaves no event waiting for another occasion."""
    rig.save()
    with no_space():
        assert not rig.batch.commit()
        rig.cache.delivered(find(rig))
        assert not rig.batch.commit()
        rig.cache.audit_log.request_malformed("find_endp", 1)
        assert not rig.batch.commit()
    assert rig.batch.commit()
    assert [kind for kind, _ in events(file)] == [
        b"save_endp",
        b"find_endp",
        b"found",
        b"find_endp",
    ]
    assert count_of(file, "connections_found") == 1


@pytest.mark.parametrize("audit_rows", [1000, 0])
def test_a_commit_is_due_when_a_client_says_late_that_it_has_its_connection(
    audit_rows: int, file: Path
) -> None:
    """The way out and its counter wait for no other request, though the row went long ago."""
    with rigged(file, audit_rows) as rig:
        rig.save()
        delivery = find(rig)
        assert rig.batch.commit()
        due: list[bool] = []
        rig.batch.on_pending = lambda: due.append(True)
        rig.cache.delivered(delivery)
        assert due


def test_no_more_rows_are_kept_than_are_to_be(file: Path) -> None:
    """The trail is trimmed with the commit that made it grow, however it grew."""
    with rigged(file, audit_rows=5) as rig:
        for _ in range(ROWS_AT_ONCE):
            rig.save()
        assert rig.batch.commit()
        assert len(events(file)) == 5
    with rigged(file, audit_rows=3):
        assert len(events(file)) == 3
        assert count_of(file, "events_trimmed") == 2 * ROWS_AT_ONCE - 3


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_what_is_trimmed_is_counted(kind: str, file: Path) -> None:
    """Nothing that was recorded goes without a trace, and no counter is there while it is 0."""
    with rigged(file if kind == "file" else ":memory:", audit_rows=5) as rig:
        counted = "SELECT value FROM counter WHERE name = 'events_trimmed'"
        for _ in range(5):
            rig.save()
        assert rig.batch.commit()
        assert rig.opened.rows(counted) == []
        for _ in range(ROWS_AT_ONCE):
            rig.save()
            rig.cache.audit_log.request_malformed("unknown", 1)
        assert rig.batch.commit()
        assert rig.opened.rows(counted) == [(2 * ROWS_AT_ONCE,)]


def test_what_is_dropped_is_counted(rig: Rig, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept while the disk is full has a bound, and each event that is dropped counts."""
    monkeypatch.setattr(event_writer, "MAX_PENDING", 3 * ROWS_AT_ONCE)
    for _ in range(ROWS_AT_ONCE):
        rig.save()
    assert rig.batch.commit()
    requests = 0
    with no_space():
        assert rig.cache.save_dest(5, b"d", b"q", b"e", 1) is Status.OK
        assert not rig.batch.commit()
        for _ in range(ROWS_AT_ONCE):
            rig.cache.delivered(find(rig))
        while not rig.batch.counts["events_dropped"]:
            assert rig.cache.find_endp(b"e", 1) is None
            requests += 1
    assert rig.batch.commit()
    happened = 2 * ROWS_AT_ONCE + requests
    assert count_of(file, "events_dropped") == happened
    assert len(events(file)) == ROWS_AT_ONCE + 1
    assert requests <= ROWS_AT_ONCE + 1


def save_and_take(file: Path, audit_rows: int = 1000, *, kept: int = 2) -> None:
    """Crash with so many connections in the cache, and another one on its way to a client."""
    with rigged(file, audit_rows) as rig:
        for _ in range(kept + 1):
            rig.save()
        assert find(rig)
        assert rig.batch.commit()


@pytest.mark.parametrize("audit_rows", [1000, 2, 0])
def test_what_was_on_its_way_in_a_crash_is_counted_as_lost(audit_rows: int, file: Path) -> None:
    """The counters account for every connection, however little of the trail is kept."""
    for _ in range(2):
        save_and_take(file, audit_rows)
    with rigged(file):
        assert count_of(file, "save_endp_ok") == count_of(file, "connections_lost") == 6


def test_what_was_lost_without_a_trail_is_not_lost_again(file: Path) -> None:
    """A run that records nothing loses connections, and the next one that records leaves it so."""
    save_and_take(file)
    with rigged(file, audit_rows=0):
        pass
    with rigged(file):
        assert [kind for kind, _ in events(file)] == [b"save_endp"] * 3
        assert count_of(file, "connections_lost") == 3


@pytest.mark.parametrize("crash", [True, False])
def test_what_was_found_is_not_lost_because_the_event_was_dropped(
    crash: bool, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that was found while events were dropped is not told to be lost."""
    monkeypatch.setattr(event_writer, "MAX_PENDING", ROWS_AT_ONCE)
    with rigged(file) as rig:
        rig.save()
        rig.save()
        assert rig.batch.commit()
        with no_space():
            delivery = find(rig)
            assert not rig.batch.commit()
            rig.cache.delivered(delivery)
            while not rig.batch.counts["events_dropped"]:
                rig.cache.audit_log.request_malformed("unknown", 1)
        assert rig.batch.commit()
        if not crash:
            rig.opened.run(rig.opened.database.stop(NOW))
    with rigged(file):
        assert events(file) == [(b"save_endp", 1), (b"save_endp", 2), (b"lost", 2)]
        assert count_of(file, "connections_lost") == 1


@pytest.mark.parametrize("audit_rows", [1000, 0])
def test_a_binding_that_expires_while_no_daemon_runs_has_a_way_out(
    audit_rows: int, file: Path
) -> None:
    """What the next start clears away is counted, and recorded as what a sweep clears away is."""
    with rigged(file) as rig:
        rig.bind(ttl=2)
        rig.bind(ttl=9, destination=b"other")
        assert rig.batch.commit()
    with rigged(file, audit_rows, now=NOW + 5):
        gone = read(file, "SELECT * FROM event WHERE kind = 'expired'")
        row = (3, NOW + 5, b"expired", None, b"d", b"e", None, 1, None, None, 5, None)
        assert gone == ([row] if audit_rows else [])
        assert count_of(file, "bindings_expired") == 1
        assert read(file, "SELECT destination FROM binding") == [(b"other",)]


def test_the_age_of_what_expires_while_the_database_is_locked_is_known(
    rig: Rig, file: Path
) -> None:
    """Rows can be read while another program writes, so the trail tells how old they were."""
    rig.save(ttl=2)
    assert rig.batch.commit()
    with locked(file):
        rig.clock.time += 3
        rig.sweep()
    assert rig.batch.commit()
    assert read(file, "SELECT age FROM event WHERE kind = 'expired'") == [(3,)]


def test_long_labels_do_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of events with long labels fewer are kept, the newest, after a restart too."""
    monkeypatch.setattr(event_writer, "MAX_LONG_SIZE", 100_000)
    path, sizes = tmp_path / "cache.db", "SELECT count(*), sum(length(endpoint)) FROM event"
    for run in range(2):
        with Opened(path, audit_rows=1000) as opened:
            for number in range(200):
                label = b"%d " % number + b"x" * 5000 * (number % 2)
                opened.database.audit_log.find_missed("find_endp", NOW, 1, endpoint=label)
                if not number % 10:
                    assert opened.database.batch.commit()
            assert opened.database.batch.commit()
            ((rows, size),) = opened.rows(sizes)
            assert 0 < rows <= 100
            assert 50_000 < size <= 100_000 + 100 * 10
            ((last,),) = opened.rows("SELECT endpoint FROM event ORDER BY id DESC LIMIT 1")
            assert last.startswith(b"199 "), run


def test_events_of_a_fault_are_committed_without_another_request(file: Path) -> None:
    """The commit that ends a fault is followed by one with the waiting events."""
    with Opened(file) as opened:
        batch, rows = opened.database.batch, LiveRows(opened.database.batch)
        rows.save_connection(connection(1))
        with no_space():
            assert not batch.commit()
            opened.database.audit_log.find_missed("find_endp", NOW, 1, endpoint=b"e")
            assert not batch.commit()
        while not batch.commit():
            pass
        assert read(file, "SELECT kind FROM event") == [(b"find_endp",)]
