"""Paths through directories that other users may write to, such as /tmp.

Linux itself refuses links, FIFOs and files there that another user may have made to be taken for
ours (proc_sys_fs(5): protected_symlinks and its siblings), but only if the machine is set so, and
not where a program reads a link by itself.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from pathlib import Path

from scache.unix.namespace import unmapped, user_name

_MAX_LINKS = 40
"""Links that the kernel follows on one path (path_resolution(7))."""


class UntrustedError(OSError):
    """What lies at a path may have been put there by another user; ``strerror`` says so."""

    def __init__(self, path: Path, why: str) -> None:
        self.sentence = (
            f"{path} {why}, and other users may write to its directory: choose another path"
        )
        super().__init__(errno.ELOOP, self.sentence, str(path))


def followed(path: str) -> str:
    """Return where a path leads through symbolic links, as far as there is something.

    Raises UntrustedError for a link of another user, and OSError if there are too many links, or
    one of proc(5) to what has no path here.
    """
    place = _follow(path)
    if os.path.realpath(place) != os.path.abspath(place):  # noqa: PTH100 - without following links
        raise OSError(errno.ELOOP, "it has another name here, or none: name the file itself", path)
    return place


def check_ours(path: str, status: os.stat_result, *owners: int) -> None:
    """Raise UntrustedError for a file that another user may have put there to be taken for ours.

    That is one in a directory that others may write to, if its owner is neither we, nor the owner
    of the directory, nor among ``owners``; or if it has further names, as it may be any file.
    """
    directory = Path(path).parent.stat()
    _check_owner(Path(path), status, directory, "is a file", *owners)
    if status.st_nlink > 1 and _is_shared(directory):
        raise UntrustedError(Path(path), "has further names (hard links)")


def open_ours(path: str) -> int:
    """Open a file to be read that decides what we do; raise OSError, such as UntrustedError."""
    file = Path(_follow(path))
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not file.is_symlink():
            check_ours(str(file), status)
        if not stat.S_ISREG(status.st_mode):  # a pipe or a terminal of ours, for which we wait
            waiting = select.poll()
            waiting.register(descriptor, select.POLLIN)
            waiting.poll()
            os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _follow(path: str) -> str:
    """Follow links as `followed` does, but leave one of proc(5) that leads to no path as it is."""
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
        except (OSError, ValueError):  # the kernel says why, if it is opened
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
    """Return what ``..`` leads to from a path without links."""
    if path == Path("/"):
        return path
    return path / ".." if path.name in ("", "..") else path.parent


def _leads_to(link: Path, place: Path) -> bool:
    """Return False for a link of proc(5) that does not lead to the place that it tells."""
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
    known = uid in (os.geteuid(), directory.st_uid, *owners) and not unmapped("uid").may_be(uid)
    if _is_shared(directory) and not known:
        raise UntrustedError(path, f"{what} of user {user_name(uid)}")
