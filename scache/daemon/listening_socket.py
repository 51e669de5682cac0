"""The socket that the daemon listens on: creation, access rights, owner and removal of its file."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from scache.daemon.identity import is_bound_to
from scache.daemon.ownership import why_not_given
from scache.errors import SocketError, reason_of
from scache.escape import one_line
from scache.unix import fchownat
from scache.unix.closing import Closer
from scache.unix.namespace import UNCHANGED, unmapped, user_name
from scache.unix.paths import Identity, identity, why_not_created
from scache.unix.stale_socket import remove_stale

MAX_PATH_SIZE = 107
"""Bytes that the path of a UNIX socket may have (unix(7), sun_path)."""

_START_LOCK_TIMEOUT = 1.0
"""Seconds to wait for the lock of another daemon that starts in the same directory."""

Loss = Literal["removed", "replaced"]
"""How the path of a socket is lost: there is no file, or another file has its name."""

logger = logging.getLogger(__name__)


def make_directory(path: Path) -> None:
    """Create the directory of the default socket: mode 0755 for root, 0700 for another user.

    Raises SocketError if it cannot be created. Raises it as well if another user may write to the
    directory, because that user could replace the socket.
    """
    uid = os.geteuid()
    try:
        with suppress(FileExistsError):
            path.mkdir(mode=0o755 if uid == 0 else 0o700)
        status = path.lstat()
    except OSError as error:
        raise SocketError(f"cannot make the directory {path}: {_reason(error, path)}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise SocketError(f"{path} is not a directory: remove it, or choose another --socket")
    flaw = None
    if status.st_uid != uid or not _belongs_to_us(path, uid):
        flaw = f"belongs to the user {user_name(status.st_uid)}"
    elif status.st_mode & 0o022:
        flaw = f"has the mode {stat.S_IMODE(status.st_mode):04o}"
    if flaw is not None:
        raise SocketError(
            f"the directory {path} {flaw}, so another user could replace the socket: remove the "
            "directory if no daemon uses it, or choose another --socket"
        )


def _belongs_to_us(path: Path, uid: int) -> bool:
    """Return True if this process owns a directory that stat(2) shows with its user ID.

    In a user namespace, stat(2) shows unmapped owners with the overflow ID, which can be the ID of
    this process. fchmod(2) succeeds only for the real owner.
    """
    if not unmapped("uid").may_be(uid):
        return True
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.fchmod(handle, stat.S_IMODE(os.fstat(handle).st_mode))  # only the owner may do this
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


class ListeningSocket:
    """A socket that listens at a path and removes the path when it is closed."""

    def __init__(
        self, path: Path, mode: int, owner: tuple[int, int], *, make_parent: bool = False
    ) -> None:
        """Listen at this path, with this mode and owner (uid, gid; -1 keeps the current one).

        ``make_parent`` is for the default socket, whose directory is created (`make_directory`).

        A stale socket, on which no process listens, is replaced. Raises SocketError if another
        process listens there, if the path cannot be used or if the owner cannot be set. The new
        socket is removed in that case.
        """
        size = len(os.fsencode(path))
        if size > MAX_PATH_SIZE:
            raise SocketError(
                f"the socket path {path} has {size} bytes, and UNIX allows {MAX_PATH_SIZE}: "
                "choose a shorter --socket"
            )
        self.path, self._mode, self._owner, self._make_parent = path, mode, owner, make_parent
        if make_parent:
            make_directory(path.parent)
        with _named(path), _starting_in(path.parent):
            remove_stale(path, "--socket")
            self.socket, self._identity = _listening_at(path, mode, owner)

    def loss(self) -> Loss | None:
        """Return how the path was lost; None if it names this socket, or if that is not known."""
        return _loss(self.path, self._identity)

    def renew(self) -> socket.socket:
        """Listen anew at the path, where no file may be; return the old socket.

        Raises SocketError.
        """
        if self._make_parent:
            make_directory(self.path.parent)
        old = self.socket
        with _named(self.path):
            self.socket, self._identity = _listening_at(self.path, self._mode, self._owner)
        return old

    def close(self, closer: Closer | None = None) -> None:
        """Stop listening; remove the path if it still names this socket.

        close(2) can block, because it frees the descriptors that clients in the backlog have sent.
        ``closer`` does this without blocking the caller.
        """
        if closer is not None and self.socket.fileno() >= 0:
            closer.close((self.socket.detach(),))
        self.socket.close()
        _remove(self.path, self._identity)


class InheritedSocket:
    """A listening socket that a supervisor has made and keeps, so its path is never removed."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over this listening socket; its path may be relative to the working directory."""
        self.socket = sock
        self.path = Path(sock.getsockname()).absolute()
        self._identity: Identity | None = None
        # The path may be that of another mount namespace. It is not watched then.
        try:
            found = identity(self.path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            self._warn("it was removed or renamed")
        except OSError:
            pass
        else:
            if is_bound_to(sock, found):
                self._identity = found
            else:
                self._warn("another file has its place")

    def _warn(self, loss: str) -> None:
        logger.warning(
            "the supervisor passed a socket that is not at its path %s any more (%s), so clients "
            "cannot reach the daemon there: restart the supervisor's socket, such as the socket "
            "unit of systemd",
            one_line(str(self.path)),
            loss,
        )

    def loss(self) -> Loss | None:
        """Return how the path was lost since the start; None if it was not, or is not known."""
        return None if self._identity is None else _loss(self.path, self._identity)

    def close(self, closer: Closer | None = None) -> None:
        """Stop accepting clients; the supervisor goes on listening.

        ``closer`` does this without blocking the caller.
        """
        if closer is not None and self.socket.fileno() >= 0:
            closer.close((self.socket.detach(),))
        self.socket.close()


def _listening_at(path: Path, mode: int, owner: tuple[int, int]) -> tuple[socket.socket, Identity]:
    """Make a socket that listens at a path; never replace a file. Raises OSError or SocketError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    made: Identity | None = None
    try:
        _bind(sock, path, mode)
        with _held(path) as (handle, made):
            _give(handle, path, owner)
        # Listen last: no client can connect before the owner of the socket is set.
        sock.listen(socket.SOMAXCONN)
    except BaseException:
        sock.close()
        _remove(path, made)
        raise
    return sock, made


def _loss(path: Path, ours: Identity) -> Loss | None:
    try:
        found = identity(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return "removed"
    except OSError:  # the user of the daemon may not enter the directory, for example
        return None
    return None if found == ours else "replaced"


def _remove(path: Path, ours: Identity | None) -> None:
    """Remove the file at a path if it has this identity."""
    try:
        if identity(path, follow_symlinks=False) == ours:
            path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        # Not an error: the next daemon with write access to the directory replaces the socket.
        logger.info("the socket %s is left behind: %s", path, reason_of(error))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Raise SocketError in place of an OSError in the block, with the path and the remedy."""
    try:
        yield
    except OSError as error:
        raise SocketError(f"cannot make the socket {path}: {_reason(error, path)}") from error


def _bind(sock: socket.socket, path: Path, mode: int) -> None:
    """Bind the socket with its final mode, so that access is never wider than the setting."""
    umask = os.umask(0o777 & ~mode)
    try:
        sock.bind(os.fspath(path))
    finally:
        os.umask(umask)


@contextmanager
def _held(path: Path) -> Iterator[tuple[int, Identity]]:
    """Open the socket at a path; yield an O_PATH descriptor and its identity (device, inode).

    A process with write access to the directory can replace the socket by a link to any file. So
    the path is resolved only once and links are not followed. Raises SocketError if the file at
    the path is not a socket.
    """
    handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(handle).st_mode):
            raise SocketError(
                f"another process has replaced the socket {path} by another file: "
                "choose another --socket, in a directory that only this user may write to"
            )
        yield handle, identity(handle)
    finally:
        os.close(handle)


def _give(handle: int, path: Path, owner: tuple[int, int]) -> None:
    """Set the owner (uid, gid) of the socket that the O_PATH descriptor ``handle`` refers to."""
    if owner == (UNCHANGED, UNCHANGED):
        return
    try:
        fchownat.chown(handle, *owner)
    except OSError as error:
        reason = why_not_given(error, *owner)
        raise SocketError(f"cannot make the socket {path}: {reason}") from error


@contextmanager
def _starting_in(directory: Path) -> Iterator[None]:
    """Lock the directory, so that two starting daemons do not replace each other's new socket."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _START_LOCK_TIMEOUT
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _reason(error: OSError, path: Path) -> str:
    directory = path.parent
    if reason := why_not_created(error, path, "--socket"):
        return reason
    match error.errno:
        case errno.EACCES:
            return f"permission denied: run as a user who may read, enter and write to {directory}"
        case errno.EPERM | errno.ENOENT:
            return f"{directory} or its file system lets no user make it: choose another --socket"
        case errno.EADDRINUSE:
            return "another program has just made it: choose another --socket, or try again"
        case _:
            return f"{reason_of(error)}: choose another --socket"
