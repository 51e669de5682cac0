"""A running daemon when the machine sleeps or the wall clock is set."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scache import Client
from tests.support.clocks import MovedClocks
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon
from tests.support.dialogue import DEADLINE, Dialogue, eventually
from tests.support.snapshots import snapshot
from tests.support.store_fixture import locked, read
from tests.support.wire import encode

NIGHT = 8 * 3600
DAY = 86_400
NEAR = 30
"""Seconds: far less than any step, and longer than a busy machine needs for a request."""

BOTH_WAYS = pytest.mark.parametrize("step", [10 * DAY, -10 * DAY])


@pytest.fixture
def clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MovedClocks:
    """Return clocks that the processes started by the test use."""
    clocks = MovedClocks(tmp_path)
    for name, value in clocks.environment.items():
        monkeypatch.setenv(name, value)
    return clocks


@pytest.fixture
def daemon(path: Path, database: str, clocks: MovedClocks) -> Iterator[Daemon]:
    """Run a daemon that uses these clocks."""
    assert clocks
    with Daemon(path, "--exchange-timeout", "60", database=database) as daemon:
        yield daemon


def await_step(client: Client, count: int = 1) -> None:
    """Wait until the daemon has noticed ``count`` steps of the clock."""
    eventually(lambda: snapshot(client, "SELECT count(*) FROM clock_step") == [(count,)])


def save(client: Client, ttl: int, endpoint: str) -> socket.socket:
    """Save a connection; return its other end."""
    peer, ours = socket.socketpair()
    with ours:
        assert client.save_endp(ttl, endpoint, "", ours)
    peer.settimeout(DEADLINE)
    return peer


def assert_check_passes(path: Path) -> None:
    """Assert that `scache check` finds no error."""
    result = run_command(*SCACHE, "check", "--socket", str(path))
    assert result.returncode == 0, result.stdout


def test_connection_that_expired_during_a_suspend_is_not_found(
    client: Client, clocks: MovedClocks
) -> None:
    """A find right after the resume misses; other expired connections are closed as well."""
    with save(client, 200, "short") as short, save(client, 200, "other") as other:
        assert client.save_dest(200, "d", "", "short")
        clocks.sleep(NIGHT)
        assert client.find_dest("d") is None
        assert client.find_endp("short") is None
        assert short.recv(1) == other.recv(1) == b""
    assert snapshot(client, "SELECT count(*) FROM binding") == [(0,)]
    assert snapshot(client, "SELECT * FROM clock_step") == []


def test_image_right_after_a_suspend_has_no_expired_rows(
    daemon: Daemon, client: Client, clocks: MovedClocks
) -> None:
    """So `scache check` reports no overdue row, even directly after the resume."""
    with save(client, 200, "e"):
        assert client.save_dest(200, "d", "", "e")
        clocks.sleep(NIGHT)
        live = "SELECT (SELECT count(*) FROM connection), (SELECT count(*) FROM binding)"
        assert snapshot(client, live) == [(0, 0)]
    assert_check_passes(daemon.path)


def test_suspend_drops_no_client(client: Client, daemon: Daemon, clocks: MovedClocks) -> None:
    """A client in the middle of an exchange can complete it."""
    request = encode([(b"request", b"find_endp"), (b"label", b"e")])
    with Dialogue(daemon.path) as half_way:
        half_way.send(request[:9])
        clocks.sleep(NIGHT)
        with save(client, 1, "watch") as watch:
            assert (
                watch.recv(1) == b""
            )  # a second has passed, in which the watchdog polled all clients
        half_way.send(request[9:])
        assert half_way.receive_message()[0] == (b"status", b"2")


@BOTH_WAYS
def test_step_expires_nothing_early_or_late(step: int, client: Client, clocks: MovedClocks) -> None:
    """A connection expires when its ttl is over, independent of the wall clock."""
    earliest = time.monotonic() + 2
    with save(client, 2, "before") as before, save(client, 60, "long"):
        assert client.save_dest(60, "d", "q", "long")
        clocks.set_wall(step)
        later = time.monotonic() + 2
        with save(client, 2, "after") as after:
            assert before.recv(1) == b""
            assert time.monotonic() >= earliest
            assert after.recv(1) == b""
            assert time.monotonic() >= later
        await_step(client)
        found = client.find_dest("d")
        assert found is not None
        found.close()


@BOTH_WAYS
def test_times_of_live_and_new_rows_are_right_after_a_step(
    step: int, client: Client, daemon: Daemon, clocks: MovedClocks
) -> None:
    """They follow the new wall clock; earlier events keep their times, and `check` passes."""
    with save(client, 200, "old"), save(client, 200, "new"):
        assert client.save_dest(200, "d", "q", "old")
        began = clocks.wall_time()
        clocks.set_wall(step)
        await_step(client)
        now = clocks.wall_time()
        assert client.save_dest(200, "new", "q", "new")
        live = """
            SELECT saved_at FROM connection UNION ALL SELECT saved_at FROM binding
            UNION ALL SELECT connected_at FROM client WHERE disconnected_at IS NULL
            UNION ALL SELECT started_at FROM instance UNION ALL SELECT at FROM clock_step
            UNION ALL SELECT at FROM event WHERE kind = 'save_dest' AND destination = 'new'
        """
        for (stamp,) in snapshot(client, live):
            assert abs(stamp - now) < NEAR
        for (expires_at,) in snapshot(client, "SELECT expires_at FROM connection"):
            assert abs(expires_at - now - 200) < NEAR
        (old,) = snapshot(
            client, "SELECT at FROM event WHERE destination = 'd' AND kind = 'save_dest'"
        )
        assert abs(old[0] - began) < NEAR
        ((offset,),) = snapshot(client, "SELECT offset FROM clock_step")
        assert abs(offset - step) < NEAR
    direction = "forward" if step > 0 else "backward"
    assert f"the wall clock was set {direction} by" in daemon.wait_for_log("the wall clock was set")
    assert_check_passes(daemon.path)


def test_step_during_a_suspend_is_distinguished_from_the_sleep(
    client: Client, clocks: MovedClocks
) -> None:
    """Lifetimes include the sleep, but not the step."""
    with save(client, 200, "over") as over, save(client, 300, "kept"):
        clocks.sleep(250)
        clocks.set_wall(-DAY)
        assert over.recv(1) == b""
        await_step(client)
        ((expires_at, offset),) = snapshot(
            client, "SELECT expires_at, offset FROM connection, clock_step"
        )
        assert abs(offset + DAY) < NEAR
        assert abs(expires_at - clocks.wall_time() - 50) < NEAR
        found = client.find_endp("kept")
        assert found is not None
        found.close()


def test_several_steps_that_add_up_to_zero_restore_the_times(
    client: Client, daemon: Daemon, clocks: MovedClocks
) -> None:
    """Each step is recorded, and the times are at last those before the first step."""
    with save(client, 200, "e"):
        ((saved_at,),) = snapshot(client, "SELECT saved_at FROM connection")
        for count, step in enumerate((DAY, 40 * DAY, -41 * DAY), 1):
            clocks.set_wall(step)
            await_step(client, count)
        ((back,),) = snapshot(client, "SELECT saved_at FROM connection")
        assert abs(back - saved_at) < 1
    assert_check_passes(daemon.path)


def test_connection_being_delivered_has_right_times_in_an_image(
    client: Client, daemon: Daemon, clocks: MovedClocks
) -> None:
    """It has no row in the database, so the snapshot adds it with wall-clock times."""
    with save(client, 200, "e"), Dialogue(daemon.path) as finder:
        finder.send(encode([(b"request", b"find_endp"), (b"label", b"e")]))
        assert finder.receive_message()[0] == (b"status", b"0")
        clocks.set_wall(-DAY)
        await_step(client)
        ((saved_at,),) = snapshot(client, "SELECT saved_at FROM connection")
        assert abs(saved_at - clocks.wall_time()) < NEAR
        assert_check_passes(daemon.path)


@BOTH_WAYS
def test_step_between_two_runs_changes_no_lifetime(
    step: int, path: Path, tmp_path: Path, clocks: MovedClocks
) -> None:
    """The next daemon detects the step, and moves the times of the bindings."""
    file = tmp_path / "cache.db"
    with Daemon(path, database=file) as daemon:
        with Client(path) as client:
            assert client.save_dest(200, "d", "q", "e")
        assert daemon.terminate() == 0
    clocks.set_wall(step)
    with Daemon(path, database=file) as daemon, Client(path) as client:
        ((expires_at,),) = snapshot(client, "SELECT expires_at FROM binding")
        assert abs(expires_at - clocks.wall_time() - 200) < NEAR
        ((offset,),) = snapshot(client, "SELECT offset FROM clock_step")
        assert abs(offset - step) < NEAR
        assert daemon.wait_for_log("the wall clock was set")
        assert_check_passes(path)


def test_step_while_the_database_is_locked_is_applied_after_the_lock(
    path: Path, tmp_path: Path, clocks: MovedClocks
) -> None:
    """Nothing expires early meanwhile, and the times of the rows move after the lock."""
    file = tmp_path / "cache.db"
    with Daemon(path, database=file) as daemon, Client(path) as client, save(client, 200, "e"):
        assert client.save_dest(200, "d", "q", "e")
        eventually(lambda: read(file, "SELECT id FROM binding"))
        with locked(file):
            clocks.set_wall(DAY)
            daemon.wait_for_log("the wall clock was set")
            assert client.find_dest("d") is None  # the database is locked
        eventually(lambda: read(file, "SELECT offset FROM clock_step"))
        for table in ("connection", "binding"):
            ((expires_at,),) = read(file, f"SELECT expires_at FROM {table}")
            assert abs(expires_at - clocks.wall_time() - 200) < NEAR
        found = client.find_dest("d")
        assert found is not None
        found.close()
