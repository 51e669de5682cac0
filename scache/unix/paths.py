"""Safe use of paths through directories that other users may write to, such as /tmp.

Another user may create a link, FIFO or file there in place of the daemon's own. Linux refuses to
follow or open these (proc_sys_fs(5): protected_symlinks and similar), but only if the machine is
configured so, and not if a program reads a link itself.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from pathlib import Path
from typing import TypeAlias

from scache.unix.namespace import unmapped, user_name

Identity: TypeAlias = tuple[int, int]
"""Device and inode of a file."""

_MAX_LINKS = 40
"""Most links that the kernel follows on one path (path_resolution(7))."""


class UntrustedError(OSError):
    """Another user may have created the file or link at a path; ``strerror`` has the details."""

    def __init__(self, path: Path, why: str) -> None:
        self.sentence = (
            f"{path} {why}, and other users may write to its directory: choose another path"
        )
        super().__init__(errno.ELOOP, self.sentence, str(path))


def identity(file: str | Path | int, *, follow_symlinks: bool = True) -> Identity:
    """Return the identity of a file, given by path or descriptor. Raises OSError."""
    status = os.stat(file, follow_symlinks=follow_symlinks)  # noqa: PTH116 - takes descriptors too
    return status.st_dev, status.st_ino


def why_not_created(error: OSError, path: str | Path, option: str) -> str | None:
    """Return why a file cannot be created at a path, and the remedy; None if that is not known.

    ``option`` is the option of the command line that gave the path.
    """
    directory = Path(path).parent
    match error.errno:
        case errno.ENOENT if not directory.exists():
            return f"there is no directory {directory}: make it first"
        case errno.ENOTDIR:
            return f"{directory} is not a directory: choose another {option}"
        case errno.EROFS:
            return f"its file system is read-only: choose another {option}"
        case errno.ENOSPC | errno.EDQUOT:
            return "the disk is full: free some space"
        case _:
            return None


def followed(path: str) -> str:
    """Resolve the symbolic links of a path, as far as its parts exist.

    Raises UntrustedError for a link of another user, and OSError for too many links or for a link
    of proc(5) to a file without a path here.
    """
    place = _follow(path)
    if os.path.realpath(place) != os.path.abspath(place):  # noqa: PTH100 - without following links
        raise OSError(
            errno.ELOOP,
            "a link of /proc leads to a file without a path here: name the file itself",
            path,
        )
    return place


def check_ours(path: str, status: os.stat_result, *owners: int) -> None:
    """Raise UntrustedError for a file that another user may have created in place of our own.

    In a directory that other users may write to, the owner of a file must be this process's user,
    the owner of the directory or one of ``owners``. The file must not have further hard links,
    because another user may have linked any file there.
    """
    directory = Path(path).parent.stat()
    _check_owner(Path(path), status, directory, "is a file", *owners)
    if status.st_nlink > 1 and _is_shared(directory):
        raise UntrustedError(Path(path), "has several hard links")


def open_ours(path: str) -> int:
    """Open a trusted file, such as the configuration, for reading.

    Raises OSError, including UntrustedError.
    """
    file = Path(_follow(path))
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not file.is_symlink():
            check_ours(str(file), status)
        if not stat.S_ISREG(status.st_mode):  # wait for data from a pipe or terminal
            waiting = select.poll()
            waiting.register(descriptor, select.POLLIN)
            waiting.poll()
            os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _follow(path: str) -> str:
    """Resolve links as `followed` does, but keep a link of proc(5) to a file without a path."""
    rest = [*reversed(Path(path).parts)]
    here, links = Path(), 0
    while rest:
        name = rest.pop()
        if name == "..":
            here = _parent(here)
            continue
        directory, here = here, here / name
        try:
            status = here.lstat()
        except (OSError, ValueError):  # opening the path will raise the error
            return str(here.joinpath(*reversed(rest)))
        if not stat.S_ISLNK(status.st_mode):
            continue
        _check_owner(here, status, directory.stat(), "is a link")
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = here.readlink()
        if _leads_to(here, directory / target):
            here = directory
            rest += reversed(target.parts)
    return str(here)


def _parent(path: Path) -> Path:
    """Return the parent directory of a path without links."""
    if path == Path("/"):
        return path
    return path / ".." if path.name in ("", "..") else path.parent


def _leads_to(link: Path, place: Path) -> bool:
    """Return False for a link of proc(5) whose text is not the path of its target."""
    if not link.is_relative_to("/proc"):
        return True
    try:
        return link.samefile(place)
    except OSError:
        return False


def _is_shared(directory: os.stat_result) -> bool:
    return bool(directory.st_mode & (stat.S_ISVTX | stat.S_IWOTH))


def _check_owner(
    path: Path, status: os.stat_result, directory: os.stat_result, what: str, *owners: int
) -> None:
    uid = status.st_uid
    others = unmapped("uid")
    known = uid in (os.geteuid(), directory.st_uid, *owners) and not others.may_be(uid)
    if _is_shared(directory) and not known:
        if others.exist and others.shown is None:
            raise UntrustedError(path, f"{what} whose owner cannot be known without /proc")
        raise UntrustedError(path, f"{what} of user {user_name(uid)}")
