"""Which sockets are ready: one epoll for all of them, inside asyncio's loop.

A turn of asyncio's loop costs more than most messages do. So the sockets are
not watched by that loop but by an epoll of our own, which the loop watches as a
single descriptor. When that is ready, whatever is ready is served, and what
becomes ready meanwhile, for a slice of time, before the loop has its next turn.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT

SLICE = 0.002
"""Seconds that the sockets are served until everything else on the loop has its turn."""

_LINGER = 0.001
"""Seconds to wait for the next message within a slice: the shortest that epoll can wait.
A client that is served has its next message ready sooner than the loop can make a turn."""


class Readiness:
    """Calls back when a descriptor is ready, again and again until it is removed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._later: list[Callable[[], None]] = []
        self._going_on = False
        loop.add_reader(self._epoll.fileno(), self._serve)

    def add(self, descriptor: int, callback: Callable[[], None], events: int = READABLE) -> None:
        """Call back whenever one of these events, or a hang-up, is there."""
        self._callbacks[descriptor] = callback
        self._epoll.register(descriptor, events)

    def modify(self, descriptor: int, events: int) -> None:
        """Wait for these events from now on."""
        self._epoll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Forget a descriptor; to be called before it is closed."""
        del self._callbacks[descriptor]
        self._epoll.unregister(descriptor)

    def call_later(self, callback: Callable[[], None]) -> None:
        """Call back once, when those that are ready now have been served."""
        self._later.append(callback)
        self._continue()

    def close(self) -> None:
        """Watch nothing any more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _continue(self) -> None:
        """Make sure that what is to be called later will be, though no descriptor be ready."""
        if not self._going_on:
            self._going_on = True
            self._loop.call_soon(self._serve)

    def _serve(self) -> None:
        """Serve for a slice of time, or until nobody has anything more to say."""
        self._going_on = True
        try:
            end = self._loop.time() + SLICE
            while self._serve_once() and self._loop.time() < end:
                pass
        finally:
            self._going_on = False
            if self._later:
                self._continue()

    def _serve_once(self) -> bool:
        """Call back for whoever is ready; return whether there may be more to do at once."""
        later, self._later = self._later, []
        for callback in later:
            callback()
        ready = self._epoll.poll(0 if later else _LINGER)
        for descriptor, _ in ready:
            # One of those before may have closed it.
            ready_callback = self._callbacks.get(descriptor)
            if ready_callback is not None:
                ready_callback()
        return bool(ready or self._later)
