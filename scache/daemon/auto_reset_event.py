"""An event for repeated waits by one task."""

from __future__ import annotations

import math

import anyio


class AutoResetEvent:
    """An event that is cleared each time a wait for it returns."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Wake the waiting task, or let the next wait return at once."""
        self._event.set()

    async def wait(self, at_most: float = math.inf) -> bool:
        """Return True once the event is set, or False after ``at_most`` seconds."""
        if at_most == math.inf:
            await self._event.wait()
        else:
            with anyio.move_on_after(at_most):
                await self._event.wait()
        if not self._event.is_set():
            return False
        self._event = anyio.Event()
        return True
