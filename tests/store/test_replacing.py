"""Replacing a file: nothing is left by a failure, and all is on the disk at the end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from scache.store.replacing import CHUNK, replace
from tests.support.commands import run_python

_SIGNALLED = """
import os, signal, sys
from pathlib import Path
from scache.store.replacing import CHUNK, replace
fsync = os.fsync
def signalled(descriptor):
    os.kill(os.getpid(), int(sys.argv[2]))
    fsync(descriptor)
os.fsync = signalled
signal.signal(int(sys.argv[2]), signal.SIG_DFL) if int(sys.argv[2]) != signal.SIGKILL else None
replace(Path(sys.argv[1]), bytes(CHUNK))
"""


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGPIPE,
        signal.SIGALRM,
        signal.SIGXFSZ,
        signal.SIGXCPU,
        signal.SIGUSR1,
        signal.SIGRTMIN,
        signal.SIGKILL,
    ],
)
def test_replace_leaves_nothing_after_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """The earlier file stays as it was."""
    file = tmp_path / "file"
    file.write_bytes(b"earlier")
    result = run_python(_SIGNALLED, file, int(number))
    assert result.returncode == -number
    assert [*tmp_path.iterdir()] == [file]
    assert file.read_bytes() == b"earlier"


@pytest.mark.parametrize("unnamed", [True, False])
def test_replace_syncs_file_before_and_directory_after_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    """So it is, too, where the file system has no files without a name."""
    calls = []
    fsync, rename, flag = os.fsync, Path.replace, os.O_TMPFILE

    def synced(descriptor: int) -> None:
        calls.append("directory" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file")
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        calls.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(os, "O_TMPFILE", flag if unnamed else os.O_DIRECTORY)
    file = tmp_path / "file"
    replace(file, bytes(CHUNK + 1))
    assert calls == ["file", "rename", "directory"]
    assert file.stat().st_size == CHUNK + 1
    assert file.stat().st_mode & 0o777 == 0o600
    assert [*tmp_path.iterdir()] == [file]
