"""User and group ids in the user namespace of this process.

A namespace that does not map all ids shows each unmapped id as the overflow id, so that many users
have the same id (user_namespaces(7)).
"""

from __future__ import annotations

import grp
import pwd
from pathlib import Path
from typing import Final, Literal, NamedTuple

ROOT: Final = 0
"""The user and group id of root in every namespace."""

UNCHANGED: Final = -1
"""The id that stands for "keep the user" or "keep the group", as in chown(2)."""

Kind = Literal["uid", "gid"]

PROC = Path("/proc")
"""The file system that shows how a namespace maps ids."""

_ALL: Final = 2**32 - 1
"""The number of valid ids. The largest number of 32 bits is not an id."""


class Unmapped(NamedTuple):
    """The users or groups that the namespace does not map."""

    exist: bool
    """True if there may be unmapped users or groups."""
    shown: int | None
    """The overflow id; None if it is unknown. It may then be any id except root's."""

    def may_be(self, number: int) -> bool:
        """Return True if this id may be that of an unmapped user or group."""
        if not self.exist:
            return False
        return number != ROOT if self.shown is None else number == self.shown


def user_name(uid: int) -> str:
    """Return the name of a user, or the uid as text if it has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """Return the name of a group, or the gid as text if it has no name."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def described(users: Unmapped, groups: Unmapped) -> str | None:
    """Return a sentence about unmapped users and groups; None if all are mapped."""
    if not (users.exist or groups.exist):
        return None
    if users.shown is None or groups.shown is None:
        return (
            "/proc does not show the overflow ids of this user namespace, so admin_*, allow_* and "
            "the daemon's own user match only root: mount /proc"
        )
    return (
        "this user namespace does not map all users and groups, and shows unmapped ones as uid "
        f"{users.shown} and gid {groups.shown}: these ids match neither the daemon's own user nor "
        "admin_* and allow_*"
    )


def unmapped(kind: Kind) -> Unmapped:
    """Return the unmapped users or groups; if proc(5) is unreadable, assume that there are some."""
    try:
        lines = (PROC / f"self/{kind}_map").read_bytes().splitlines()
        exist = sum(int(line.split()[2]) for line in lines) < _ALL  # extents never overlap
    except (OSError, ValueError, IndexError):
        exist = True
    try:
        shown = int((PROC / f"sys/kernel/overflow{kind}").read_bytes())
    except (OSError, ValueError):
        shown = None
    return Unmapped(exist, shown)
