"""SIGHUP: the daemon reads its settings again."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from scache import Client, Unavailable
from scache.settings.declarations import SETTINGS, Settings
from scache.settings.reloading import AT_START, reloaded
from tests.support.daemon import Daemon
from tests.support.snapshots import snapshot


@pytest.fixture(params=["memory", "file"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the database of the daemon."""
    return ":memory:" if request.param == "memory" else str(tmp_path / "cache.db")


def reload(daemon: Daemon, config: Path, text: str, answer: str) -> str:
    """Write the configuration, send SIGHUP, and return the line in which the daemon answers."""
    config.write_text(text)
    os.kill(daemon.pid, signal.SIGHUP)
    return daemon.wait_for_log(answer)


def setting(daemon: Daemon, name: str) -> str:
    """Return a setting as the daemon records it."""
    with Client(daemon.path) as client:
        ((value,),) = snapshot(client, f"SELECT value FROM setting WHERE name = '{name}'")
    return str(value)


def test_sighup_applies_limits_to_the_next_requests(tmp_path: Path, database: str) -> None:
    """Clients stay connected, and what is cached stays."""
    config = tmp_path / "scache.toml"
    config.write_text("max_bindings = 1\n")
    options = ("--config", str(config))
    with (
        Daemon(tmp_path / "socket", *options, database=database) as daemon,
        Client(daemon.path) as client,
    ):
        assert client.save_dest(60, b"one", b"", b"endpoint")
        assert not client.save_dest(60, b"two", b"", b"endpoint")
        line = reload(daemon, config, "max_bindings = 2\nttl_limit = 30\n", "settings reloaded")
        assert line.endswith("settings reloaded, changed: ttl_limit, max_bindings")
        assert client.save_dest(60, b"two", b"", b"endpoint")
        assert not client.save_dest(60, b"three", b"", b"endpoint")
        assert setting(daemon, "max_bindings") == "2"
        assert setting(daemon, "ttl_limit") == "30"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("max_bindings = many\n", "is not TOML"),
        ('max_bindings = "many"\n', "must be a whole number"),
        ("max_binding = 5\n", "did you mean max_bindings?"),
        ('allow_uids = ["no-such-user"]\n', "names a user that does not exist"),
    ],
)
def test_sighup_keeps_the_settings_if_the_file_is_broken(
    text: str, answer: str, tmp_path: Path
) -> None:
    """One line names the mistake; the daemon goes on."""
    config = tmp_path / "scache.toml"
    config.write_text("max_bindings = 1\n")
    with Daemon(tmp_path / "socket", "--config", str(config)) as daemon:
        line = reload(daemon, config, text, answer)
        assert "error: the settings stay as they are: " in line
        assert setting(daemon, "max_bindings") == "1"
        config.unlink()
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.wait_for_log("scache.toml: cannot be read")
        with Client(daemon.path) as client:
            assert client.save_dest(60, b"one", b"", b"endpoint")
        assert daemon.terminate() == 0


def test_sighup_names_settings_that_need_a_restart(tmp_path: Path) -> None:
    """They keep their values until then."""
    config = tmp_path / "scache.toml"
    config.write_text("")
    with Daemon(tmp_path / "socket", "--config", str(config)) as daemon:
        reload(daemon, config, 'audit_rows = 5\non_data = "close"\n', "these settings change at")
        assert "the next start: on_data, audit_rows" in daemon.log()[-1]
        assert setting(daemon, "audit_rows") == "100000"


def test_sighup_applies_access_to_clients_that_connect_afterwards(tmp_path: Path) -> None:
    """A client that is connected keeps what it has."""
    config = tmp_path / "scache.toml"
    config.write_text("")
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        Daemon(tmp_path / "socket", "--config", str(config)) as daemon,
        Client(daemon.path, inline=False) as before,
    ):
        assert before.save_endp(60, b"endpoint", b"", ours)
        reload(daemon, config, "allow_uids = [54320]\n", "settings reloaded")
        with Client(daemon.path, inline=False) as after:
            assert not after.save_endp(60, b"endpoint", b"", ours)
        assert before.save_endp(60, b"endpoint", b"", ours)


def test_sighup_changes_the_idle_time(tmp_path: Path) -> None:
    """The daemon ends after the new time without clients."""
    config = tmp_path / "scache.toml"
    config.write_text("max_idle = 0\n")
    with Daemon(tmp_path / "socket", "--config", str(config)) as daemon:
        reload(daemon, config, "max_idle = 0.1\n", "stopping: no client for 0.1 s")
        assert daemon.wait() == 0
        with pytest.raises(Unavailable):
            Client(daemon.path).find_endp(b"endpoint")


def test_sigusr1_logs_the_statistics(tmp_path: Path) -> None:
    """In the form of scache(8)."""
    with Daemon(tmp_path / "socket") as daemon, Client(daemon.path) as client:
        assert client.find_endp(b"endpoint") is None
        os.kill(daemon.pid, signal.SIGUSR1)
        daemon.wait_for_log("statistics: address lookup hits=0 miss=1 success=0%")


def test_settings_of_the_start_are_settings() -> None:
    """The names in AT_START exist; a reload never changes them."""
    assert {each.name for each in SETTINGS} >= set(AT_START)
    current, wanted = Settings(audit_rows=1), Settings(audit_rows=2, ttl_limit=5)
    assert reloaded(current, wanted) == (
        Settings(audit_rows=1, ttl_limit=5),
        ["ttl_limit"],
        ["audit_rows"],
    )
