"""The scheduler of heavy clients: deficit round robin by time, light clients first.

A light client is served as soon as it is ready. Heavy clients (pipelines, large reads, new
connections) wait in one queue and get a quantum of time each in turn; while light clients are
active, all heavy clients together get an eighth of the time.

A quantum ends between two steps, so a step may overrun it; the client then has a deficit, and
skips the rounds that pay it off.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

QUANTUM = 0.0005
"""Seconds that a heavy client is served before the next one: a few steps of 16 requests."""

HEAVY_SHARE = 1 / 8
"""Part of the time that heavy clients get together while light clients are active. With a quantum
after each poll instead, almost every request of a light client waits for one (measured: seven
times the undisturbed median)."""

_ACTIVE = 0.02
"""Seconds for which a client counts as light or heavy after it was served."""

_BACKLOG = 0.05
"""Seconds of light service at a stretch for which heavy clients are compensated at most: a
thousand light clients take about that long."""

Callback = Callable[[], None]


class Scheduler:
    """Decides when heavy clients are served, and which."""

    def __init__(self, now: Callable[[], float]) -> None:
        """Measure time with this clock, in seconds."""
        self._now = now
        self._queue: deque[tuple[int, Callback]] = deque()
        self._deficits: dict[int, float] = {}
        """Seconds by which clients in the queue have overrun their quanta, by descriptor."""
        self._heavy_at: dict[int, float] = {}
        """When the client of a descriptor was last enqueued; bounded by the descriptors in use."""
        self._light_until = 0.0
        """Until when light clients count as active."""
        self._due_at = 0.0
        """When heavy clients have used no more than their share of the time."""

    @property
    def waiting(self) -> bool:
        """True while a heavy client is in the queue."""
        return bool(self._queue)

    @property
    def due(self) -> bool:
        """True if a heavy client is to be served now."""
        if not self._queue:
            return False
        now = self._now()
        return now >= self._light_until or now >= self._due_at

    def enqueue(self, descriptor: int, callback: Callback, *, second: bool = False) -> None:
        """Serve the client of a descriptor by this callback once, when it is its turn.

        ``second`` puts it behind the first in the queue: new connections get every other quantum,
        however many heavy clients there are.
        """
        self._heavy_at[descriptor] = self._now()
        if second:
            self._queue.insert(1, (descriptor, callback))
        else:
            self._queue.append((descriptor, callback))

    def served(self, descriptor: int) -> None:
        """Account for a client that was served outside of the queue while others wait in it."""
        now = self._now()
        if now <= self._heavy_at.get(descriptor, 0.0) + _ACTIVE:
            return
        if now >= self._light_until:  # its next request comes at once, so it goes before the others
            self._due_at = now + QUANTUM / HEAVY_SHARE
        self._light_until = now + _ACTIVE

    def run(self) -> None:
        """Serve heavy clients: one quantum, or what light clients owe them."""
        while self._queue:
            began = self._now()
            self._serve_quantum()
            now = self._now()
            if now >= self._light_until:
                return
            self._due_at = max(self._due_at, began - _BACKLOG) + (now - began) / HEAVY_SHARE
            if now < self._due_at:
                return

    def _serve_quantum(self) -> None:
        """Serve the first in the queue; it stays there if it enqueues itself again."""
        descriptor, callback = self._queue.popleft()
        left = self._deficits.pop(descriptor, 0.0) + QUANTUM
        while left > 0:
            began = self._now()
            callback()
            left -= self._now() - began
            if not self._queue or self._queue[-1][0] != descriptor:
                return
            _, callback = self._queue.pop()
        self._deficits[descriptor] = left
        self._queue.append((descriptor, callback))
