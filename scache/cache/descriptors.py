"""The table of live descriptors, which owns each one that is parked or in delivery."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from scache.cache.liveness import Kind, has_ended, lost_state, poll
from scache.cache.slices import in_time
from scache.unix.closing import Closer

_HUNG_UP = select.EPOLLRDHUP  # EPOLLHUP and EPOLLERR are always told
_DATA = select.EPOLLIN


class Parked(NamedTuple):
    """A connection in the cache, as far as the process has to know it."""

    id: int
    endpoint: bytes
    saved_at: float
    """As `Clock.now` had it."""
    expires_at: float
    """As `Clock.now` will have it."""
    descriptor: int
    kind: Kind


class Descriptors:
    """Descriptors by row id.

    A descriptor is parked here when its connection is saved, lent to the client
    that found it, and closed when that client has it. Nobody else closes one.
    Nothing is ever read from one, and no flag of it is changed: its next owner
    shares them.

    Those that stay for longer than `watch` takes to be called are watched for
    their peers' hanging up: most are found sooner, and cost no system call.
    """

    def __init__(self, closer: Closer, *, close_on_data: bool = False) -> None:
        """Count unasked-for data from a peer as a hang-up, if it is to be."""
        self.on_watch_failed: Callable[[OSError], None] = lambda _: None
        """Called when a connection cannot be watched: each find looks at it instead."""
        self._closer = closer
        self._events = _HUNG_UP | (_DATA if close_on_data else 0)
        self._epoll = select.epoll()
        self._parked: dict[int, Parked] = {}
        self._unwatched: dict[int, Parked] = {}
        """Those that `watch` is to look at, the oldest first."""
        self._watch_due = False
        """Whether there were any since `watch` was last called."""
        self._watched: dict[int, Parked] = {}
        """By descriptor."""
        self._in_delivery: dict[int, Parked] = {}

    def __len__(self) -> int:
        """Return how many there are, parked and in delivery."""
        return len(self._parked) + len(self._in_delivery)

    def fileno(self) -> int:
        """Return a descriptor that is readable when `hung_up` has something to return."""
        return self._epoll.fileno()

    def items(self) -> Iterator[tuple[int, int]]:
        """Yield row id and descriptor of each that is parked or in delivery."""
        for parked in self._parked.values():
            yield parked.id, parked.descriptor
        for parked in self._in_delivery.values():
            yield parked.id, parked.descriptor

    def park(self, parked: Parked) -> bool:
        """Take ownership of a descriptor; return whether `watch` had nothing to do before."""
        self._parked[parked.id] = self._unwatched[parked.id] = parked
        first, self._watch_due = not self._watch_due, True
        return first

    def watch(self, limit: int) -> bool:
        """Begin to watch up to ``limit`` of those that are not; return whether there are more.

        What is OPAQUE has no peer that could hang up.
        """
        for row_id in in_time(list(islice(self._unwatched, limit))):
            parked = self._unwatched.pop(row_id)
            if parked.kind is Kind.OPAQUE:
                continue
            try:
                self._epoll.register(parked.descriptor, self._events_of(parked.kind))
            except PermissionError:  # poll(2) has nothing to say of it (epoll_ctl(2))
                continue
            except OSError as error:
                self.on_watch_failed(error)
                continue
            self._watched[parked.descriptor] = parked
        self._watch_due = bool(self._unwatched)
        return self._watch_due

    def hung_up(self, limit: int) -> list[Parked]:
        """Return those whose peers have hung up, of up to ``limit`` that are ready: close them."""
        gone = []
        for descriptor, events in self._epoll.poll(0, limit):
            if has_ended(self._watched[descriptor].kind, events):
                gone.append(self._watched[descriptor])
            else:  # it would be ready for ever; from now on each find looks at it
                del self._watched[descriptor]
                self._epoll.unregister(descriptor)
        return gone

    def hang_up_of(self, parked: Parked) -> str | None:
        """Return what shows that a connection is of no use any more; None if nothing does.

        An empty text stands for a hang-up of its peer. Most connections are found before they are
        watched: those are polled one by one.
        """
        kind, descriptor = parked.kind, parked.descriptor
        if kind is Kind.OPAQUE:
            return None
        if descriptor not in self._watched or self._epoll.poll(0, 1):
            events = poll(descriptor, self._events_of(kind))
            if events and has_ended(kind, events):
                return ""
        state = lost_state(kind, descriptor)
        return None if state is None else f"no longer ESTABLISHED: {state}"

    def parked(self, row_id: int) -> Parked | None:
        """Return one that is parked; None if somebody has put a row into the database."""
        return self._parked.get(row_id)

    def begin_delivery(self, row_id: int) -> int:
        """Set one aside for delivery, and return it."""
        parked = self._parked.pop(row_id)
        self._forget(parked)
        self._in_delivery[row_id] = parked
        return parked.descriptor

    def take_back(self, row_id: int) -> Parked:
        """Return one that was lent and never sent: it is to be parked again."""
        return self._in_delivery.pop(row_id)

    def close_delivered(self, row_id: int) -> None:
        """Close one that its finder has been sent."""
        parked = self._in_delivery.pop(row_id)
        self._closer.close_shared(parked.descriptor, tcp=parked.kind is Kind.ESTABLISHED)

    def close_undelivered(self, row_id: int) -> None:
        """Close one whose finder has gone."""
        self._close(self._in_delivery.pop(row_id))

    def close_parked(self, parked: Parked) -> None:
        """Close one that leaves in another way than by being found."""
        del self._parked[parked.id]
        self._forget(parked)
        self._close(parked)

    def close_all(self) -> None:
        """Close everything: the daemon ends."""
        self._epoll.close()
        for parked in (*self._parked.values(), *self._in_delivery.values()):
            self._close(parked)
        for table in (self._parked, self._unwatched, self._watched, self._in_delivery):
            table.clear()

    def _events_of(self, kind: Kind) -> int:
        """Return the events that may tell of a hang-up."""
        return _HUNG_UP if kind is Kind.LISTENING else self._events

    def _close(self, parked: Parked) -> None:
        self._closer.close((parked.descriptor,), tcp=parked.kind is Kind.ESTABLISHED)

    def _forget(self, parked: Parked) -> None:
        """Watch it no longer; before it is closed, for others may have it open (epoll(7))."""
        if self._unwatched.pop(parked.id, None) is None and (
            self._watched.pop(parked.descriptor, None) is not None
        ):
            self._epoll.unregister(parked.descriptor)
