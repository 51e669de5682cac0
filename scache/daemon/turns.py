"""Turns: those who ask for much wait for them, and leave time to others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_COMPANY = 0.02
"""Seconds for which somebody who asked for little counts as being there."""

_TURNS = 0.0006
"""Seconds of turns that those who ask for much have meanwhile, until the others have had theirs;"""

_WAITING = 8
"""as many again for each so many of those who wait,"""

_MOST = 0.002
"""but no more than so many."""

_REST = 0.006
"""Seconds that the others have then, so that most of their requests meet no turn."""

_SHARE = 8
"""After each look at who is ready comes one turn; more if to serve the others took long: turns for
so great a part of that time."""

Callback = Callable[[], None]


class Turns:
    """Whose turn it is, and when there is to be one."""

    def __init__(self, now: Callable[[], float]) -> None:
        """Go by this clock; seconds."""
        self._now = now
        self.waiting: deque[Callback] = deque()
        """Those who ask for much, in the order of their turns."""
        self._asked_much: dict[int, float] = {}
        """By descriptor, when its client asked for much; at most one for each there ever was."""
        self._company_until = 0.0
        """Until when these have to leave time to others."""
        self._left = _TURNS
        """Seconds of turns until the others are to have their time."""
        self._rest_until = 0.0
        """When that will be over."""
        self._others_had = 0.0
        """Seconds of it that they had between those turns."""
        self._others_now = 0.0
        """Seconds that they had since the last look at who is ready."""
        self._served_at = 0.0
        """When somebody was served last."""

    def ask(self, descriptor: int, callback: Callback, *, soon: bool) -> None:
        """Let somebody wait: until those before have had theirs, or the next of them."""
        self._asked_much[descriptor] = self._now()
        if soon:
            self.waiting.insert(1, callback)
        else:
            self.waiting.append(callback)

    def are_due(self) -> bool:
        """Whether it is time for one."""
        if not self.waiting:
            return False
        return self._now() >= min(self._company_until, self._rest_until)

    def begin(self, *, new_look: bool) -> None:
        """Know that those who are ready are about to be served: after a new look, or the rest."""
        self._served_at = self._now()
        if new_look:
            self._others_now = 0.0

    def served(self, descriptor: int) -> None:
        """Know that somebody was."""
        now = self._now()
        if now > self._asked_much.get(descriptor, 0) + _COMPANY:
            self._company_until = now + _COMPANY
            self._others_now += now - self._served_at
        self._served_at = now

    def take(self) -> None:
        """Let one have a turn, and more of them if the others took long."""
        began = self._now()
        end = began + self._others_now / _SHARE
        while True:
            self.waiting.popleft()()
            now = self._now()
            if now >= end or not self.waiting:
                break
        self._left -= now - began
        self._others_had += self._others_now
        if self._left <= 0:
            self._rest_until = now + _REST - self._others_had
            self._left = min(_MOST, _TURNS * (1 + len(self.waiting) // _WAITING))
            self._others_had = 0.0
