"""The owner of the socket: error messages, and a check for an owner set by mistake."""

from __future__ import annotations

import errno
import os
import pwd
import stat
from pathlib import Path

from scache.errors import reason_of
from scache.unix.namespace import ROOT, UNCHANGED, group_name, user_name
from scache.unix.process import has_capability


def why_not_given(error: OSError, uid: int, gid: int) -> str:
    """Return a message: why the owner of the socket cannot be set, and the remedy.

    ``error`` is the error of chown(2). UNCHANGED stands for a user or group that is not set.
    """
    names = []
    if uid not in (UNCHANGED, os.geteuid()):
        names.append(f"user {user_name(uid)}")
    if gid != UNCHANGED:
        names.append(f"group {group_name(gid)}")
    owner = " and ".join(names) or f"user {user_name(uid)}"
    return f"it cannot be given to {owner}: {_why_refused(error, uid, gid)}"


def _why_refused(error: OSError, uid: int, gid: int) -> str:
    match error.errno:
        case errno.EPERM if has_capability("CAP_CHOWN"):
            return "its file system does not allow that: choose another --socket"
        case errno.EPERM if uid not in (UNCHANGED, os.geteuid()):
            return (
                "this process lacks CAP_CHOWN: start it as root with that capability, "
                f"or start it as {user_name(uid)} and leave --user and --socket-owner out"
            )
        case errno.EPERM:
            return (
                f"this process lacks CAP_CHOWN, and its user {user_name(os.geteuid())} is not in "
                f"that group: add it to {group_name(gid)}, or choose another group"
            )
        case errno.EINVAL:
            return (
                "this owner is not mapped in this user namespace (/proc/self/uid_map and gid_map): "
                "choose another owner"
            )
        case _:
            return f"{reason_of(error)}: choose another --socket"


def left_out(path: Path) -> str | None:
    """Return a warning if only root can connect to the socket at a path by mistake, else None.

    Example: root starts the daemon with a socket in the private directory of another program. The
    program's user cannot connect unless the socket has a suitable owner or mode. It is a mistake
    if the directory has an owner other than root, and neither this owner nor any other user except
    root can reach the socket and connect to it.
    """
    try:
        directory, sock = path.parent.stat(), path.lstat()
    except OSError:
        return None
    if directory.st_uid == ROOT or _lets_in_others(directory, sock):
        return None
    owner = user_name(directory.st_uid)
    return (
        f"user {owner} may not connect to the socket {path}, which belongs to "
        f"{user_name(sock.st_uid)} with mode {stat.S_IMODE(sock.st_mode):04o} in a directory of "
        f"{owner}: choose --user {owner} or --socket-owner {owner}"
    )


def _lets_in_others(directory: os.stat_result, sock: os.stat_result) -> bool:
    """Return True if a user other than root may connect (unix(7): write permission is needed)."""
    if sock.st_mode & stat.S_IWOTH:
        return True
    if sock.st_mode & stat.S_IWUSR and sock.st_uid != ROOT and _may_enter(directory, sock.st_uid):
        return True
    if not sock.st_mode & stat.S_IWGRP or sock.st_gid == ROOT:
        return False
    if directory.st_mode & stat.S_IXOTH:
        return True
    if directory.st_mode & stat.S_IXGRP and directory.st_gid == sock.st_gid:
        return True
    return _may_belong(directory.st_uid, sock.st_gid)


def _may_enter(directory: os.stat_result, uid: int) -> bool:
    if uid == directory.st_uid:
        return bool(directory.st_mode & stat.S_IXUSR)
    if directory.st_mode & stat.S_IXGRP and _may_belong(uid, directory.st_gid):
        return True
    return bool(directory.st_mode & stat.S_IXOTH)


def _may_belong(uid: int, gid: int) -> bool:
    """Return True if a user is in a group, or has no entry in the user database."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return True
    return gid in os.getgrouplist(user.pw_name, user.pw_gid)
