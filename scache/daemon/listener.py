"""Accepting of clients, scheduled by the poller so that it does not delay connected clients."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from scache.daemon.listening_socket import InheritedSocket, ListeningSocket
from scache.daemon.poller import READABLE, Poller
from scache.errors import reason_of
from scache.unix.closing import Closer

_ACCEPTS_PER_STEP = 8
"""Clients accepted in one step before connected clients are served again."""

_VANISHED = 0.25
"""Cost of a client that has already closed its socket, as a fraction of an accepted client."""

_LOOK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)

_ACCEPT_PAUSE = 0.1
"""Seconds until the next accept(2) after the process or the system ran out of descriptors."""


class Listener:
    """The accepting side of the listening socket."""

    def __init__(
        self,
        sock: ListeningSocket | InheritedSocket,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        on_client: Callable[[socket.socket], None],
        on_shortage: Callable[[str], None],
        closer: Closer,
    ) -> None:
        """Call ``on_client`` for each client, and ``on_shortage`` when out of descriptors."""
        self._closer = closer
        self._listening = sock
        self._loop = loop
        self._poller = poller
        self._on_client = on_client
        self._on_shortage = on_shortage
        self._open = True
        self._queued = False
        """True while accepting waits in the scheduler's queue."""

    def start(self) -> None:
        """Begin to accept clients."""
        self._poller.add(self._listening.socket.fileno(), self._on_ready)

    def close(self) -> None:
        """Stop accepting clients and close the socket."""
        if not self._open:
            return
        self._open = False
        self._poller.remove(self._listening.socket.fileno())
        self._listening.close(self._closer)

    def take_over(self, old: socket.socket) -> None:
        """Accept clients of the new socket after `ListeningSocket.renew`; close the old one."""
        self._poller.remove(old.fileno())
        self._closer.close((old.detach(),))
        self.start()

    def _on_ready(self) -> None:
        """Enqueue accepting in the scheduler."""
        if self._queued:
            self._poll_for(0)  # level-triggered: each poll would report the socket
            return
        self._queued = True
        self._poller.enqueue(self._listening.socket.fileno(), self._accept, second=True)

    def _accept(self) -> None:
        """Accept up to _ACCEPTS_PER_STEP clients, and enqueue again if there may be more."""
        self._queued = False
        if not self._open:
            return
        self._poll_for(READABLE)
        left: float = _ACCEPTS_PER_STEP
        while left > 0:
            try:
                client, _ = self._listening.socket.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._pause(error)
                return
            if _has_vanished(client):
                client.close()
                left -= _VANISHED
            else:
                self._on_client(client)
                left -= 1
        self._on_ready()  # the backlog may hold more clients

    def _pause(self, error: OSError) -> None:
        """Stop accepting for _ACCEPT_PAUSE seconds; clients wait in the backlog meanwhile."""
        self._on_shortage(f"cannot accept a client now ({reason_of(error)}), trying again")
        self._poll_for(0)
        self._loop.call_later(_ACCEPT_PAUSE, self._resume)

    def _resume(self) -> None:
        if self._open:
            self._poll_for(READABLE)

    def _poll_for(self, events: int) -> None:
        """Poll the socket for these events; 0 keeps it registered without events."""
        self._poller.modify(self._listening.socket.fileno(), events)


def _has_vanished(client: socket.socket) -> bool:
    """Return True if a client has closed its socket without sending anything."""
    try:
        return not client.recv(1, _LOOK)
    except OSError:
        return False
