"""The capabilities and the user of this process."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import re
from pathlib import Path
from typing import Final

from scache.errors import SettingsError
from scache.settings.values import UNCHANGED
from scache.unix.namespace import user_name

CAPABILITIES: Final = {"CAP_CHOWN": 0, "CAP_SETGID": 6, "CAP_SETUID": 7}
"""Numbers of the capabilities that the daemon uses (Linux, include/uapi/linux/capability.h)."""

_EFFECTIVE = re.compile(r"^CapEff:\s*([0-9a-f]+)$", re.MULTILINE)


def has_capability(name: str) -> bool:
    """Return True if this process has a capability of CAPABILITIES (proc(5), CapEff).

    Without /proc, root is assumed to have all of them.
    """
    try:
        found = _EFFECTIVE.search(Path("/proc/self/status").read_text(encoding="utf-8"))
    except OSError:
        found = None
    if found is None:
        return os.geteuid() == 0
    return bool(int(found[1], 16) >> CAPABILITIES[name] & 1)


def group_name(gid: int) -> str:
    """Return the name of a group, or the number if it has no name."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def become(uid: int, gid: int) -> None:
    """Change to this user and its groups; UNCHANGED keeps the user or the group.

    Raises SettingsError if the user or the groups cannot be set.
    """
    if uid == UNCHANGED:
        return
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        group, name = gid, None
    else:
        group, name = (user.pw_gid if gid == UNCHANGED else gid), user.pw_name
    needed = "CAP_SETGID"
    try:
        if name is None:
            os.setgroups([])
        else:
            os.initgroups(name, group)
        if group != UNCHANGED:
            os.setgid(group)
        needed = "CAP_SETUID"
        os.setuid(uid)
    except OSError as error:
        shown = user_name(uid)
        reason = _why_not_become(error, needed, shown)
        raise SettingsError(f"--user: cannot become user {shown}: {reason}") from error


def _why_not_become(error: OSError, needed: str, user: str) -> str:
    match error.errno:
        case errno.EPERM if not has_capability(needed):
            return (
                f"this process lacks {needed}: start it as root with that capability, "
                f"or start it as {user} and leave --user out"
            )
        case errno.EPERM:
            return (
                "its user namespace does not let it set groups (/proc/self/setgroups): "
                f"start it as {user} and leave --user out"
            )
        case errno.EINVAL:
            return (
                "the user or its group is not mapped in this user namespace "
                "(/proc/self/uid_map and gid_map): choose another --user"
            )
        case errno.EAGAIN:
            return "the user has too many processes: raise that limit (ulimit -u)"
        case _:
            return f"{error.strerror}: choose another --user"
