"""Time-out detection for clients that stop in the middle of an exchange."""

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
        """True while the rest of an exchange is missing, or a reply is not fully sent."""

    @property
    def progress(self) -> int:
        """Number of steps that the client has made so far."""

    @property
    def awaited_quantum(self) -> int | None:
        """Number of the quantum that the client waits for in the queue; None if not queued."""

    def overdue(self) -> None:
        """Disconnect the client because it exceeded the timeout."""


W = TypeVar("W", bound=Watched)


class _Sight(NamedTuple):
    """The state of a half-done client at the last poll."""

    progress: int
    awaited_quantum: int | None
    looks: int
    """Polls since the first one that found the client at this step."""


class Watchdog(Generic[W]):
    """Detection of clients that have made no step of an exchange for the whole timeout.

    The daemon polls all clients every `interval` seconds, so a step needs no timer of its own.

    The watchdog counts polls, not seconds. While the daemon is stopped (SIGSTOP), the machine
    sleeps or the event loop is busy, a client can send data that the daemon does not read. A pause
    of any length counts as one interval. The watchdog also requires one poll more than the timeout
    holds, so the daemon reads the data sent during the pause before it drops the client.
    """

    def __init__(self, timeout: float) -> None:
        """Allow each client ``timeout`` seconds for its next step."""
        self._sights: dict[W, _Sight] = {}
        self.change_timeout(timeout)

    def change_timeout(self, timeout: float) -> None:
        """Allow each client this number of seconds from the next poll on."""
        self._looks = max(_MIN_LOOKS, math.ceil(timeout / _MAX_INTERVAL))
        self.interval = timeout / self._looks
        """Polling interval in seconds; a client is dropped 1 or 2 intervals after its timeout."""

    def look(self, clients: Iterable[W]) -> list[W]:
        """Poll all clients; return the ones that have exceeded the timeout."""
        before, self._sights = self._sights, {}
        overdue = []
        for client in clients:
            if not client.half_done:
                continue
            last, quantum = before.get(client), client.awaited_quantum
            looks = 0
            if last is not None and last.progress == client.progress:
                could_step = quantum is None or quantum != last.awaited_quantum
                looks = last.looks + 1 if could_step else 0
            self._sights[client] = _Sight(client.progress, quantum, looks)
            if looks > self._looks:
                overdue.append(client)
        return overdue
