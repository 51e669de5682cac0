"""The files of a database: whose they are, whether they are still there, and where to put them.

SQLite keeps a log and its index beside a database, under its name. Whoever moves or removes one
of the three without the others has half a database, so here they go together.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from scache.errors import DatabaseError
from scache.unix import paths
from scache.unix.namespace import user_name

APPLICATION_ID = 0x73636163
"""Marks a file as ours ("scac"; SQLite docs, PRAGMA application_id)."""

_APPLICATION_ID_AT = 68

COMPANIONS: Final = ("-wal", "-shm", "-journal")
"""What SQLite adds to the name of a database for what it keeps beside it."""

_OPEN_TOGETHER: Final = ("", "-wal", "-shm")

CLAIM_TIMEOUT: Final = 0.3
"""Seconds to wait for a lock on the file: a command that reads it holds one for an instant."""

_CLAIM_PAUSE = 0.01

_NOT_REGULAR = "it is no regular file: choose another --database"

Loss = Literal["deleted", "replaced", "log"]
"""How a file is lost: it has gone, another one is in its place, or it has lost its log."""

Identity = tuple[int, int] | None
"""Device and inode; None for a file that is not there."""


def followed(path: str) -> str:
    """Return what a link to a database leads to: there SQLite keeps the log.

    Raises DatabaseError for a link of another user (see `paths.followed`).
    """
    try:
        real = paths.followed(path)
    except OSError as error:
        raise DatabaseError(f"cannot open the database {path}: {_reason(error, path)}") from error
    return real if Path(path).is_symlink() else path


def claim(path: str) -> int:
    """Open the file, made if need be, and lock it against other daemons until it is closed.

    flock(2) and the locks of SQLite do not see each other, but closing any
    descriptor of the file drops SQLite's: this one is to be closed last.
    """
    deadline = time.monotonic() + CLAIM_TIMEOUT
    while True:
        try:
            descriptor = _open(path)
        except OSError as error:
            raise DatabaseError(
                f"cannot open the database {path}: {_reason(error, path)}"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if time.monotonic() < deadline:
                time.sleep(_CLAIM_PAUSE)
                continue
            raise DatabaseError(
                f"another scache daemon uses the database {path}: "
                "stop it, or choose another --database"
            ) from error
        # Another daemon may have set the file aside, and left it, between the two.
        if _identity_of(descriptor) == _identity(path):
            return descriptor
        os.close(descriptor)


def _open(path: str) -> int:
    """Open a file that is ours and may be a database, made if need be; raise OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise OSError(errno.EINVAL, _NOT_REGULAR) from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, _NOT_REGULAR)
        paths.check_ours(path, status)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_companions(path: str, *owners: int) -> None:
    """Raise DatabaseError for a file beside a database that SQLite must not take for its own.

    It would wait for a FIFO, and do to the database what the log of another user says. Further
    ``owners`` are as good as ours.
    """
    for suffix in COMPANIONS:
        name = f"{path}{suffix}"
        try:
            status = os.lstat(name)
            if not stat.S_ISREG(status.st_mode):
                raise DatabaseError(f"{name} is no regular file: remove it")
            paths.check_ours(name, status, *owners)
        except FileNotFoundError:
            continue
        except paths.UntrustedError as error:
            raise DatabaseError(error.sentence) from error
        except OSError:
            continue  # SQLite says why it cannot use it


def is_held(path: str | Path) -> bool:
    """Return whether a daemon uses a file, by whatever name."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without such locks
        return False
    finally:
        os.close(descriptor)
    return False


def is_ours(descriptor: int) -> bool:
    """Return whether a file has our mark, however much of the rest is damaged."""
    mark = os.pread(descriptor, 4, _APPLICATION_ID_AT)
    return mark == APPLICATION_ID.to_bytes(4, "big")


def set_aside(path: str, now: float) -> str:
    """Rename a database that we have claimed, and what lies beside it; return its new name.

    It has the time in it, which is ``now`` (seconds since the epoch).

    To be done while it is open: then SQLite finds out at the close that the
    file has moved, and leaves its log as it is. The database itself goes last,
    as no other daemon comes near the name before that.
    """
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    name, number = f"{path}.corrupt-{stamp}", 1
    while any(os.path.lexists(f"{name}{suffix}") for suffix in ("", *COMPANIONS)):
        number += 1
        name = f"{path}.corrupt-{stamp}.{number}"
    try:
        for suffix in (*COMPANIONS, ""):
            if not suffix or os.path.lexists(f"{path}{suffix}"):
                Path(f"{path}{suffix}").rename(f"{name}{suffix}")
    except OSError as error:
        raise DatabaseError(
            f"the database {path} is corrupt and cannot be set aside: {_reason(error, path)}"
        ) from error
    return name


class Files:
    """The files of an open database, as they were when it was opened."""

    def __init__(self, path: str, claimed: int) -> None:
        """Look at a file that is claimed and open, with its log; take over the claim."""
        self.path = path
        self._claim = claimed
        self._identities = [_identity_of(claimed)]
        self._identities += [_identity(f"{path}{suffix}") for suffix in _OPEN_TOGETHER[1:]]

    def close(self) -> None:
        """Let other daemons have the file."""
        os.close(self._claim)

    def log_size(self) -> int:
        """Return how many bytes the write-ahead log has; 0 if it is not there."""
        try:
            return Path(f"{self.path}-wal").stat().st_size
        except OSError:
            return 0

    def loss(self) -> Loss | None:
        """Return what somebody has done to the files under their names; None if it is nothing."""
        file, *beside = (_identity(f"{self.path}{suffix}") for suffix in _OPEN_TOGETHER)
        if file is None:
            return "deleted"
        if file != self._identities[0]:
            return "replaced"
        return None if beside == self._identities[1:] else "log"

    def leave_to_another(self) -> None:
        """Take our log and its index away from the file that is in our place.

        Whoever opens that one would take them for its own, and ruin both.
        """
        for suffix, ours in zip(_OPEN_TOGETHER[1:], self._identities[1:], strict=True):
            name = f"{self.path}{suffix}"
            if ours is not None and _identity(name) == ours:
                with suppress(OSError):
                    Path(name).unlink()

    def claim_successor(self) -> tuple[str, int]:
        """Make an empty file beside them, claimed and with the same owner and mode.

        Return its name and the claim. Raises OSError.
        """
        name = f"{self.path}.new-{os.getpid()}"
        Path(name).unlink(missing_ok=True)
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            old = os.fstat(self._claim)
            with suppress(OSError):
                os.fchown(descriptor, old.st_uid, old.st_gid)
            os.fchmod(descriptor, old.st_mode & 0o777)
        except BaseException:
            os.close(descriptor)
            raise
        return name, descriptor

    def give_way_to(self, successor: str) -> None:
        """Put a file in the place of the lost one. Never replaces what is another's.

        Raises OSError: FileExistsError if there is something now.
        """
        loss = self.loss()
        if loss == "replaced":
            raise FileExistsError(errno.EEXIST, "another file is in its place")
        # A log that is left behind would be taken for that of the new file.
        for suffix in COMPANIONS:
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        if loss == "deleted":
            os.link(successor, self.path)
            Path(successor).unlink()
        else:
            Path(successor).rename(self.path)


def _identity(path: str) -> Identity:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _identity_of(descriptor: int) -> Identity:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _reason(error: OSError, path: str) -> str:
    match error.errno:
        case errno.ENOTDIR:
            return f"{Path(path).parent} is not a directory: choose another --database"
        case errno.ENOENT:
            return f"there is no directory {Path(path).parent}: make it first"
        case errno.EACCES:
            us = user_name(os.geteuid())
            return f"permission denied: let user {us} read and write it and its directory"
        case errno.EPERM:
            return "its file system or its attributes forbid that: choose another --database"
        case errno.EISDIR:
            return "it is a directory: name a file"
        case errno.EROFS:
            return "its file system is read-only: choose another place"
        case errno.ENOSPC | errno.EDQUOT:
            return "the disk is full: free some space"
        case _:
            return error.strerror or str(error)
