"""Lifetimes on CLOCK_BOOTTIME, and the effect of clock steps on the database."""

from __future__ import annotations

import logging
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from scache import clock as clock_module
from scache.cache.expiry import GRAIN
from scache.clock import Clock
from scache.inspection.image import Image
from scache.inspection.reports import instance, remembers, statistics
from scache.model import Peer, Status
from scache.store import live_rows, steps
from tests.support.clocks import HandClock
from tests.support.rig import Rig, rigged
from tests.support.store_fixture import NOW, locked, no_space, read

NIGHT = 8 * 3600
YEAR = 365 * 86400
PEER = Peer(1, 2, 3)

BOTH_WAYS = pytest.mark.parametrize("step", [3600, -3600, YEAR, -YEAR, 1.25, -1.25])


def set_wall_clock(rig: Rig, seconds: float) -> None:
    """Set the clock by this number of seconds, and let the daemon check it."""
    rig.clock.set_by += seconds
    rig.sweep()


TIMES = {
    "connection": "SELECT saved_at, expires_at FROM connection ORDER BY id",
    "binding": "SELECT saved_at, expires_at FROM binding ORDER BY id",
    "client": "SELECT connected_at, disconnected_at FROM client ORDER BY id",
    "instance": "SELECT started_at, booted_at, stopped_at FROM instance ORDER BY id",
    "event": "SELECT at FROM event ORDER BY id",
    "clock_step": "SELECT at, offset FROM clock_step ORDER BY rowid",
}


def times(rig: Rig) -> dict[str, list[Any]]:
    """Return every time in the database, by table."""
    return {table: rig.opened.rows(sql) for table, sql in TIMES.items()}


def test_find_returns_nothing_that_expired_while_the_machine_slept(rig: Rig) -> None:
    """Neither find_endp nor find_dest returns it; the binding has expired as well."""
    rig.save(ttl=10)
    rig.bind(ttl=10)
    rig.clock.time += NIGHT
    assert rig.cache.find_endp(b"e", 1) is None
    assert rig.cache.find_dest(b"d", 1) is None
    kept = rig.save(ttl=10)
    assert rig.cache.find_dest(b"d", 1) is None  # its binding is over
    rig.sweep()
    assert rig.descriptors.open == {kept}
    assert rig.batch.commit()
    expired = rig.opened.rows("SELECT age FROM event WHERE kind = 'expired'")
    assert expired == [(NIGHT,), (NIGHT,)]


@BOTH_WAYS
def test_step_moves_the_times_of_live_rows(rig: Rig, step: float) -> None:
    """Connections, bindings, connected clients and the run are live; events are not."""
    rig.cache.client_connected(PEER)
    rig.cache.client_disconnected(rig.cache.client_connected(PEER))
    rig.save(ttl=5)
    rig.bind(ttl=9)
    rig.clock.time += 1
    assert rig.batch.commit()
    before = times(rig)
    set_wall_clock(rig, step)
    assert rig.batch.commit()
    assert times(rig) == {
        "connection": [(NOW + step, NOW + step + 5)],
        "binding": [(NOW + step, NOW + step + 9)],
        "client": [(NOW + step, None), (NOW, NOW)],
        "instance": [(NOW + step, step, None)],
        "event": before["event"],
        "clock_step": [(NOW + 1 + step, step)],
    }
    assert len(before["event"]) == 2


@BOTH_WAYS
def test_step_changes_no_lifetime(rig: Rig, step: float) -> None:
    """Each connection and binding is found until its ttl ends."""
    rig.save(ttl=5)
    rig.bind(ttl=5)
    rig.bind(ttl=9, destination=b"long")
    rig.save(ttl=9)
    rig.clock.time += 1
    set_wall_clock(rig, step)
    rig.clock.time += 3.999
    first = rig.cache.find_dest(b"d", 1)
    assert first is not None
    rig.cache.put_back(first)
    assert rig.sweep() <= NOW + 5 + GRAIN
    rig.clock.time = NOW + 5
    assert rig.cache.find_dest(b"d", 1) is None
    rig.clock.time += GRAIN
    rig.sweep()
    assert len(rig.descriptors.open) == 1
    assert rig.opened.rows("SELECT destination FROM binding") == [(b"long",)]
    rig.clock.time = NOW + 9
    assert rig.cache.find_dest(b"long", 1) is None
    rig.clock.time += GRAIN
    assert rig.sweep() == math.inf


def test_steps_add_up(rig: Rig) -> None:
    """Each has its row; a save in between has the time of the clock at that moment."""
    rig.save(ttl=10)
    for step in (3600, -7200, 60):
        set_wall_clock(rig, step)
        rig.clock.time += 1
        rig.save(ttl=10, endpoint=b"later")
    saved = [saved_at for saved_at, _ in times(rig)["connection"]]
    assert saved == [NOW - 3540, NOW - 3539, NOW - 3538, NOW - 3537]
    steps_taken = times(rig)["clock_step"]
    assert steps_taken == [(NOW + 3600, 3600), (NOW + 1 - 3600, -7200), (NOW + 2 - 3540, 60)]


def test_changes_of_a_second_or_less_add_up(rig: Rig) -> None:
    """Times are right within a second, and small corrections of the clock cost no writes."""
    rig.save(ttl=10)
    for step in (1, -1, 0.75):
        set_wall_clock(rig, step)
        assert times(rig)["connection"] == [(NOW, NOW + 10)]
        assert times(rig)["clock_step"] == []
    set_wall_clock(rig, 0.5)
    assert times(rig)["connection"] == [(NOW + 1.25, NOW + 11.25)]
    assert times(rig)["clock_step"] == [(NOW + 1.25, 1.25)]


def test_step_is_one_line_in_the_log(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The line has the direction and the number of seconds."""
    with caplog.at_level(logging.WARNING):
        set_wall_clock(rig, 3600)
        set_wall_clock(rig, -90.5)
        set_wall_clock(rig, 0.5)
    moved = "the times of what is cached were moved with it"
    assert [record.getMessage() for record in caplog.records] == [
        f"the wall clock was set forward by 3600.000 s: {moved}",
        f"the wall clock was set backward by 90.500 s: {moved}",
    ]


def test_steps_are_kept_up_to_a_limit(rig: Rig) -> None:
    """The oldest rows are deleted, so that a clock that changes often cannot fill the disk."""
    taken = [*range(2, steps.MAX_STEPS + 5)]
    for step in taken:
        set_wall_clock(rig, step)
    kept = [offset for _, offset in times(rig)["clock_step"]]
    assert kept == taken[-steps.MAX_STEPS :]


def test_step_during_a_lock_is_applied_later(file_rig: Rig) -> None:
    """The times move once for each step, in order, when the lock is free."""
    file_rig.save(ttl=10)
    file_rig.bind(ttl=10)
    assert file_rig.batch.commit()
    with locked(file_rig.path):
        for step in (3600, -60):
            file_rig.clock.set_by += step
            file_rig.cache.expire()
            file_rig.clock.time += 1
        assert read(file_rig.path, "SELECT saved_at FROM connection") == [(NOW,)]
    assert file_rig.batch.commit()
    assert file_rig.sweep() == NOW + 10
    for table in ("connection", "binding"):
        rows = read(file_rig.path, f"SELECT saved_at, expires_at FROM {table}")
        assert rows == [(NOW + 3540, NOW + 3550)]
    assert read(file_rig.path, "SELECT * FROM clock_step") == [
        (NOW + 3600, 3600),
        (NOW + 1 + 3540, -60),
    ]
    assert file_rig.cache.find_dest(b"d", 1) is not None


def test_step_on_a_full_disk_is_applied_later(file_rig: Rig) -> None:
    """The repeated batch has the step between the two saves."""
    file_rig.save(ttl=9)
    with no_space():
        set_wall_clock(file_rig, 3600)
        file_rig.save(ttl=9, endpoint=b"f")
        assert not file_rig.batch.commit()
        set_wall_clock(file_rig, 60)
        assert not file_rig.batch.commit()
        live_rows = file_rig.opened.rows("SELECT saved_at FROM connection")
        assert live_rows == [(NOW + 3660,), (NOW + 3660,)]
    assert file_rig.batch.commit()
    assert read(file_rig.path, "SELECT saved_at FROM connection") == live_rows
    assert read(file_rig.path, "SELECT offset FROM clock_step") == [(3600,), (60,)]
    file_rig.clock.time += 8.999
    assert file_rig.cache.find_endp(b"e", 1) is not None
    assert file_rig.cache.find_endp(b"f", 1) is not None


def test_binding_survives_a_step_when_the_lock_ends_at_the_worst_moment(
    file_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query of rows that the step has not moved yet must not decide what has expired."""
    file_rig.bind(ttl=10)
    assert file_rig.batch.commit()
    removing = live_rows.LiveRows.remove_binding
    with ExitStack() as lock:
        lock.enter_context(locked(file_rig.path))

        def unlocked_first(rows: live_rows.LiveRows, destination: bytes, binding_id: int) -> None:
            lock.close()
            removing(rows, destination, binding_id)

        monkeypatch.setattr(live_rows.LiveRows, "remove_binding", unlocked_first)
        file_rig.clock.set_by += 3600
        file_rig.cache.expire()
    assert file_rig.batch.commit()
    assert file_rig.sweep() == NOW + 10
    assert read(file_rig.path, "SELECT count(*) FROM binding") == [(1,)]


@BOTH_WAYS
@pytest.mark.parametrize("committed", [True, False], ids=["committed", "in one batch"])
def test_restored_connection_keeps_its_remaining_ttl_across_a_step(
    rig: Rig, step: float, committed: bool
) -> None:
    """The clock is set during a delivery, and then the client disconnects."""
    rig.save(ttl=5)
    if committed:
        assert rig.batch.commit()
    delivery = rig.cache.find_endp(b"e", 1)
    assert delivery is not None
    rig.clock.time += 1
    set_wall_clock(rig, step)
    rig.cache.put_back(delivery)
    assert times(rig)["connection"] == [(NOW + step, NOW + 5 + step)]
    assert rig.batch.commit()
    assert times(rig)["connection"] == [(NOW + step, NOW + 5 + step)]
    ages = rig.opened.rows("SELECT kind, age FROM event WHERE age IS NOT NULL ORDER BY kind")
    assert ages == [(b"find_endp", 0), (b"put_back", 1)]
    rig.clock.time = NOW + 4.999
    assert rig.cache.find_endp(b"e", 1) == delivery._replace(found_at=NOW + 4.999)


def test_restored_connection_has_the_right_time_if_the_step_waits(file_rig: Rig) -> None:
    """Its row is written after the statement that moves the other rows."""
    file_rig.save(ttl=5)
    delivery = file_rig.cache.find_endp(b"e", 1)
    assert delivery is not None
    assert file_rig.batch.commit()
    with locked(file_rig.path):
        file_rig.clock.set_by -= 3600
        file_rig.cache.expire()
        file_rig.cache.put_back(delivery)
    assert file_rig.batch.commit()
    assert read(file_rig.path, "SELECT expires_at FROM connection") == [(NOW - 3595,)]
    assert file_rig.cache.find_endp(b"e", 1) == delivery


@BOTH_WAYS
def test_age_after_a_step_is_the_time_in_the_cache(rig: Rig, step: float) -> None:
    """The age of found, expired and purged connections does not depend on the wall clock."""
    for endpoint in (b"found", b"expired", b"purged"):
        rig.save(ttl=5, endpoint=endpoint)
    rig.bind(ttl=5)
    delivery = rig.cache.find_endp(b"found", 1)
    assert delivery is not None
    rig.clock.time += 2
    set_wall_clock(rig, step)
    rig.cache.delivered(delivery)
    assert rig.cache.purge_endp(b"purged", 10, 1) == 1
    rig.clock.time = NOW + 6
    rig.sweep()
    assert rig.batch.commit()
    ages = "SELECT connection_id IS NULL, kind, age FROM event WHERE age IS NOT NULL ORDER BY 1, 2"
    assert rig.opened.rows(ages) == [
        (0, b"expired", 6),
        (0, b"find_endp", 0),
        (0, b"found", 2),
        (0, b"purged", 2),
        (1, b"expired", 6),
    ]


@BOTH_WAYS
def test_binding_keeps_its_lifetime_when_the_clock_is_set_between_two_runs(
    tmp_path: Path, step: float
) -> None:
    """In the same boot the next run detects the step, and records it."""
    file = tmp_path / "cache.db"
    with rigged(file) as rig:
        rig.bind(ttl=10)
        assert rig.batch.commit()
        rig.opened.run(rig.opened.database.stop(NOW + 1))
    clock = HandClock(NOW + 2)
    clock.set_by = step
    with rigged(file, now=clock) as rig:
        assert times(rig)["binding"] == [(NOW + step, NOW + 10 + step)]
        assert times(rig)["clock_step"] == [(NOW + 2 + step, step)]
        assert times(rig)["instance"] == [(NOW, 0, NOW + 1), (NOW + 2 + step, step, None)]
        assert rig.sweep() == NOW + 10
        assert len(times(rig)["clock_step"]) == 1


def test_next_run_has_the_scale_of_the_last_if_the_clock_moved_little(tmp_path: Path) -> None:
    """Small differences of many runs must not add up in their bindings."""
    file = tmp_path / "cache.db"
    for run in range(4):
        clock = HandClock(NOW + run)
        clock.offset = clock.set_by = 0.75 * run
        with rigged(file, now=clock) as rig:
            if run == 0:
                rig.bind(ttl=10)
            assert rig.sweep() == NOW + 10
            assert rig.batch.commit()
    assert read(file, "SELECT offset FROM clock_step") == [(1.5,)]


@pytest.mark.parametrize("step", [3600, -3600])
def test_ages_of_lost_connections_are_right_after_a_step(tmp_path: Path, step: float) -> None:
    """The rows of the crashed daemon are moved before they are deleted."""
    file = tmp_path / "cache.db"
    with rigged(file) as rig:
        rig.cache.client_connected(PEER)
        rig.save(ttl=10)
        assert rig.batch.commit()
    clock = HandClock(NOW + 4)
    clock.set_by = step
    with rigged(file, now=clock) as rig:
        lost = rig.opened.rows("SELECT at, age FROM event WHERE kind = 'lost'")
        assert lost == [(NOW + 4 + step, 4)]
        assert times(rig)["client"] == [(NOW + step, NOW + 4 + step)]
        assert times(rig)["instance"][0] == (NOW + step, step, None)


def test_ages_are_not_negative_after_another_boot_with_an_earlier_clock(tmp_path: Path) -> None:
    """The time that the machine was off is unknown, so bindings live for at most ttl_limit."""
    file = tmp_path / "cache.db"
    with rigged(file) as rig:
        rig.save(ttl=10)
        delivery = rig.save(ttl=10, endpoint=b"on its way")
        assert delivery is not None
        rig.bind(ttl=10)
        assert rig.batch.commit()
        assert rig.cache.find_endp(b"on its way", 1) is not None
        assert rig.batch.commit()
    clock = HandClock(NOW - 5000)
    clock.boot = "another"
    with rigged(file, now=clock) as rig:
        lost = rig.opened.rows("SELECT age FROM event WHERE kind = 'lost'")
        assert lost == [(0,), (0,)]
        ((saved_at, expires_at),) = times(rig)["binding"]
        assert (saved_at, expires_at) == (NOW - 5000, NOW - 5000 + 300)
        assert times(rig)["clock_step"] == []


def test_age_of_a_connection_lost_in_delivery_is_unknown_after_a_step(tmp_path: Path) -> None:
    """Only the event of its save has a time, which does not move with the clock."""
    file = tmp_path / "cache.db"
    with rigged(file) as rig:
        rig.save(ttl=10)
        assert rig.batch.commit()
        set_wall_clock(rig, -3600)
        assert rig.cache.find_endp(b"e", 1) is not None
        assert rig.batch.commit()
        clock = HandClock(NOW + 1)
        clock.set_by = rig.clock.set_by
    with rigged(file, now=clock) as rig:
        assert rig.opened.rows("SELECT age FROM event WHERE kind = 'lost'") == [(None,)]


def test_report_names_the_begin_of_its_interval_by_the_clock_as_it_is_set(rig: Rig) -> None:
    """The line has the local time, like that of Postfix's scache(8)."""
    rig.cache.statistics.report()
    began = rig.clock.time
    rig.clock.time += 60
    set_wall_clock(rig, 86400)
    assert rig.cache.find_endp(b"e", 1) is None
    line = rig.cache.statistics.report()[0]
    assert line == f"statistics: start interval {time.ctime(began + 86400)[4:19]}"


@BOTH_WAYS
def test_follower_recognizes_the_run_after_a_step(rig: Rig, step: float) -> None:
    """`scache events --follow` must not mistake it for another run, with ids of its own."""

    def image() -> Image:
        assert rig.batch.commit()
        return Image.from_bytes(rig.batch.serialize())

    with image() as before:
        run = instance(before)
        assert run is not None
        set_wall_clock(rig, step)
        with image() as after:
            assert remembers(after, run)
            assert remembers(before, run)
    with rigged(":memory:", now=NOW + 10) as other:
        assert other.batch.commit()
        with Image.from_bytes(other.batch.serialize()) as another:
            assert not remembers(another, run)


def test_statistics_have_no_negative_age(rig: Rig) -> None:
    """Times of an image may be up to a second ahead of the reader's clock."""
    rig.save(ttl=10)
    assert rig.batch.commit()
    with Image.from_bytes(rig.batch.serialize()) as image:
        figures = statistics(image, NOW - 0.5, live=True)
    assert figures["daemon"]["uptime"] == 0
    assert figures["connections"]["oldest"] == figures["events"]["oldest"] == 0
    assert figures["connections"]["next_expiry"] == 10.5


class TestClock:
    def test_now_is_the_time_since_boot(self) -> None:
        """It is the uptime of proc(5), which goes on while the machine sleeps."""
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        now = Clock().now()
        assert before <= now <= time.clock_gettime(time.CLOCK_BOOTTIME)

    def test_stamp_is_wall_time(self) -> None:
        """A stamp is between two readings of the wall clock."""
        clock = Clock()
        before = time.time()
        stamp = clock.stamp()
        assert before - clock_module.STEP <= stamp <= time.time() + clock_module.STEP

    def test_boot_is_the_same_for_two_clocks(self) -> None:
        """It identifies the boot of the machine, not the process."""
        assert Clock().boot == Clock().boot != ""

    def test_pause_between_two_readings_is_no_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A process that was stopped between the two readings reads both clocks again."""
        clock, moments, pauses = Clock(), [100.0], [60.0]

        def wall() -> float:
            moments.append(moments[-1] + (pauses.pop() if pauses else 0))
            return 900 + moments[-1]

        clock.now, clock.offset = lambda: moments[-1], 900.0
        monkeypatch.setattr(time, "time", wall)
        assert clock.moved() == 0
        assert not pauses


def test_save_before_the_step_is_detected_has_its_whole_ttl(rig: Rig) -> None:
    """A row saved between a step and its detection is moved with the others."""
    rig.clock.set_by += 3600
    assert rig.bind(ttl=5) is Status.OK
    assert rig.save(ttl=5) is not None
    rig.clock.time += 1
    rig.sweep()
    assert times(rig)["connection"] == times(rig)["binding"] == [(NOW + 3600, NOW + 3605)]
    rig.clock.time = NOW + 4.999
    assert rig.cache.find_dest(b"d", 1) is not None
