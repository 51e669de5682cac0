"""Finds the clients that stop in the middle of an exchange."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Generic, NamedTuple, Protocol, TypeVar

_MAX_INTERVAL = 0.5
_MIN_LOOKS = 10


class Watched(Hashable, Protocol):
    """A client of the daemon."""

    @property
    def half_done(self) -> bool:
        """True while the client owes the rest of an exchange, or does not take a reply."""

    @property
    def progress(self) -> int:
        """Steps that the client has made so far."""

    @property
    def awaited_turn(self) -> int | None:
        """The number of the turn that the client waits for; None if it waits for none."""


W = TypeVar("W", bound=Watched)


class _Sight(NamedTuple):
    """What a look has shown of a client that is half done."""

    progress: int
    awaited_turn: int | None
    looks: int
    """Looks since the first one that showed it at this step."""


class Watchdog(Generic[W]):
    """Tells which clients have made no step of an exchange for the whole timeout.

    The daemon looks at all clients every `interval` seconds, so a step costs nothing.

    Looks are counted instead of seconds. While the daemon is stopped (SIGSTOP), the machine sleeps
    or the event loop is busy, a client can send the rest of its exchange and it is not read. Such a
    pause counts as one interval, however long it is, and one more look than the timeout has room
    for has to agree: what was sent during the pause is read before that.
    """

    def __init__(self, timeout: float) -> None:
        """Allow each client ``timeout`` seconds for its next step."""
        self._looks = max(_MIN_LOOKS, math.ceil(timeout / _MAX_INTERVAL))
        self.interval = timeout / self._looks
        """Seconds between two looks; a client is dropped one or two intervals after its timeout."""
        self._sights: dict[W, _Sight] = {}

    def look(self, clients: Iterable[W]) -> list[W]:
        """Return the clients whose time has run out."""
        before, self._sights = self._sights, {}
        overdue = []
        for client in clients:
            if not client.half_done:
                continue
            last, turn = before.get(client), client.awaited_turn
            looks = 0
            if last is not None and last.progress == client.progress:
                could_step = turn is None or turn != last.awaited_turn
                looks = last.looks + 1 if could_step else 0
            self._sights[client] = _Sight(client.progress, turn, looks)
            if looks > self._looks:
                overdue.append(client)
        return overdue
