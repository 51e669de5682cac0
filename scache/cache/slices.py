"""Time slices for background work, so that requests are answered in between."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

SLICE = 0.002
"""Seconds of background work until requests are served again."""

T = TypeVar("T")


def in_time(items: Iterable[T]) -> Iterator[T]:
    """Yield the first item, and the next ones until SLICE seconds have passed."""
    end = time.monotonic() + SLICE
    for item in items:
        yield item
        if time.monotonic() >= end:
            return
