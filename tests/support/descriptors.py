"""The descriptors of a process."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Let this process open so many descriptors, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The limit is on the numbers: those below the highest must all be in use.
    highest = max(descriptors_of(os.getpid()))
    fillers = [os.open(os.devnull, os.O_RDONLY)]
    while fillers[-1] < highest:
        fillers.append(os.dup(fillers[0]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)
