"""The child processes of a process."""

from __future__ import annotations

from pathlib import Path


def children_of(pid: int) -> str:
    """Return the process ids of the children of a process."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text()
