"""The scheduler of heavy clients: deficit round robin by time, light clients first.

A light client is served as soon as it is ready. Heavy clients (pipelines, large reads, new
connections) wait in one queue. The first in the queue gets one quantum of time and goes to the
end of the queue. While light clients are active, all heavy clients together get an eighth of the
time.

A step is not interrupted, so the last step of a quantum may overrun it. The client then has a
deficit, which reduces its next quanta.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

QUANTUM = 0.0005
"""Seconds of service for a heavy client before the next one; fits a few steps of 16 requests."""

HEAVY_SHARE = 1 / 8
"""Share of the time for all heavy clients while light clients are active. With one quantum after
each poll instead, almost every request of a light client waits for a quantum (measured: seven
times the median latency without heavy clients)."""

_ACTIVE = 0.02
"""Seconds for which a client counts as light or as heavy after it was served or enqueued."""

_BACKLOG = 0.05
"""Longest delay of heavy clients, in seconds, that the scheduler makes up for. Serving a thousand
light clients once takes about this long."""

Callback = Callable[[], None]


class _Waiting(NamedTuple):
    descriptor: int
    callback: Callback
    second: bool


class Scheduler:
    """A queue of heavy clients, with the rule that decides when the first one is served."""

    def __init__(self, now: Callable[[], float]) -> None:
        """Measure time with this clock, in seconds."""
        self._now = now
        self._queue: deque[_Waiting] = deque()
        self._deficits: dict[int, float] = {}
        """Seconds by which clients in the queue have overrun their quanta, by descriptor."""
        self._heavy_at: dict[int, float] = {}
        """Time at which each descriptor was last enqueued; one entry per descriptor number."""
        self._light_until = 0.0
        """Time until which light clients count as active."""
        self._due_at = 0.0
        """Time from which heavy clients are again below their share."""

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
        """Put a client into the queue; the callback runs one step for it.

        ``second`` inserts it behind the first in the queue. New connections use this: they get
        every other quantum, independent of the length of the queue.
        """
        self._heavy_at[descriptor] = self._now()
        self._insert(_Waiting(descriptor, callback, second))

    def served(self, descriptor: int) -> None:
        """Account for a client that was served directly while heavy clients wait in the queue."""
        now = self._now()
        if now <= self._heavy_at.get(descriptor, 0.0) + _ACTIVE:
            return
        # Light clients become active again. The next request of this client usually follows at
        # once, so heavy clients wait until it is served.
        if now >= self._light_until:
            self._due_at = now + QUANTUM / HEAVY_SHARE
        self._light_until = now + _ACTIVE

    def run(self) -> None:
        """Serve heavy clients for one quantum, or for more until they have had their share."""
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
        """Serve the first client in the queue for one quantum.

        The client goes back to its place in the queue if it has used its quantum and has more to
        do.
        """
        client = self._queue.popleft()
        descriptor = client.descriptor
        left = self._deficits.pop(descriptor, 0.0) + QUANTUM
        while left > 0:
            began = self._now()
            client.callback()
            left -= self._now() - began
            again = self._take(descriptor)
            if again is None:
                return
            client = again
        self._deficits[descriptor] = left
        self._insert(client)

    def _insert(self, client: _Waiting) -> None:
        if client.second:
            self._queue.insert(1, client)
        else:
            self._queue.append(client)

    def _take(self, descriptor: int) -> _Waiting | None:
        """Take a client that its last step has enqueued out of the queue; None if it has not."""
        for place in (len(self._queue) - 1, 1):
            if 0 <= place < len(self._queue) and self._queue[place].descriptor == descriptor:
                client = self._queue[place]
                del self._queue[place]
                return client
        return None
