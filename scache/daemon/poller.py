"""An epoll poller for the client sockets, driven from asyncio's event loop.

One iteration of asyncio's event loop takes longer than serving most messages. So the sockets are
registered with a separate epoll instance, which the loop watches as a single descriptor. When it
is ready, the poller serves the ready sockets and polls again, for one slice of time, and then
returns to the loop.
"""

from __future__ import annotations

import asyncio
import logging
import select
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from scache.daemon.client_log import out_of_memory
from scache.daemon.scheduler import Callback, Scheduler

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT

SLICE = 0.002
"""Seconds of serving sockets before control returns to the event loop."""

_LINGER = 0.001
"""Seconds to wait for the next message within a slice: the shortest time-out of epoll. A client
often sends its next message sooner than one iteration of the event loop takes."""

_FEW = 8
"""Sockets served between two readings of the clock."""

logger = logging.getLogger(__name__)


class Poller:
    """An epoll instance with one callback per descriptor, called each time it is ready."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Create the epoll instance and register it with this event loop."""
        self._loop = loop
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._ready: deque[int] = deque()
        """Descriptors that a poll reported as ready and that are not served yet."""
        self._later: deque[Callback] = deque()
        self._scheduler = Scheduler(loop.time)
        self._queued = False
        self._paused = False
        loop.add_reader(self._epoll.fileno(), self._serve)

    def add(self, descriptor: int, callback: Callback) -> None:
        """Call back whenever the descriptor is readable or its peer has closed."""
        self._epoll.register(descriptor, READABLE)
        self._callbacks[descriptor] = callback

    def modify(self, descriptor: int, events: int) -> None:
        """Poll a descriptor for these events from now on."""
        self._epoll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Stop polling a descriptor, if it is registered; call this before closing it."""
        if self._callbacks.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def descriptors(self) -> list[int]:
        """Return the registered descriptors and the descriptor of the epoll instance."""
        return [*self._callbacks, self._epoll.fileno()]

    def call_later(self, callback: Callback) -> None:
        """Call back once, before the next poll; the callback must be short."""
        self._later.append(callback)
        self._queue()

    def enqueue(self, descriptor: int, callback: Callback, *, second: bool = False) -> None:
        """Call back once, when the scheduler of heavy clients decides (`Scheduler.enqueue`)."""
        self._scheduler.enqueue(descriptor, callback, second=second)
        self._queue()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop serving sockets and queued callbacks inside the context."""
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
        """Unregister from the event loop and close the epoll instance."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _queue(self) -> None:
        """Schedule one call of `_serve` on the event loop, even if no descriptor is ready."""
        if not self._queued:
            self._queued = True
            self._loop.call_soon(self._serve_queued)

    def _serve_queued(self) -> None:
        self._queued = False
        if not self._paused and not self._epoll.closed:
            self._serve()

    def _serve(self) -> None:
        """Serve for one slice of time, or until no client has anything to serve."""
        now = self._loop.time
        end = now() + SLICE
        more = True
        while more and now() < end:
            try:
                more = self._serve_once(end)
            except MemoryError:
                out_of_memory()
            except Exception:
                # A bug in one callback must not stop the daemon: other sockets are still ready.
                logger.exception("a bug while serving a socket, please report it")
        if self._unfinished:
            self._queue()

    @property
    def _unfinished(self) -> bool:
        return bool(self._ready or self._later or self._scheduler.waiting)

    def _serve_once(self, end: float) -> bool:
        """Serve the light clients that are ready, then heavy clients if they are due.

        Return True if there may be more to serve at once.
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
            # An earlier callback may have removed the descriptor.
            callback = self._callbacks.get(descriptor)
            if callback is not None:
                callback()
                if scheduler.waiting:
                    scheduler.served(descriptor)
            served += 1
            if self._ready and not served % _FEW and self._loop.time() >= end:
                return True  # the next slice starts with the remaining ready sockets
        if scheduler.due:
            scheduler.run()
        return bool(served or self._unfinished)
