"""The ids of users and groups, as the user namespace of this process shows them.

A namespace that does not map all ids shows every other one as the overflow id, so that many users
look like one (user_namespaces(7)).
"""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import Final, Literal, NamedTuple

ROOT: Final = 0
"""The user and group id of root, in each namespace."""

Kind = Literal["uid", "gid"]

PROC = Path("/proc")
"""Where the kernel tells how a namespace maps ids."""

_ALL: Final = 2**32 - 1
"""Ids that there are: the last one of 32 bits means none."""


class Unmapped(NamedTuple):
    """The users, or groups, that the namespace has no id for."""

    exist: bool
    """Whether there can be any."""
    shown: int | None
    """The overflow id; None if that is not known, and may be any but root's."""

    def may_be(self, number: int) -> bool:
        """Return whether one of them may be shown as this id."""
        if not self.exist:
            return False
        return number != ROOT if self.shown is None else number == self.shown


def user_name(uid: int) -> str:
    """Return the name of a user, or the number if it has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def described(users: Unmapped, groups: Unmapped) -> str | None:
    """Return a sentence about users and groups that have no id here; None if all have one."""
    if not (users.exist or groups.exist):
        return None
    if users.shown is None or groups.shown is None:
        return (
            "/proc does not tell which ids this user namespace gives to users that it does not "
            "map: only root is let in by the daemon's own user, admin_* and allow_*"
        )
    return (
        "this user namespace does not map all users and groups, and shows the others as uid "
        f"{users.shown} and gid {groups.shown}: these ids match neither the daemon's own user nor "
        "admin_* and allow_*"
    )


def unmapped(kind: Kind) -> Unmapped:
    """Return which users or groups have no id here, as far as proc(5) tells; else suppose some."""
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
