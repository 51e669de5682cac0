"""Notices clients that stop in the middle of an exchange."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, NamedTuple, Protocol, TypeVar


class Watched(Hashable, Protocol):
    """Somebody who must not stop half-way."""

    @property
    def half_done(self) -> bool:
        """Whether the rest of something is owed."""

    @property
    def progress(self) -> int:
        """How many steps were made so far."""

    @property
    def awaited_turn(self) -> int | None:
        """The number of the turn of ours that it waits for; None if it waits for none."""


W = TypeVar("W", bound=Watched)


class _Sight(NamedTuple):
    progress: int
    awaited_turn: int | None
    since: float


class Watchdog(Generic[W]):
    """Who has been half-way, without a step, for how long.

    Looks at everybody now and then, so that those who do make their steps, of
    which there are tens of thousands in a second, pay nothing for it.
    """

    def __init__(self, now: Callable[[], float], timeout: float) -> None:
        """Give each ``timeout`` seconds to make the next step.

        They are seconds of ``now``, a clock that stands still while the machine sleeps: clients
        sleep as well, and nobody is to be dropped for that.
        """
        self.interval = min(timeout / 10, 0.5)
        """Seconds between two looks; nobody gets more than two of these on top of the timeout."""
        self._now = now
        self._timeout = timeout
        self._seen: dict[W, _Sight] = {}

    def look(self, everybody: Iterable[W]) -> list[W]:
        """Return those whose time has run out."""
        now = self._now()
        before, self._seen = self._seen, {}
        overdue = []
        for each in everybody:
            if not each.half_done:
                continue
            sight, turn = before.get(each), each.awaited_turn
            since = now if sight is None or sight.progress != each.progress else sight.since
            if sight is not None and turn is not None and turn == sight.awaited_turn:
                since = now  # it had no chance to make one
            self._seen[each] = sight = _Sight(each.progress, turn, since)
            if now - sight.since >= self._timeout:
                overdue.append(each)
        return overdue
