"""The files of a database: checking their owner, detecting their loss, and renaming them.

SQLite keeps a log and its index beside a database, under its name. The three files are moved or
removed together, because one without the others is an incomplete database.
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

from scache.errors import DatabaseError, reason_of
from scache.store.holders import Holder, holder
from scache.unix import paths
from scache.unix.namespace import user_name

APPLICATION_ID = 0x73636163
"""The mark of a database of scache ("scac"; SQLite docs, PRAGMA application_id)."""

_APPLICATION_ID_AT = 68

COMPANIONS: Final = ("-wal", "-shm", "-journal")
"""Suffixes of the files that SQLite keeps beside a database."""

_OPEN_TOGETHER: Final = ("", "-wal", "-shm")

CLAIM_TIMEOUT: Final = 0.3
"""Seconds to wait for a lock on the file. A command that reads the file locks it for an instant."""

_CLAIM_PAUSE = 0.01

_NOT_REGULAR = "it is no regular file: choose another --database"

Loss = Literal["deleted", "replaced", "log"]
"""How a file is lost: it was deleted, another file has its name, or its log is missing."""


def followed(path: str) -> str:
    """Return the target of a link to a database, which is where SQLite keeps the log.

    Raises DatabaseError for a link of another user (see `paths.followed`).
    """
    try:
        real = paths.followed(path)
        return real if Path(path).is_symlink() else path
    except OSError as error:
        raise DatabaseError(f"cannot open the database {path}: {_reason(error, path)}") from error


def claim(path: str) -> int:
    """Open or create the file, and lock it against other daemons; return its descriptor.

    Close this descriptor last: closing any descriptor of the file drops the locks of SQLite. They
    do not conflict with this lock, which is one of flock(2).
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
        except BlockingIOError as error:
            other = holder(descriptor)
            os.close(descriptor)
            if time.monotonic() < deadline:
                time.sleep(_CLAIM_PAUSE)
                continue
            raise DatabaseError(_locked(path, other)) from error
        except OSError as error:
            os.close(descriptor)
            raise DatabaseError(
                f"cannot lock the database {path}: {reason_of(error)}: choose another --database"
            ) from error
        # Another daemon may have renamed the file between the open and the lock.
        if paths.identity(descriptor) == _identity(path):
            return descriptor
        os.close(descriptor)


def _locked(path: str, other: Holder) -> str:
    """Return why a database that another process has locked cannot be used."""
    if other.is_daemon:
        return (
            f"another scache daemon uses the database {path} (process {other.pid}): "
            "stop it, or choose another --database"
        )
    return (
        f"{other} holds a lock on the database {path}: start again when it has ended, or choose "
        "another --database"
    )


def _open(path: str) -> int:
    """Open or create a regular file that passes `paths.check_ours`. Raises OSError."""
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
    """Raise DatabaseError for a file beside a database that SQLite must not use.

    SQLite would block on a FIFO, and would apply the log of another user to the database. Files
    of the further ``owners`` are accepted too.
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
            continue  # SQLite reports why it cannot use the file


def exclusive_holder(path: str | Path) -> Holder | None:
    """Return the process with an exclusive lock on a file, which a daemon has; None without it.

    A daemon may use the file under another name.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder(descriptor)
    except OSError:  # a file system without such locks
        return None
    finally:
        os.close(descriptor)
    return None


def is_ours(descriptor: int) -> bool:
    """Return True if a file has the mark of scache, even if the rest is damaged."""
    mark = os.pread(descriptor, 4, _APPLICATION_ID_AT)
    return mark == APPLICATION_ID.to_bytes(4, "big")


def set_aside(path: str, now: float) -> str:
    """Rename a claimed database and the files beside it; return its new name.

    The new name contains the time ``now`` (seconds since the epoch).

    Call this while the database is open: SQLite then finds at the close that the file was moved,
    and leaves its log as it is. The database itself is renamed last, so that no other daemon can
    use its name before the files beside it are moved.
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
        """Take over the claim on a file that is open in SQLite, with its log."""
        self.path = path
        self._claim = claimed
        self._identities: list[paths.Identity | None] = [paths.identity(claimed)]
        self._identities += [_identity(f"{path}{suffix}") for suffix in _OPEN_TOGETHER[1:]]

    def close(self) -> None:
        """Release the claim on the file."""
        os.close(self._claim)

    def size(self) -> int:
        """Return the size of the database file in bytes."""
        return os.fstat(self._claim).st_size

    def loss(self) -> Loss | None:
        """Return how the files were lost since they were opened; None if all are in place."""
        file, *beside = (_identity(f"{self.path}{suffix}") for suffix in _OPEN_TOGETHER)
        if file is None:
            return "deleted"
        if file != self._identities[0]:
            return "replaced"
        return None if beside == self._identities[1:] else "log"

    def leave_to_another(self) -> None:
        """Remove this database's log and its index from beside the file that replaced it.

        SQLite would otherwise apply the log to that file, and damage it.
        """
        for suffix, ours in zip(_OPEN_TOGETHER[1:], self._identities[1:], strict=True):
            name = f"{self.path}{suffix}"
            if ours is not None and _identity(name) == ours:
                with suppress(OSError):
                    Path(name).unlink()

    def claim_successor(self) -> tuple[str, int]:
        """Create and claim an empty file beside the database, with its owner and mode.

        Return the name and the claim. Raises OSError.
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
        """Give a new file the name of the lost one. Never replaces another program's file.

        Raises OSError; FileExistsError if another file has the name.
        """
        loss = self.loss()
        if loss == "replaced":
            raise FileExistsError(errno.EEXIST, "another file is in its place")
        # SQLite would apply a log that is left behind to the new file.
        for suffix in COMPANIONS:
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        if loss == "deleted":
            os.link(successor, self.path)
            Path(successor).unlink()
        else:
            Path(successor).rename(self.path)


def _identity(path: str) -> paths.Identity | None:
    """Return the identity of a file; None if there is no file."""
    try:
        return paths.identity(path)
    except OSError:
        return None


def _reason(error: OSError, path: str) -> str:
    if reason := paths.why_not_created(error, path, "--database"):
        return reason
    match error.errno:
        case errno.EACCES:
            us = user_name(os.geteuid())
            return f"permission denied: let user {us} read and write it and its directory"
        case errno.EPERM:
            return "its file system or its attributes forbid that: choose another --database"
        case errno.EISDIR:
            return "it is a directory: name a file"
        case _:
            return reason_of(error)
