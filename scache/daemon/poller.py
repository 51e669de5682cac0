"""Which sockets are ready: one epoll for all of them, inside asyncio's loop.

A turn of asyncio's loop costs more than most messages do. So the sockets are
not watched by that loop but by an epoll of our own, which the loop watches as a
single descriptor. When that is ready, whatever is ready is served, and what
becomes ready meanwhile, for a slice of time, before the loop has its next turn.
"""

from __future__ import annotations

import asyncio
import logging
import select
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from scache.daemon.scheduler import Callback, Scheduler

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT

SLICE = 0.002
"""Seconds that the sockets are served until everything else on the loop has its turn."""

_LINGER = 0.001
"""Seconds to wait for the next message within a slice: the shortest that epoll can wait.
A client that is served has its next message ready sooner than the loop can make a turn."""

_FEW = 8
"""Sockets that are served between two looks at the time."""

logger = logging.getLogger(__name__)


class Poller:
    """Calls back when a descriptor is ready, again and again until it is removed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve within this loop."""
        self._loop = loop
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._ready: deque[int] = deque()
        """Those that were ready and have not been served yet."""
        self._later: deque[Callback] = deque()
        self._scheduler = Scheduler(loop.time)
        self._queued = False
        self._paused = False
        loop.add_reader(self._epoll.fileno(), self._serve)

    def add(self, descriptor: int, callback: Callback) -> None:
        """Call back whenever there is something to read, or a hang-up."""
        self._epoll.register(descriptor, READABLE)
        self._callbacks[descriptor] = callback

    def modify(self, descriptor: int, events: int) -> None:
        """Wait for these events from now on."""
        self._epoll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Forget a descriptor, if it was known; to be called before it is closed."""
        if self._callbacks.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def descriptors(self) -> list[int]:
        """Return all that are watched, and the one that watches them."""
        return [*self._callbacks, self._epoll.fileno()]

    def call_later(self, callback: Callback) -> None:
        """Call back once, for little, when those that are ready now have been served."""
        self._later.append(callback)
        self._queue()

    def enqueue(self, descriptor: int, callback: Callback, *, second: bool = False) -> None:
        """Call back once, as the scheduler of heavy clients decides (`Scheduler.enqueue`)."""
        self._scheduler.enqueue(descriptor, callback, second=second)
        self._queue()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Serve nobody for a moment."""
        self._loop.remove_reader(self._epoll.fileno())
        self._paused = True
        try:
            yield
        finally:
            self._paused = False
            self._loop.add_reader(self._epoll.fileno(), self._serve)
            if self._unfinished:
                self._queue()

    def close(self) -> None:
        """Watch nothing any more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _queue(self) -> None:
        """Make sure of a turn, though no descriptor be ready."""
        if not self._queued:
            self._queued = True
            self._loop.call_soon(self._serve_queued)

    def _serve_queued(self) -> None:
        self._queued = False
        if not self._paused and not self._epoll.closed:
            self._serve()

    def _serve(self) -> None:
        """Serve for a slice of time, or until nobody has anything more to say."""
        now = self._loop.time
        end = now() + SLICE
        more = True
        while more and now() < end:
            try:
                more = self._serve_once(end)
            except Exception:
                # A bug there must not keep the others from being served: they are still ready.
                logger.exception("cannot serve a socket as it should be, please report it")
        if self._unfinished:
            self._queue()

    @property
    def _unfinished(self) -> bool:
        return bool(self._ready or self._later or self._scheduler.waiting)

    def _serve_once(self, end: float) -> bool:
        """Serve the light clients that are ready, then heavy ones if they are due.

        Return whether there may be more to do at once.
        """
        for _ in range(len(self._later)):
            self._later.popleft()()
        scheduler = self._scheduler
        if not self._ready:
            ready = self._epoll.poll(0 if self._later or scheduler.due else _LINGER)
            self._ready.extend(descriptor for descriptor, _ in ready)
        served = 0
        while self._ready:
            descriptor = self._ready.popleft()
            # One of those before may have closed it.
            callback = self._callbacks.get(descriptor)
            if callback is not None:
                callback()
                if scheduler.waiting:
                    scheduler.served(descriptor)
            served += 1
            if self._ready and not served % _FEW and self._loop.time() >= end:
                return True  # the others come first in the next slice
        if scheduler.due:
            scheduler.run()
        return bool(served or self._unfinished)
