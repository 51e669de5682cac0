"""The audit log during faults: no event is lost, recorded twice or recorded late."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scache.model import Delivery, Status
from scache.store import event_writer
from scache.store.endings import Miss
from scache.store.event_writer import ROWS_AT_ONCE
from scache.store.live_rows import LiveRows
from tests.support.rig import Rig, rigged
from tests.support.store_fixture import NOW, Opened, connection, locked, no_space, read

UNKNOWN = Miss.after(None, NOW)


@pytest.fixture
def rig(file: Path) -> Iterator[Rig]:
    """Make a cache on a file, so that its disk can be full."""
    with rigged(file) as rig:
        yield rig


def events(file: Path) -> list[tuple[Any, ...]]:
    """Return the kinds and connections of the audit log."""
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


def test_events_during_a_full_disk_are_recorded_later(rig: Rig, file: Path) -> None:
    """The first commit that succeeds writes all of them."""
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
def test_late_confirmation_of_a_delivery_makes_a_commit_due(audit_rows: int, file: Path) -> None:
    """The event and its counter are committed without another request."""
    with rigged(file, audit_rows) as rig:
        rig.save()
        delivery = find(rig)
        assert rig.batch.commit()
        due: list[bool] = []
        rig.batch.on_pending = lambda: due.append(True)
        rig.cache.delivered(delivery)
        assert due


def test_audit_log_has_at_most_audit_rows(file: Path) -> None:
    """The commit that adds events also trims the audit log."""
    with rigged(file, audit_rows=5) as rig:
        for _ in range(ROWS_AT_ONCE):
            rig.save()
        assert rig.batch.commit()
        assert len(events(file)) == 5
    with rigged(file, audit_rows=3):
        assert len(events(file)) == 3
        assert count_of(file, "events_trimmed") == 2 * ROWS_AT_ONCE - 3


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_trimmed_events_are_counted(kind: str, file: Path) -> None:
    """The counter does not exist while it is 0."""
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


def test_dropped_events_are_counted(rig: Rig, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is full, the number of waiting events is limited."""
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
    """Crash with ``kept`` cached connections, and another one that is being delivered."""
    with rigged(file, audit_rows) as rig:
        for _ in range(kept + 1):
            rig.save()
        assert find(rig)
        assert rig.batch.commit()


@pytest.mark.parametrize("audit_rows", [1000, 2, 0])
def test_connection_being_delivered_in_a_crash_is_lost(audit_rows: int, file: Path) -> None:
    """The counters account for it, also if the audit log is short or off."""
    for _ in range(2):
        save_and_take(file, audit_rows)
    with rigged(file):
        assert count_of(file, "save_endp_ok") == count_of(file, "connections_lost") == 6


def test_connections_lost_without_an_audit_log_are_not_lost_again(file: Path) -> None:
    """A later run with an audit log does not record the losses of a run without one."""
    save_and_take(file)
    with rigged(file, audit_rows=0):
        pass
    with rigged(file):
        assert [kind for kind, _ in events(file)] == [b"save_endp"] * 3
        assert count_of(file, "connections_lost") == 3


@pytest.mark.parametrize("crash", [True, False])
def test_found_connection_with_a_dropped_event_is_not_lost(
    crash: bool, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was found while events were dropped."""
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
def test_binding_that_expired_while_no_daemon_ran_is_recorded(audit_rows: int, file: Path) -> None:
    """The next start counts and records it like any other expired binding."""
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


def test_event_of_an_expiry_during_a_lock_has_an_age(rig: Rig, file: Path) -> None:
    """Rows can be read while another program writes."""
    rig.save(ttl=2)
    assert rig.batch.commit()
    with locked(file):
        rig.clock.time += 3
        rig.sweep()
    assert rig.batch.commit()
    assert read(file, "SELECT age FROM event WHERE kind = 'expired'") == [(3,)]


def test_events_with_long_labels_are_limited_by_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the newest are kept, also after a restart."""
    monkeypatch.setattr(event_writer, "MAX_LONG_SIZE", 100_000)
    path, sizes = tmp_path / "cache.db", "SELECT count(*), sum(length(endpoint)) FROM event"
    for run in range(2):
        with Opened(path, audit_rows=1000) as opened:
            for number in range(200):
                label = b"%d " % number + b"x" * 5000 * (number % 2)
                opened.database.audit_log.find_missed("find_endp", NOW, 1, UNKNOWN, endpoint=label)
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
            opened.database.audit_log.find_missed("find_endp", NOW, 1, UNKNOWN, endpoint=b"e")
            assert not batch.commit()
        while not batch.commit():
            pass
        assert read(file, "SELECT kind FROM event") == [(b"find_endp",)]
