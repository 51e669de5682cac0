"""A session in this process whose client does not read, so that replies wait to be sent."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

from scache.cache import Cache
from scache.cache.limits import Limits
from scache.daemon.poller import Poller
from scache.daemon.probe import Probe
from scache.daemon.session import Session
from scache.daemon.transport import Transport
from scache.model import Peer, Status
from scache.protocol.server import ServerConversation
from tests.support.store_fixture import Opened
from tests.support.wire import DEADLINE


class SlowSession:
    """A session, the cache that it serves from, and its client."""

    def __init__(self, opened: Opened, stack: ExitStack) -> None:
        """Serve on the running loop, from a cache in a database that is open."""
        self.cache = Cache(opened.database, opened.clock, Limits(300))
        stack.callback(self._close_cache)
        self.server_end, self.client = socket.socketpair()
        stack.enter_context(self.client)
        self.server_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        poller, probe = Poller(asyncio.get_running_loop()), Probe()
        stack.callback(probe.close)
        stack.callback(poller.close)
        self.asked: list[Session] = []
        """Grows when the client asks for a snapshot, which the test is to take."""
        self.session = Session(
            Transport(self.server_end, poller, self.cache.closer),
            Peer(1, 0, 0),
            self.cache,
            self,
            ServerConversation(announce=False),
            lambda _: None,
            lambda _: None,
            lambda _: None,
            probe,
        )
        stack.callback(self.session.abort)
        self.session.start()

    def permits(self, _: Peer, _groups: Collection[int]) -> bool:
        """Permit every administrative request, as the access control of this session."""
        return True

    def snapshot(self, session: Session) -> None:
        """Leave the snapshot to the test, as the access control of this session."""
        self.asked.append(session)

    def save(self, properties: bytes) -> None:
        """Cache a connection under the endpoint e."""
        descriptor = os.open(os.devnull, os.O_RDONLY)
        assert self.cache.save_endp(60, b"e", properties, descriptor, 1) is Status.OK

    def fill(self) -> None:
        """Leave no room for a reply: the client has not read earlier ones."""
        try:
            while True:
                self.server_end.send(b"x")
        except BlockingIOError:
            pass

    @property
    def left(self) -> Counter[str]:
        """How often each of these has happened to a connection."""
        counts = {name: self.cache.counts[f"connections_{name}"] for name in ("found", "not_sent")}
        return +Counter(counts)

    def _close_cache(self) -> None:
        self.cache.close()
        assert self.cache.closer.finish(DEADLINE) == 0


@contextmanager
def slow_session(opened: Opened) -> Iterator[SlowSession]:
    """Serve a client on the running loop."""
    with ExitStack() as stack:
        yield SlowSession(opened, stack)
