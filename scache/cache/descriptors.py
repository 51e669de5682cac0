"""The table of cached descriptors. It owns each descriptor that is parked or in delivery."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from scache.cache.liveness import Kind, has_ended, lost_state
from scache.cache.slices import in_time
from scache.unix import sockopt
from scache.unix.closing import Closer

_HUNG_UP = select.EPOLLRDHUP  # epoll always reports EPOLLHUP and EPOLLERR
_DATA = select.EPOLLIN


class Parked(NamedTuple):
    """The part of a parked connection that is kept in memory."""

    id: int
    endpoint: bytes
    saved_at: float
    """A time of `Clock.now`, in seconds."""
    expires_at: float
    """A time of `Clock.now`, in seconds."""
    descriptor: int
    kind: Kind
    size: int
    """Bytes of the endpoint and the properties."""


class Descriptors:
    """Descriptors by row id.

    A descriptor is parked when its connection is saved, sent to the client that finds it, and
    closed when that client has received it. Only this class closes cached descriptors. It never
    reads from one and never changes its flags, because the next owner shares them.

    `watch` registers parked descriptors with epoll, so that hang-ups are noticed. It is called
    with a delay. Most connections are found before that and cost no system call.
    """

    def __init__(self, closer: Closer, *, close_on_data: bool = False) -> None:
        """Create an empty table; ``close_on_data`` treats data from a parked peer as a hang-up."""
        self.on_watch_failed: Callable[[OSError], None] = lambda _: None
        """Called when a connection cannot be watched. Each find polls it instead."""
        self._closer = closer
        self._events = _HUNG_UP | (_DATA if close_on_data else 0)
        self._epoll = select.epoll()
        self._parked: dict[int, Parked] = {}
        self._unwatched: dict[int, Parked] = {}
        """Parked connections that `watch` has not handled yet, by row id, oldest first."""
        self._watch_due = False
        """True if a connection was parked since `watch` last finished, or if some are left."""
        self._watched: dict[int, Parked] = {}
        """Parked connections that are registered with epoll, by descriptor."""
        self._in_delivery: dict[int, Parked] = {}

    def __len__(self) -> int:
        """Return the number of descriptors, parked and in delivery."""
        return len(self._parked) + len(self._in_delivery)

    def fileno(self) -> int:
        """Return a descriptor that is readable when `hung_up` has connections to check."""
        return self._epoll.fileno()

    def items(self) -> Iterator[tuple[int, int]]:
        """Yield the row id and descriptor of each connection that is parked or in delivery."""
        for parked in self._parked.values():
            yield parked.id, parked.descriptor
        for parked in self._in_delivery.values():
            yield parked.id, parked.descriptor

    def park(self, parked: Parked) -> bool:
        """Take ownership of a descriptor; return True if no call of `watch` was due before."""
        self._parked[parked.id] = self._unwatched[parked.id] = parked
        first, self._watch_due = not self._watch_due, True
        return first

    def drop(self, row_id: int) -> None:
        """Give up a descriptor that was parked just now; the caller owns it again."""
        self._parked.pop(row_id, None)
        self._unwatched.pop(row_id, None)

    def watch(self, limit: int) -> bool:
        """Watch up to ``limit`` unwatched connections; return True if more are unwatched.

        OPAQUE descriptors are not watched, because they have no peer that could hang up.
        """
        for row_id in in_time(list(islice(self._unwatched, limit))):
            parked = self._unwatched.pop(row_id)
            if parked.kind is Kind.OPAQUE:
                continue
            try:
                self._epoll.register(parked.descriptor, self._events_of(parked.kind))
            except PermissionError:  # the descriptor does not support epoll (epoll_ctl(2))
                continue
            except OSError as error:
                self.on_watch_failed(error)
                continue
            self._watched[parked.descriptor] = parked
        self._watch_due = bool(self._unwatched)
        return self._watch_due

    def hung_up(self, limit: int) -> list[Parked]:
        """Check up to ``limit`` ready connections; return those whose peers have hung up.

        The caller must close them.
        """
        gone = []
        for descriptor, events in self._epoll.poll(0, limit):
            if has_ended(self._watched[descriptor].kind, events):
                gone.append(self._watched[descriptor])
            else:  # it would stay ready; from now on each find polls it
                del self._watched[descriptor]
                self._epoll.unregister(descriptor)
        return gone

    def hang_up_of(self, parked: Parked) -> str | None:
        """Return the evidence that a connection is dead; None if it is not.

        An empty string means that its peer has hung up. A connection that is not watched yet is
        polled by itself.
        """
        kind, descriptor = parked.kind, parked.descriptor
        if kind is Kind.OPAQUE:
            return None
        if descriptor not in self._watched or self._epoll.poll(0, 1):
            events = sockopt.poll(descriptor, self._events_of(kind))
            if events and has_ended(kind, events):
                return ""
        state = lost_state(kind, descriptor)
        return None if state is None else f"no longer ESTABLISHED: {state}"

    def parked(self, row_id: int) -> Parked | None:
        """Return a parked connection; None if this daemon has none with this row id."""
        return self._parked.get(row_id)

    def begin_delivery(self, row_id: int) -> int:
        """Move a parked connection into delivery; return its descriptor."""
        # In this order, so that the descriptor has an owner even if memory runs out.
        parked = self._in_delivery[row_id] = self._parked[row_id]
        del self._parked[row_id]
        self._forget(parked)
        return parked.descriptor

    def take_back(self, row_id: int) -> Parked:
        """End the delivery of a connection that was not sent; the caller must park it again."""
        return self._in_delivery.pop(row_id)

    def close_delivered(self, row_id: int) -> None:
        """Close a descriptor that was sent to its finder."""
        parked = self._in_delivery.pop(row_id)
        self._closer.close_shared(parked.descriptor, tcp=parked.kind is Kind.ESTABLISHED)

    def close_undelivered(self, row_id: int) -> None:
        """Close a descriptor in delivery that no finder shares."""
        self._close(self._in_delivery.pop(row_id))

    def close_parked(self, parked: Parked) -> None:
        """Close a parked descriptor that was not found."""
        del self._parked[parked.id]
        self._forget(parked)
        self._close(parked)

    def close_all(self) -> None:
        """Close every descriptor when the daemon stops."""
        self._epoll.close()
        for parked in (*self._parked.values(), *self._in_delivery.values()):
            self._close(parked)
        for table in (self._parked, self._unwatched, self._watched, self._in_delivery):
            table.clear()

    def _events_of(self, kind: Kind) -> int:
        """Return the events that may mean a hang-up."""
        return _HUNG_UP if kind is Kind.LISTENING else self._events

    def _close(self, parked: Parked) -> None:
        self._closer.close((parked.descriptor,), tcp=parked.kind is Kind.ESTABLISHED)

    def _forget(self, parked: Parked) -> None:
        """Stop watching a connection.

        Call this before its descriptor is closed: epoll keeps reporting a descriptor that another
        process has open (epoll(7)).
        """
        if self._unwatched.pop(parked.id, None) is None and (
            self._watched.pop(parked.descriptor, None) is not None
        ):
            self._epoll.unregister(parked.descriptor)
