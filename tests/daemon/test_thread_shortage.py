"""A daemon that may start no thread goes on, and does what it could not do when it may again."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from scache import Client
from tests.support.as_user import GID, UID
from tests.support.daemon import Daemon
from tests.support.limits import limited
from tests.support.postfix_setup import private_directory

pytestmark = pytest.mark.root

NO_THREAD = (
    "no thread can be started: raise the limit on processes (ulimit -u, or TasksMax= in a unit of "
    "systemd)"
)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Make a directory for the user of the daemon."""
    with private_directory() as directory:
        directory.chmod(0o777)
        yield directory


def test_sighup_without_threads_keeps_the_settings(directory: Path) -> None:
    """The line names the limit. The next SIGHUP reads the settings."""
    config = directory / "scache.toml"
    config.write_text("max_bindings = 1\n")
    options = ("--config", str(config), "--user", f"{UID}:{GID}")
    with Daemon(directory / "socket", *options) as daemon, Client(daemon.path) as client:
        config.write_text("max_bindings = 2\n")
        with limited(daemon.pid, resource.RLIMIT_NPROC, 0):
            os.kill(daemon.pid, signal.SIGHUP)
            line = daemon.wait_for_log("stay as they are")
            assert line.endswith(f"error: the settings stay as they are: {NO_THREAD}")
            assert client.save_dest(60, b"one", b"", b"endpoint")
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.wait_for_log("settings reloaded, changed: max_bindings")
        assert client.save_dest(60, b"two", b"", b"endpoint")


@pytest.mark.slow
def test_lost_database_is_recreated_once_threads_can_be_started(directory: Path) -> None:
    """A line names the limit until then, and nothing that was cached is lost."""
    file = directory / "cache.db"
    options = ("--database", str(file), "--user", f"{UID}:{GID}")
    with Daemon(directory / "socket", *options) as daemon, Client(daemon.path) as client:
        assert client.save_dest(60, b"destination", b"", b"endpoint")
        with limited(daemon.pid, resource.RLIMIT_NPROC, 0):
            file.unlink()
            line = daemon.wait_for_log("cannot be made anew")
            assert line.endswith(f"the database {file} cannot be made anew: {NO_THREAD}")
            assert client.save_dest(60, b"another", b"", b"endpoint")
        daemon.wait_for_log("was made anew; nothing was lost")
        assert file.exists()
        assert {each.name for each in directory.iterdir()} >= {"cache.db-wal"}
