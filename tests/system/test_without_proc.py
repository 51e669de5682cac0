"""The daemon and the commands where /proc is not mounted, as in many a chroot."""

from __future__ import annotations

import pytest

from scache import Client
from scache.errors import EXIT_DATABASE, EXIT_OK
from tests.support.as_user import GID, UID
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon
from tests.support.postfix_setup import private_directory

WITHOUT_PROC = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh")
"""Runs a command in a mount namespace whose /proc is empty."""

_READS = "+dac_read_search"
AS_USER = (
    *("setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups"),
    *("--inh-caps", _READS, "--ambient-caps", _READS),
)
"""Runs a command as another user than root, who may read all files."""

pytestmark = pytest.mark.root


@pytest.mark.parametrize("options", [(), ("--socket-owner", f"{UID}:{GID}")], ids=str)
def test_daemon_and_commands_need_no_proc(options: tuple[str, ...]) -> None:
    """The socket gets its owner, requests are served, and snapshots are taken."""
    with private_directory() as directory:
        path, database = directory / "socket", directory / "cache.db"
        with Daemon(path, *options, database=database, prefix=WITHOUT_PROC) as daemon:
            assert path.stat().st_uid == (UID if options else 0)
            with Client(path) as client:
                assert client.save_endp(60, "e", "", 0)
            for command in ("stats", "check", "ping", "purge --all --yes"):
                words = [*SCACHE, *command.split(), "--socket", str(path)]
                done = run_command(*WITHOUT_PROC, *words)
                assert done.returncode == EXIT_OK, done.stderr
            assert daemon.terminate() == EXIT_OK
            assert any("mount /proc" in line for line in daemon.log())
            assert not any("error" in line for line in daemon.log())
        assert not path.exists()
        done = run_command(*WITHOUT_PROC, *SCACHE, "check", "--database", database)
        assert done.returncode == EXIT_OK, done.stderr


def test_daemon_says_that_it_needs_proc_to_know_the_owner_of_a_file() -> None:
    """In a directory that other users may write to, another user could have made the file."""
    with private_directory() as directory:
        directory.chmod(0o1777)
        words = ("serve", "--socket", directory / "socket", "--database", directory / "cache.db")
        done = run_command(*WITHOUT_PROC, *AS_USER, *SCACHE, *words)
        assert done.returncode == EXIT_DATABASE
        assert "cache.db is a file whose owner cannot be known without /proc" in done.stderr
        assert not (directory / "socket").exists()
