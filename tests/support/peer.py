"""The peer of a cached connection."""

from __future__ import annotations

import socket
import time
from typing import Self

from scache import Client, Found
from tests.support.wire import DEADLINE


class Parked:
    """One end of a connection whose other end is in the cache."""

    def __init__(self, client: Client, ttl: int, endpoint: str) -> None:
        self.peer, ours = socket.socketpair()
        with ours:
            self.earliest = time.monotonic() + ttl
            assert client.save_endp(ttl, endpoint, "p", ours)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.peer.close()

    def wait_for_end(self) -> None:
        """Wait until the daemon closes its end; check that the ttl is over."""
        self.peer.settimeout(DEADLINE)
        assert self.peer.recv(1) == b""
        assert time.monotonic() >= self.earliest


def take(found: Found | None, parked: Parked) -> None:
    """Check that a find has returned this connection."""
    assert found is not None
    with found.socket() as connection:
        connection.sendall(b"it is me")
    assert parked.peer.recv(8) == b"it is me"
