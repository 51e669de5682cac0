"""Starts of the daemon that must fail, and what they may not change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.commands import SCACHE, run_command

AS_ROOT = os.geteuid() == 0

UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if AS_ROOT else ()
"""A command that runs another one without the privilege to ignore the modes of files."""

NAMESPACE = ("unshare", "--mount", *(() if AS_ROOT else ("--map-root-user",)))
"""A command that runs another one in a mount namespace of its own."""


def refused(socket_path: Path, database: Path | str, code: int, *prefix: str | Path) -> str:
    """Start a daemon that must fail with this exit code; return its message, which is one line."""
    options = ("--socket", socket_path, "--database", database)
    done = run_command(*prefix, *SCACHE, "serve", *options)
    assert done.stdout == ""
    assert done.stderr.startswith("scache: ")
    assert done.stderr.count("\n") == 1
    assert done.returncode == code, done.stderr
    return done.stderr


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Return the files in a directory, recursively: names, modes and bytes."""
    return {
        str(each): (each.lstat().st_mode, each.read_bytes() if each.is_file() else b"")
        for each in directory.rglob("*")
    }


@contextmanager
def unchanged(directory: Path) -> Iterator[None]:
    """Check that the block changes nothing in a directory."""
    before = contents(directory)
    yield
    assert contents(directory) == before
