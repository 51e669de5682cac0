"""Deadlines of exchanges: one timeout for all, so that the first to begin is the first due."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from scache.clock import Clock

T = TypeVar("T", bound=Hashable)


def _nothing() -> None:
    """Stand in for a hook that nobody has set."""


class Deadlines(Generic[T]):
    """Who must come to an end by when.

    Starting and stopping one is a step in a dict that keeps its order: no timer
    is made for an exchange, of which there are thousands in a second.
    """

    def __init__(self, clock: Clock, timeout: float) -> None:
        """Give each member ``timeout`` seconds."""
        self.on_first: Callable[[], None] = _nothing
        """Called when a member starts and no other runs."""
        self._clock = clock
        self._timeout = timeout
        self._due: dict[T, float] = {}

    def start(self, member: T, *, again: bool = False) -> None:
        """Give a member its time; if it runs already, only ``again`` gives it the whole anew."""
        if again:
            self._due.pop(member, None)
        elif member in self._due:
            return
        if not self._due:
            self.on_first()
        self._due[member] = self._clock.now() + self._timeout

    def stop(self, member: T) -> None:
        """Set a member free."""
        self._due.pop(member, None)

    def next_due(self) -> float:
        """Return in how many seconds the first is due; inf if there is none."""
        for due in self._due.values():
            return due - self._clock.now()
        return math.inf

    def overdue(self) -> list[T]:
        """Return, set free, the members whose time has run out."""
        now = self._clock.now()
        members = []
        for member, due in self._due.items():
            if due > now:
                break
            members.append(member)
        for member in members:
            del self._due[member]
        return members
