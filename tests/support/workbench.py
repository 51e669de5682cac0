"""A daemon for a whole test module, its clients, and the connections that a test caches."""

from __future__ import annotations

import itertools
import os
import socket
from contextlib import ExitStack
from pathlib import Path

from scache.model import Status
from tests.support.daemon import Daemon
from tests.support.descriptors import descriptors_of
from tests.support.dialogue import (
    DEADLINE,
    Dialogue,
    Hit,
)

_numbers = itertools.count()
CONNECTED = "03"
"""The state of a connected socket (/proc/net/unix, St)."""


def client_count(daemon: Daemon) -> int:
    """Return the number of clients that the daemon has accepted and not disconnected."""
    own = descriptors_of(daemon.pid).values()
    count = 0
    for line in Path(f"/proc/{daemon.pid}/net/unix").read_text().splitlines():
        match line.split(maxsplit=7)[5:]:
            case [state, inode, path] if state == CONNECTED and path == str(daemon.path):
                count += f"socket:[{inode}]" in own
    return count


class Workbench:
    """A daemon, its clients, and the connections that they save."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.endpoints: list[bytes] = []
        self._stack = ExitStack()

    def client(self) -> Dialogue:
        """Return a new client, which disconnects at the end of the test."""
        return self._stack.enter_context(Dialogue(self.daemon.path))

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Return the two ends of a connection, closed at the end of the test."""
        ours, theirs = socket.socketpair()
        ours.settimeout(DEADLINE)
        return self._stack.enter_context(ours), self._stack.enter_context(theirs)

    def label(self, text: bytes = b"label") -> bytes:
        """Return a label that no other test uses."""
        self.endpoints.append(b"%b %d" % (text, next(_numbers)))
        return self.endpoints[-1]

    def park(
        self, client: Dialogue, endpoint: bytes, properties: bytes = b"", ttl: int = 60
    ) -> socket.socket:
        """Park one end of a connection, and return the other."""
        ours, theirs = self.pair()
        assert client.park(endpoint, theirs.fileno(), properties, ttl) is Status.OK
        theirs.close()
        return ours

    def own(self, descriptor: int) -> int:
        """Return the descriptor, which is closed at the end of the test."""
        self._stack.callback(os.close, descriptor)
        return descriptor

    def empty(self) -> None:
        """Remove the connections that the test has saved."""
        with Dialogue(self.daemon.path) as client:
            for endpoint in self.endpoints:
                while (hit := client.take_endp(endpoint)) is not None:
                    os.close(hit.descriptor)

    def close(self) -> None:
        """Close the clients and descriptors of the test."""
        self._stack.close()


def leads_to(hit: Hit | None, peer: socket.socket) -> bool:
    """Return True if a found connection is the other end of this one; close it."""
    assert hit is not None
    with socket.socket(fileno=hit.descriptor) as found:
        found.sendall(b"?")
        peer.setblocking(False)
        try:
            return peer.recv(2) == b"?"
        except BlockingIOError:
            return False
        finally:
            peer.settimeout(DEADLINE)


def expect_closed(peer: socket.socket) -> None:
    """Wait until all descriptors of the other end are closed."""
    assert peer.recv(1) == b""
