"""Idle exit: stop the daemon after ``max_idle`` seconds without clients."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio


class IdleTimer:
    """A timer that runs while no client is connected."""

    def __init__(self, max_idle: float) -> None:
        """Wait for ``max_idle`` seconds without clients; 0 waits for ever."""
        self._max_idle = max_idle
        self._clients = 0
        self._since = time.monotonic()
        """The time when a client was last connected, if none is now."""
        self._changed = anyio.Event()

    def change_limit(self, max_idle: float) -> None:
        """Wait for another number of seconds from now on; the timer starts over."""
        self._max_idle = max_idle
        self._since = time.monotonic()
        self._change()

    def connected(self) -> None:
        """Count a client."""
        self._clients += 1
        if self._clients == 1:
            self._change()

    def disconnected(self) -> None:
        """Count a client that disconnected; start the timer if it was the last one."""
        self._since = time.monotonic()
        self.discount()

    def discount(self) -> None:
        """Stop counting a client as if it had never connected."""
        self._clients -= 1
        if self._clients == 0:
            self._change()

    def _change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def wait(self, backlog_is_empty: Callable[[], bool]) -> None:
        """Return when no client was connected for ``max_idle`` seconds (scache(8), max_idle).

        The timer starts over if a client is in the backlog at that moment: the daemon was stopped
        (SIGSTOP) or out of descriptors.
        """
        while True:
            changed = self._changed
            if self._clients or not self._max_idle:
                await changed.wait()
                continue
            with anyio.move_on_after(self._since + self._max_idle - time.monotonic()):
                await changed.wait()
            if changed.is_set():
                continue
            if backlog_is_empty():
                return
            self._since = time.monotonic()
