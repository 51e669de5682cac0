"""What the daemon's process has: memory and descriptors, from outside."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

INTERVAL = 0.5
"""Seconds between two looks."""


def resident(pid: int) -> int:
    """Return the memory that a process has in RAM (proc(5), VmRSS), in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ProcessLookupError(pid)


def descriptors(pid: int) -> int:
    """Return how many a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Memory(NamedTuple):
    """How memory went: KiB."""

    first: float
    """Median of the first quarter of the time."""
    last: float
    """Median of the last."""
    slope: float
    """KiB a minute: the straight line through all."""


def trend(samples: Sequence[tuple[float, float]]) -> Memory:
    """Sum samples up, which are seconds and KiB."""
    quarter = max(1, len(samples) // 4)
    values = [value for _, value in samples]
    slope = statistics.linear_regression(*zip(*samples, strict=True)).slope if quarter > 1 else 0.0
    return Memory(
        statistics.median(values[:quarter]), statistics.median(values[-quarter:]), slope * 60
    )


@contextmanager
def watching(pid: int) -> Iterator[list[tuple[float, float]]]:
    """Look at a process's memory until the end; the list grows."""
    samples: list[tuple[float, float]] = []
    enough = threading.Event()

    def look() -> None:
        while not enough.wait(INTERVAL):
            samples.append((time.monotonic(), float(resident(pid))))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield samples
    finally:
        enough.set()
        thread.join()
