"""The process that holds a lock of flock(2) on a database, as far as /proc/locks shows it.

A daemon locks its file, and so do backups and other programs.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from scache.escape import one_line

_LOCK: Final = re.compile(
    r"^\d+: (FLOCK|POSIX) +\S+ +(READ|WRITE) +(\d+) +([0-9a-f]+):([0-9a-f]+):(\d+) +(\d+) ",
    re.MULTILINE,
)
"""A lock (proc_locks(5)): its kind and mode, process, device, inode and first byte."""

OPEN_MARK: Final = 128
"""The byte of the index (``-shm``) that each connection keeps locked (SQLite, os_unix.c:
UNIX_SHM_DMS)."""

_PROGRAMS: Final = ("scache", "scache-master")


class Holder(NamedTuple):
    """A process that holds a lock on a database."""

    pid: int | None = None
    """None if it is unknown, as that of a process in another PID namespace."""
    program: str = ""
    is_daemon: bool | None = None
    """True for a daemon of scache; None if it may be one."""

    def __str__(self) -> str:
        if self.pid is None:
            return "another process, which may be a scache daemon,"
        return f"process {self.pid} ({self.program})"


def holder(descriptor: int) -> Holder:
    """Return the process that has locked an open file; prefer a daemon, then an exclusive lock."""
    try:
        locks = _LOCK.findall(Path("/proc/locks").read_text(encoding="utf-8"))
    except OSError:
        return Holder()
    status = os.fstat(descriptor)
    file = os.major(status.st_dev), os.minor(status.st_dev), status.st_ino
    readers = {
        pid for kind, _, pid, *_, start in locks if (kind, start) == ("POSIX", str(OPEN_MARK))
    }
    found = Holder()
    for kind, mode, pid, major, minor, inode, _ in locks:
        if kind != "FLOCK" or (int(major, 16), int(minor, 16), int(inode)) != file:
            continue
        words = _command_line(pid)
        if not words:  # it has ended, and a process that inherited the descriptor has the lock
            continue
        # Only a daemon locks the file and opens it in SQLite. It opens the file after the lock.
        is_daemon = mode == "WRITE" and (pid in readers or _is_scache(words))
        if found.pid is None or mode == "WRITE":
            found = Holder(int(pid), one_line(Path(words[0]).name), is_daemon)
    return found


def _command_line(pid: str) -> list[str]:
    """Return the words of a process's command line; empty if the process is gone."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return os.fsdecode(line.removesuffix(b"\0")).split("\0") if line else []


def _is_scache(words: list[str]) -> bool:
    """Return True for a command line of scache, as a program or as a script of Python."""
    if Path(words[0]).name.startswith("python"):
        words = [word for word in words[1:] if not word.startswith("-")]
    return bool(words) and Path(words[0]).name in _PROGRAMS
