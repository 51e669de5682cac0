"""A session in this process whose client does not read, so that replies wait to be sent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import MagicMock

from scache.closing import Closer
from scache.daemon.channel import Channel
from scache.daemon.readiness import Readiness
from scache.daemon.session import Session
from scache.model import Connection, Loan, Peer
from scache.protocol.server import ServerConversation


def endless_cache() -> MagicMock:
    """Return a cache with a hit for each find, too large to be sent to a client that is slow."""
    cache = MagicMock(closer=Closer())
    cache.find_endp.return_value = Loan(Connection(1, b"e", b"p" * 30_000, 0, 9, 1), 0, 1, 0)
    return cache


@contextmanager
def slow_session(cache: MagicMock) -> Iterator[tuple[Session, socket.socket]]:
    """Serve from this cache on the running loop; yield the session and its client's socket."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    readiness = Readiness(asyncio.get_running_loop())
    session = Session(
        Channel(ours, readiness, cache.closer),
        Peer(1, 0, 0),
        cache,
        MagicMock(),
        ServerConversation(announce=False),
        MagicMock(return_value=None),
        MagicMock(),
        MagicMock(),
        MagicMock(),
    )
    session.start()
    with theirs:
        yield session, theirs
    session.abort()
    readiness.close()
