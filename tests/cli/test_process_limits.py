"""Commands under low limits on open files and on processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from scache.errors import EXIT_NOT_NOW, EXIT_OK, EXIT_SETTINGS
from tests.support.as_user import AS_USER, UID
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon
from tests.support.postfix_setup import private_directory

FEW_FILES = ("prlimit", "--nofile=5")

NO_THREADS = (*AS_USER, "prlimit", "--nproc=1")
"""Runs a command as a user who may not start a thread. Root may always start one."""


@pytest.mark.parametrize(
    "command",
    ["stats", "events", "sql SELECT", "dump", "check", "ping", "purge --all", "help limits"],
)
def test_command_names_a_limit_on_open_files_that_is_too_low(command: str) -> None:
    """With five, Python itself starts, and not much more."""
    done = run_command(*FEW_FILES, *SCACHE, *command.split())
    assert done.returncode == EXIT_NOT_NOW
    assert done.stderr == (
        "scache: only 5 files may be open, and a command needs 10: raise the limit (ulimit -n)\n"
    )


def test_daemon_names_a_limit_on_open_files_that_is_too_low(path: Path) -> None:
    """The daemon needs more than a command."""
    done = run_command(*FEW_FILES, *SCACHE, "serve", "--socket", path)
    assert done.returncode == EXIT_SETTINGS
    assert "only 5 files may be open, and the daemon needs 32" in done.stderr
    assert done.stderr.count("\n") == 1


def test_command_out_of_descriptors_says_so(path: Path) -> None:
    """The limit is high enough, but most descriptors are in use from the start."""
    script = 'exec 3</dev/null 4<&3 5<&3 6<&3 7<&3; ulimit -n 10; exec "$@"'
    with Daemon(path):
        done = run_command("bash", "-c", script, "bash", *SCACHE, "stats", "--socket", path)
    assert done.returncode == EXIT_NOT_NOW
    assert done.stderr == "scache: out of descriptors: raise the limit on open files (ulimit -n)\n"


@pytest.mark.root
def test_daemon_without_threads_names_the_limit_and_leaves_nothing_behind() -> None:
    """Neither the socket nor the database is there afterwards."""
    with private_directory() as directory:
        directory.chmod(0o777)
        options = ("--socket", directory / "socket", "--database", directory / "cache.db")
        done = run_command(*NO_THREADS, *SCACHE, "serve", *options)
        assert done.returncode == EXIT_NOT_NOW
        assert done.stderr == (
            "scache: no thread can be started: raise the limit on processes "
            "(ulimit -u, or TasksMax= in a unit of systemd)\n"
        )
        assert list(directory.iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize("command", ["stats", "sql SELECT(1)", "check"])
def test_command_needs_no_thread(command: str) -> None:
    """The line that says what a command waits for is left out."""
    with private_directory() as directory:
        directory.chmod(0o777)
        with Daemon(
            directory / "socket",
            "--allow-uids",
            str(UID),
            "--admin-uids",
            str(UID),
            "--socket-mode",
            "0666",
        ) as daemon:
            words = (*command.split(), "--socket", str(daemon.path))
            done = run_command(*NO_THREADS, *SCACHE, *words)
            assert done.returncode == EXIT_OK, done.stderr
