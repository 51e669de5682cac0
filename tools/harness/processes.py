"""Limits, memory and descriptors of processes."""

from __future__ import annotations

import os
import resource
from pathlib import Path


def prepare() -> None:
    """Raise the limit on open files, and remove inherited settings of Python and scache.

    The processes that a tool starts must not see these settings.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for name in list(os.environ):
        if name.startswith(("PYTHON", "SCACHE_")):
            del os.environ[name]


def resident(pid: int) -> int:
    """Return the resident memory of a process in KiB (VmRSS, proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1])


def descriptors(pid: int) -> int:
    """Return the number of descriptors that a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
