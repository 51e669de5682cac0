"""The check that a database file is opened under the name that its daemon uses.

The write-ahead log is beside that name. Under another name (a hard link, a bind mount, a file that
was moved) SQLite finds no log or a stale one, and reads an old state without an error.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from pathlib import Path
from typing import Final

from scache.errors import DatabaseError
from scache.store.files import exclusive_holder
from scache.store.holders import OPEN_MARK

PATIENCE: Final = 2.0
"""Seconds to wait for the log of a file in use: a daemon has none while it starts or stops."""

_PAUSE = 0.02

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock (fcntl_locking(2)): type, whence, start, length, process."""


def check_name(file: Path, what: str) -> None:
    """Raise DatabaseError, which calls the file ``what``, if its daemon uses another name."""
    deadline = time.monotonic() + PATIENCE
    while (other := exclusive_holder(file)) and not _has_its_log(file):
        if time.monotonic() >= deadline:
            if other.is_daemon is False:
                raise DatabaseError(
                    f"{what} is locked by {other}, and may lack its log: try again when that "
                    "process has ended"
                )
            raise DatabaseError(
                f"{what} is in use by a daemon under another name, and its latest changes are in "
                "the log beside that one: use that name, or ask the daemon (--socket)"
            )
        time.sleep(_PAUSE)


def _has_its_log(file: Path) -> bool:
    if not Path(f"{file}-wal").exists():
        return False
    try:
        return file.stat().st_nlink == 1 or _is_open(Path(f"{file}-shm"))
    except FileNotFoundError:
        return False
    except OSError:
        return True  # SQLite will report why the file cannot be read


def _is_open(index: Path) -> bool:
    """Return True if a connection has the log with this index open. Raises OSError."""
    descriptor = os.open(index, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, OPEN_MARK, 1, 0)
        (kind, *_) = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
    finally:
        os.close(descriptor)
    return bool(kind != fcntl.F_UNLCK)
