"""A session in this process whose client does not read, so that its replies stay queued."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from scache.cache import Cache
from scache.cache.limits import Limits
from scache.daemon.access import AccessControl, Principals
from scache.daemon.admission import Admission
from scache.daemon.followers import Followers
from scache.daemon.idle import IdleTimer
from scache.daemon.observation import Observation
from scache.daemon.poller import Poller
from scache.daemon.probe import Probe
from scache.daemon.session import Session
from scache.daemon.snapshots import Asker
from scache.daemon.transport import Transport
from scache.model import Peer, Status
from scache.protocol.server import ServerConversation
from scache.unix.namespace import ROOT, unmapped
from tests.support.store_fixture import Opened
from tests.support.wire import DEADLINE


class _Access(AccessControl):
    """Access control for root, which leaves each snapshot to the test."""

    def __init__(self, asked: list[Asker]) -> None:
        self._principals = Principals({ROOT}, (), unmapped("uid"), unmapped("gid"))
        self._asked = asked

    def snapshot(self, asker: Asker) -> None:
        """Remember a snapshot request."""
        self._asked.append(asker)


class SlowSession:
    """A session, the cache that it serves from, and its client."""

    def __init__(self, opened: Opened, stack: ExitStack) -> None:
        """Serve a cache in an open database, on the running event loop."""
        self.cache = Cache(opened.database, opened.clock, Limits(300))
        self._counts = opened.database.batch.counts
        stack.callback(self._close_cache)
        self.server_end, self.client = socket.socketpair()
        stack.enter_context(self.client)
        self.server_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        poller, probe = Poller(asyncio.get_running_loop()), Probe()
        stack.callback(probe.close)
        stack.callback(poller.close)
        self.asked: list[Asker] = []
        """Snapshot requests of the client, which the test answers."""
        audit_log, everybody = self.cache.audit_log, (unmapped("uid"), unmapped("gid"))
        self.session = Session(
            Transport(self.server_end, poller, self.cache.closer),
            Peer(1, 0, 0),
            self.cache,
            _Access(self.asked),
            ServerConversation(announce=False),
            Admission(Principals((), (), *everybody), 1000, "", audit_log, IdleTimer(0)),
            Observation(lambda: b"{}", Followers(audit_log)),
            lambda _: None,
            lambda _: None,
            probe,
        )
        stack.callback(self.session.abort)
        self.session.start()

    def save(self, properties: bytes) -> None:
        """Cache a connection under the endpoint e."""
        descriptor = os.open(os.devnull, os.O_RDONLY)
        assert self.cache.save_endp(60, b"e", properties, descriptor, 1) is Status.OK

    def fill(self) -> None:
        """Fill the socket buffer, as replies do that the client has not read."""
        try:
            while True:
                self.server_end.send(b"x")
        except BlockingIOError:
            pass

    @property
    def left(self) -> Counter[str]:
        """Connections that were found, and that were not sent."""
        counts = self._counts
        return +Counter({name: counts[f"connections_{name}"] for name in ("found", "not_sent")})

    def _close_cache(self) -> None:
        self.cache.close()
        assert self.cache.closer.finish(DEADLINE) == 0


@contextmanager
def slow_session(opened: Opened) -> Iterator[SlowSession]:
    """Serve a client on the running event loop."""
    with ExitStack() as stack:
        yield SlowSession(opened, stack)
