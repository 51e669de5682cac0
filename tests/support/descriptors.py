"""The descriptors of a process."""

from __future__ import annotations

import os
from pathlib import Path


def descriptors_of(pid: int) -> dict[int, str]:
    """Return what a process has open, and what each is."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - Path.iterdir holds a descriptor
        try:
            found[int(name)] = str(Path(f"/proc/{pid}/fd/{name}").readlink())
        except FileNotFoundError:  # such as the one that listed the directory
            continue
    return found
