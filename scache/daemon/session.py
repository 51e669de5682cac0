"""One client's session: where its conversation and the cache meet."""

from __future__ import annotations

import logging
from collections.abc import Callable

from scache import fdpass
from scache.cache import Cache
from scache.daemon.channel import Channel
from scache.daemon.deadlines import Deadlines
from scache.errors import ProtocolError
from scache.model import Loan, Peer, Status
from scache.protocol.codec import NeedData
from scache.protocol.messages import DESCRIPTOR_BYTE, GRAMMAR, FindDest, FindEndp
from scache.protocol.server import (
    Abandoned,
    Bind,
    Deliver,
    Delivered,
    Event,
    Find,
    Malformed,
    Save,
    ServerConversation,
)

_EVENTS_PER_TURN = 32
"""Requests served for one client before the others have their turn."""

logger = logging.getLogger(__name__)


class Session:
    """Serves one client, and nobody else waits for it."""

    def __init__(
        self,
        channel: Channel,
        peer: Peer,
        cache: Cache,
        deadlines: Deadlines[Session],
        on_end: Callable[[Session], None],
        *,
        announce: bool,
    ) -> None:
        self._channel = channel
        self._peer = peer
        self._cache = cache
        self._deadlines = deadlines
        self._on_end = on_end
        self._conversation = ServerConversation(announce=announce)
        self._client_id = cache.client_connected(peer)
        self._lent: Loan | None = None
        self._descriptor_sent = False
        self._finishing = False
        self._warned = False

    def __repr__(self) -> str:
        return f"<Session client={self._client_id} pid={self._peer.pid}>"

    def start(self) -> None:
        """Announce the protocol and begin to serve."""
        self._channel.start(self)
        self._flush()

    def finish(self) -> None:
        """End as soon as the exchange under way, if any, has come to its end."""
        self._finishing = True
        self._settle()

    def abort(self) -> None:
        """End now; a connection that was found but not sent goes back."""
        if self._channel.open:
            self._channel.close()
            self.disconnected()

    def overdue(self) -> None:
        """End because the client left an exchange half done for too long."""
        logger.warning(
            "client with process id %d stopped in the middle of an exchange: disconnected",
            self._peer.pid,
        )
        self.abort()

    def received(self, received: fdpass.Received) -> None:
        """Serve what the client sent."""
        descriptors = received.descriptors
        if received.truncated:
            # Which of them the kernel dropped is unknown, so none can be told from another.
            logger.warning("out of descriptors: one that a client sent could not be received")
            fdpass.close(descriptors)
            descriptors = ()
        self._conversation.receive(received.data, descriptors)
        self._serve()
        if len(received.data) < fdpass.RECEIVE_SIZE:
            # This read ended where its last segment ended: descriptors belong to what is here.
            fdpass.close(self._conversation.surplus_descriptors())

    def drained(self) -> None:
        """Go on, now that the client has taken everything."""
        self._serve()

    def disconnected(self) -> None:
        """Clear up after a client that has gone."""
        self._deadlines.stop(self)
        fdpass.close(self._conversation.close())
        if self._lent is not None:
            self._end_loan(sent=self._descriptor_sent and self._channel.sent_all)
        self._cache.client_disconnected(self._client_id)
        self._on_end(self)

    def _serve(self) -> None:
        """Answer what has been received: a turn's worth of it, and while the client takes it."""
        served = 0
        try:
            while self._channel.sent_all:
                event = self._conversation.next_event()
                if isinstance(event, NeedData):
                    break
                self._answer(event)
                served += 1
                if served == _EVENTS_PER_TURN:
                    self._channel.yield_turn(self._serve)
                    break
        except ProtocolError as error:
            logger.warning("client with process id %d: %s: disconnected", self._peer.pid, error)
            self.abort()
            return
        if served:
            self._deadlines.stop(self)
        self._flush()
        self._settle()

    def _flush(self) -> None:
        data = self._conversation.data_to_send()
        if data:
            self._channel.send(data)

    def _settle(self) -> None:
        """Set a deadline if the client owes us something; leave if we are to."""
        if not self._channel.open:
            return
        if not (self._conversation.between_exchanges and self._channel.sent_all):
            self._deadlines.start(self)
        elif self._finishing:
            self.abort()
        else:
            self._deadlines.stop(self)

    def _answer(self, event: Event) -> None:
        match event:
            case Save(request, descriptor):
                status = self._cache.save_endp(*request, descriptor, self._client_id)
                self._conversation.reply_status(status)
            case Find(request):
                self._find(request)
            case Bind(request):
                status = self._cache.save_dest(*request, self._client_id)
                self._conversation.reply_status(status)
            case Malformed(name):
                self._note_malformed(name)
            case Deliver():
                assert self._lent is not None
                self._flush()
                self._descriptor_sent = True
                self._channel.send(DESCRIPTOR_BYTE, self._lent.descriptor)
            case Delivered():
                self._end_loan(sent=True)
            case Abandoned():
                self._end_loan(sent=False)

    def _find(self, request: FindEndp | FindDest) -> None:
        if isinstance(request, FindEndp):
            self._lent = self._cache.find_endp(request.endpoint)
        else:
            self._lent = self._cache.find_dest(request.destination)
        if self._lent is None:
            self._conversation.reply_miss(request)
            return
        properties = [self._lent.connection.properties]
        if isinstance(request, FindDest):
            properties.insert(0, self._lent.destination_properties)
        self._conversation.reply_hit(*properties)

    def _end_loan(self, *, sent: bool) -> None:
        """Part with the connection that this client found."""
        assert self._lent is not None
        found, self._lent = self._lent, None
        self._descriptor_sent = False
        if sent:
            self._cache.delivered(found)
        else:
            self._cache.put_back(found)

    def _note_malformed(self, name: bytes) -> None:
        kind = name.decode() if name in GRAMMAR else "unknown"
        self._cache.count(kind, Status.BAD)
        if not self._warned:
            self._warned = True
            logger.warning(
                "client with process id %d sent a malformed or unknown request (%s): "
                "answered with status 1, further ones of this client are not logged",
                self._peer.pid,
                kind,
            )
