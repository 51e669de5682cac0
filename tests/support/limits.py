"""Resource limits of a process that runs, for a time."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.as_user import as_user

Limits = tuple[int, int]


def call(do: Callable[[], Limits]) -> Limits:
    """Call a function in this process."""
    return do()


@contextmanager
def limited(pid: int, what: int, soft: int) -> Iterator[None]:
    """Set a soft limit of a process for the time of the block."""
    # Root may lack CAP_SYS_RESOURCE, which this needs for a process of another user.
    run = call if Path(f"/proc/{pid}").stat().st_uid == os.geteuid() else as_user
    before = run(lambda: resource.prlimit(pid, what))
    run(lambda: resource.prlimit(pid, what, (soft, before[1])))
    try:
        yield
    finally:
        run(lambda: resource.prlimit(pid, what, before))
