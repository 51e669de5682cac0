"""A running daemon whose machine sleeps, and whose wall clock is set."""

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
    """Let processes that are started believe these clocks."""
    clocks = MovedClocks(tmp_path)
    for name, value in clocks.environment.items():
        monkeypatch.setenv(name, value)
    return clocks


@pytest.fixture
def daemon(path: Path, database: str, clocks: MovedClocks) -> Iterator[Daemon]:
    """Run a daemon that believes them."""
    assert clocks
    with Daemon(path, "--exchange-timeout", "60", database=database) as daemon:
        yield daemon


def await_step(client: Client, count: int = 1) -> None:
    """Wait until the daemon has noticed so many steps."""
    eventually(lambda: snapshot(client, "SELECT count(*) FROM clock_step") == [(count,)])


def save(client: Client, ttl: int, endpoint: str) -> socket.socket:
    """Save a connection; return its other end."""
    peer, ours = socket.socketpair()
    with ours:
        assert client.save_endp(ttl, endpoint, "", ours)
    peer.settimeout(DEADLINE)
    return peer


def check_is_well(path: Path) -> None:
    """See that `scache check` finds nothing."""
    result = run_command(*SCACHE, "check", "--socket", str(path))
    assert result.returncode == 0, result.stdout


def test_nothing_that_expired_during_a_suspend_is_found(
    client: Client, clocks: MovedClocks
) -> None:
    """A find right after the resume misses, and what expired is closed though nobody asks."""
    with save(client, 200, "short") as short, save(client, 200, "other") as other:
        assert client.save_dest(200, "d", "", "short")
        clocks.sleep(NIGHT)
        assert client.find_dest("d") is None
        assert client.find_endp("short") is None
        assert short.recv(1) == other.recv(1) == b""
    assert snapshot(client, "SELECT count(*) FROM binding") == [(0,)]
    assert snapshot(client, "SELECT * FROM clock_step") == []


def test_image_right_after_a_suspend_holds_nothing_that_expired(
    daemon: Daemon, client: Client, clocks: MovedClocks
) -> None:
    """So `scache check` finds nothing overdue, however soon it is asked."""
    with save(client, 200, "e"):
        assert client.save_dest(200, "d", "", "e")
        clocks.sleep(NIGHT)
        live = "SELECT (SELECT count(*) FROM connection), (SELECT count(*) FROM binding)"
        assert snapshot(client, live) == [(0, 0)]
    check_is_well(daemon.path)


def test_suspend_drops_no_client(client: Client, daemon: Daemon, clocks: MovedClocks) -> None:
    """A client in the middle of an exchange goes on where it was."""
    request = encode([(b"request", b"find_endp"), (b"label", b"e")])
    with Dialogue(daemon.path) as half_way:
        half_way.send(request[:9])
        clocks.sleep(NIGHT)
        with save(client, 1, "watch") as watch:
            assert watch.recv(1) == b""  # a second has passed, with looks at all clients
        half_way.send(request[9:])
        assert half_way.receive_message()[0] == (b"status", b"2")


@BOTH_WAYS
def test_step_expires_nothing_early_or_late(step: int, client: Client, clocks: MovedClocks) -> None:
    """Whatever is done to the wall clock, everything expires when its ttl is over."""
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
def test_times_of_what_is_live_or_new_are_true_after_a_step(
    step: int, client: Client, daemon: Daemon, clocks: MovedClocks
) -> None:
    """By the clock as it is set; events before it keep theirs, and everything fits together."""
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
    check_is_well(daemon.path)


def test_step_during_a_suspend_is_told_from_the_sleep(client: Client, clocks: MovedClocks) -> None:
    """The sleep counts for lifetimes, the step does not."""
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


def test_several_steps_and_a_clock_that_is_put_right_again(
    client: Client, daemon: Daemon, clocks: MovedClocks
) -> None:
    """Each is recorded, and the times are at last what they were."""
    with save(client, 200, "e"):
        ((saved_at,),) = snapshot(client, "SELECT saved_at FROM connection")
        for count, step in enumerate((DAY, 40 * DAY, -41 * DAY), 1):
            clocks.set_wall(step)
            await_step(client, count)
        ((back,),) = snapshot(client, "SELECT saved_at FROM connection")
        assert abs(back - saved_at) < 1
    check_is_well(daemon.path)


def test_connection_on_its_way_has_true_times_in_an_image(
    client: Client, daemon: Daemon, clocks: MovedClocks
) -> None:
    """It is no row of the database while it is: the process adds it, by the scale of the others."""
    with save(client, 200, "e"), Dialogue(daemon.path) as finder:
        finder.send(encode([(b"request", b"find_endp"), (b"label", b"e")]))
        assert finder.receive_message()[0] == (b"status", b"0")
        clocks.set_wall(-DAY)
        await_step(client)
        ((saved_at,),) = snapshot(client, "SELECT saved_at FROM connection")
        assert abs(saved_at - clocks.wall_time()) < NEAR
        check_is_well(daemon.path)


@BOTH_WAYS
def test_step_between_two_runs_changes_no_lifetime(
    step: int, path: Path, tmp_path: Path, clocks: MovedClocks
) -> None:
    """The next daemon knows by how much the clock was set, and moves the bindings of the last."""
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
        check_is_well(path)


def test_step_while_the_file_is_locked_is_made_up_for(
    path: Path, tmp_path: Path, clocks: MovedClocks
) -> None:
    """Nothing expires for it meanwhile, and the rows have moved once the lock is gone."""
    file = tmp_path / "cache.db"
    with Daemon(path, database=file) as daemon, Client(path) as client, save(client, 200, "e"):
        assert client.save_dest(200, "d", "q", "e")
        eventually(lambda: read(file, "SELECT id FROM binding"))
        with locked(file):
            clocks.set_wall(DAY)
            daemon.wait_for_log("the wall clock was set")
            assert client.find_dest("d") is None  # a database that is locked says no
        eventually(lambda: read(file, "SELECT offset FROM clock_step"))
        for table in ("connection", "binding"):
            ((expires_at,),) = read(file, f"SELECT expires_at FROM {table}")
            assert abs(expires_at - clocks.wall_time() - 200) < NEAR
        found = client.find_dest("d")
        assert found is not None
        found.close()
