"""Lifetimes on CLOCK_BOOTTIME, and what a step of the wall clock does to the database."""

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
    """Set the clock by so much, and let the daemon look at it."""
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
    """Neither by its endpoint nor by its destination, and the binding is over as well."""
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
def test_step_moves_the_times_of_what_is_live(rig: Rig, step: float) -> None:
    """Connections, bindings, connected clients and the run; not those that left, nor events."""
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
    """Everything is found until its time is over, and gone after that."""
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
    """Each has its row; what is saved in between has the time of the clock as it is then."""
    rig.save(ttl=10)
    for step in (3600, -7200, 60):
        set_wall_clock(rig, step)
        rig.clock.time += 1
        rig.save(ttl=10, endpoint=b"later")
    saved = [saved_at for saved_at, _ in times(rig)["connection"]]
    assert saved == [NOW - 3540, NOW - 3539, NOW - 3538, NOW - 3537]
    steps_taken = times(rig)["clock_step"]
    assert steps_taken == [(NOW + 3600, 3600), (NOW + 1 - 3600, -7200), (NOW + 2 - 3540, 60)]


def test_changes_of_a_second_or_less_are_left_until_they_add_up(rig: Rig) -> None:
    """So the times are true within a second, and small corrections of a clock cost nothing."""
    rig.save(ttl=10)
    for step in (1, -1, 0.75):
        set_wall_clock(rig, step)
        assert times(rig)["connection"] == [(NOW, NOW + 10)]
        assert times(rig)["clock_step"] == []
    set_wall_clock(rig, 0.5)
    assert times(rig)["connection"] == [(NOW + 1.25, NOW + 11.25)]
    assert times(rig)["clock_step"] == [(NOW + 1.25, 1.25)]


def test_step_is_one_line_in_the_log(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """It says in which direction, and by how much."""
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
    """The oldest give way, so that a clock that never rests cannot fill the disk."""
    taken = [*range(2, steps.MAX_STEPS + 5)]
    for step in taken:
        set_wall_clock(rig, step)
    kept = [offset for _, offset in times(rig)["clock_step"]]
    assert kept == taken[-steps.MAX_STEPS :]


def test_step_while_the_database_is_locked_is_made_up_for(file_rig: Rig) -> None:
    """The times move once for each step, in order, as soon as the lock is gone."""
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


def test_step_on_a_full_disk_is_made_up_for(file_rig: Rig) -> None:
    """The batch that is done again has the step at its place: after the save, before the other."""
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
    """A query that saw rows which the step has not moved yet must not decide what has expired."""
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
def test_delivery_across_a_step_goes_back_with_its_remaining_ttl(
    rig: Rig, step: float, committed: bool
) -> None:
    """The clock is set while a connection is on its way to a client that vanishes then."""
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


def test_delivery_goes_back_while_the_step_waits_for_the_lock(file_rig: Rig) -> None:
    """Its row has the right time, though it is written after what moves the others."""
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
def test_age_of_what_leaves_after_a_step_is_the_time_it_was_cached(rig: Rig, step: float) -> None:
    """Found, expired, purged: whatever the clock says, it was there for so many seconds."""
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
    """On the same boot the next run knows by how much, and records it."""
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
    """So little differences of many runs do not add up in the bindings that they leave."""
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
def test_ages_of_what_a_crash_lost_are_right_though_the_clock_was_set(
    tmp_path: Path, step: float
) -> None:
    """The connections, the clients and the run of the crashed daemon are moved before they end."""
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
    """How long the machine was off is unknown then: bindings live for ttl_limit at the most."""
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


def test_age_of_a_connection_lost_on_its_way_is_unknown_after_a_step(tmp_path: Path) -> None:
    """It is known from the event of its save alone, whose time has not moved with the clock."""
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
    """scache(8) logs it as the local time."""
    rig.cache.statistics.report()
    began = rig.clock.time
    rig.clock.time += 60
    set_wall_clock(rig, 86400)
    assert rig.cache.find_endp(b"e", 1) is None
    line = rig.cache.statistics.report()[0]
    assert line == f"statistics: start interval {time.ctime(began + 86400)[4:19]}"


@BOTH_WAYS
def test_follower_recognizes_the_run_after_a_step(rig: Rig, step: float) -> None:
    """`scache events --follow` must not take it for another, whose ids begin anew."""

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
    """Within a second the times of an image may be ahead of the clock of whoever reads it."""
    rig.save(ttl=10)
    assert rig.batch.commit()
    with Image.from_bytes(rig.batch.serialize()) as image:
        figures = statistics(image, NOW - 0.5, live=True)
    assert figures["daemon"]["uptime"] == 0
    assert figures["connections"]["oldest"] == figures["events"]["oldest"] == 0
    assert figures["connections"]["next_expiry"] == 10.5


class TestClock:
    def test_now_is_the_time_since_boot(self) -> None:
        """It is what proc(5) calls the uptime, which goes on while the machine sleeps."""
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        now = Clock().now()
        assert before <= now <= time.clock_gettime(time.CLOCK_BOOTTIME)

    def test_stamp_is_wall_time(self) -> None:
        """A stamp lies between two readings of the wall clock."""
        clock = Clock()
        before = time.time()
        stamp = clock.stamp()
        assert before - clock_module.STEP <= stamp <= time.time() + clock_module.STEP

    def test_boot_is_the_same_for_two_clocks(self) -> None:
        """It names the boot of the machine, not the process."""
        assert Clock().boot == Clock().boot != ""

    def test_pause_between_two_readings_is_no_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A process that is stopped right there reads both clocks again."""
        clock, moments, pauses = Clock(), [100.0], [60.0]

        def wall() -> float:
            moments.append(moments[-1] + (pauses.pop() if pauses else 0))
            return 900 + moments[-1]

        clock.now, clock.offset = lambda: moments[-1], 900.0
        monkeypatch.setattr(time, "time", wall)
        assert clock.moved() == 0
        assert not pauses


def test_save_before_the_step_is_noticed_lives_as_long_as_any(rig: Rig) -> None:
    """What is saved between a step and the next look at the clocks is moved with the rest."""
    rig.clock.set_by += 3600
    assert rig.bind(ttl=5) is Status.OK
    assert rig.save(ttl=5) is not None
    rig.clock.time += 1
    rig.sweep()
    assert times(rig)["connection"] == times(rig)["binding"] == [(NOW + 3600, NOW + 3605)]
    rig.clock.time = NOW + 4.999
    assert rig.cache.find_dest(b"d", 1) is not None
