"""Limits, privileges and priority of this process, what it uses, and its children."""

from __future__ import annotations

import _thread
import errno
import os
import pwd
import re
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from scache.errors import ResourceError, SettingsError, reason_of
from scache.unix.namespace import UNCHANGED, user_name

CAPABILITIES: Final = {"CAP_CHOWN": 0, "CAP_SETGID": 6, "CAP_SETUID": 7}
"""Numbers of the capabilities that the daemon uses (Linux, include/uapi/linux/capability.h)."""

NO_THREAD: Final = (
    "no thread can be started: raise the limit on processes (ulimit -u, or TasksMax= in a unit of "
    "systemd)"
)

_STATM, _DESCRIPTORS = Path("/proc/self/statm"), Path("/proc/self/fd")

_EFFECTIVE = re.compile(r"^CapEff:\s*([0-9a-f]+)$", re.MULTILINE)


def raise_open_files(most: int) -> int:
    """Raise the soft limit on open files to the hard limit; return the limit in force.

    It is set to ``most`` if the hard limit is higher or unlimited: some container engines set a
    billion.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = most if hard == resource.RLIM_INFINITY else min(hard, most)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return open_files


def check_threads() -> None:
    """Raise ResourceError if this process may not start a thread."""
    with thread_needed():
        _thread.start_new_thread(int, ())


@contextmanager
def thread_needed() -> Iterator[None]:
    """Raise ResourceError in place of the RuntimeError of a thread that cannot be started."""
    try:
        yield
    except RuntimeError as error:
        if not is_no_thread(error):
            raise
        raise ResourceError(NO_THREAD) from error


def is_no_thread(error: RuntimeError) -> bool:
    """Return True for the error of Python if a thread cannot be started."""
    return "start new thread" in str(error)


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
            return f"{reason_of(error)}: choose another --user"


def lower_priority(niceness: int, increment: int) -> None:
    """Lower the priority of this process, a child, below that of its parent and of others.

    ``niceness`` is that of the parent. A process that may raise its priority again runs in
    SCHED_IDLE until its parent calls `end_idle`. Any other process could not leave SCHED_IDLE, so
    ``increment`` is added to the niceness instead.
    """
    can_raise = _can_raise_priority()
    os.setpriority(os.PRIO_PROCESS, 0, max(niceness, 0) + (0 if can_raise else increment))
    if can_raise:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def end_idle(pid: int, pidfd: int) -> None:
    """Take a child out of SCHED_IDLE, so that it gets a regular share of the processor."""
    with suppress(OSError):
        # Fails if the child has ended: its pid may then belong to another process.
        signal.pidfd_send_signal(pidfd, 0)
        os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))


def _can_raise_priority() -> bool:
    """Return True if this process may raise its priority: root without CAP_SYS_NICE may not."""
    try:
        os.nice(-1)
    except PermissionError:
        return False
    os.nice(1)
    return True


def end_by(number: int, _: object = None) -> None:
    """End this process at once by a signal; this is also a signal handler."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(128 + number)  # the kernel drops a signal without a handler for pid 1


def reap_children() -> None:
    """Let the kernel reap the children of this process, so that no wait(2) is needed.

    wait(2) for a child with thousands of descriptors takes up to 20 ms, during which no client is
    served. Without it, the child spends this time.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


class OwnUse:
    """The use of resources by this process; each figure costs a few system calls at most."""

    def __init__(self, boot_offset: float) -> None:
        """Count the descriptors that are open now, which takes long if there are many.

        ``boot_offset`` is the wall time when the machine was started, in seconds since the epoch.
        """
        self.start_time = boot_offset + time.clock_gettime(time.CLOCK_BOOTTIME)
        """The start of the process, in seconds since the epoch; that of this object without /proc.
        """
        self._descriptors = 0
        with suppress(OSError):
            # The name of the program, in parentheses, may have blanks and parentheses.
            fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
            self.start_time = boot_offset + int(fields[19]) / os.sysconf("SC_CLK_TCK")
            self._descriptors = len(os.listdir(_DESCRIPTORS)) - 1  # noqa: PTH208 - not itself

    def cpu_seconds(self) -> float:
        """Return the processor time of all threads, in seconds."""
        return time.process_time()

    def resident_bytes(self) -> int | None:
        """Return the bytes of memory in use (proc(5), statm); None without /proc."""
        try:
            return int(_STATM.read_bytes().split()[1]) * resource.getpagesize()
        except OSError:
            return None

    def open_descriptors(self, more: int) -> int:
        """Return the number of open descriptors.

        Before Linux 6.2 the kernel would have to list them. It is then the number at the start,
        and ``more``, which the caller has opened since.
        """
        try:
            return _DESCRIPTORS.stat().st_size or self._descriptors + more
        except OSError:
            return self._descriptors + more
