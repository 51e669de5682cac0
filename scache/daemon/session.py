"""One client's session: where its conversation and the cache meet."""

from __future__ import annotations

import logging
from collections.abc import Callable

from scache import fdpass
from scache.cache import Cache
from scache.daemon.channel import Channel
from scache.daemon.deadlines import Deadlines
from scache.errors import ProtocolError
from scache.model import Loan, Peer
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

_EVENTS_PER_TURN = 64
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
        self._loans: list[Loan] = []
        self._handed_over = False
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
        if self._conversation.inline:
            self._end_loans(sent=True)
        self._serve()

    def disconnected(self) -> None:
        """Clear up after a client that has gone."""
        self._deadlines.stop(self)
        fdpass.close(self._conversation.close())
        self._end_loans(sent=self._handed_over and self._channel.sent_descriptors)
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
        if not data:
            return
        if not self._conversation.inline:
            self._channel.send(data)
            return
        self._hand_over(data)
        if self._channel.sent_all:
            self._end_loans(sent=True)

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
                self._flush()
                self._hand_over(DESCRIPTOR_BYTE)
            case Delivered():
                self._end_loans(sent=True)
            case Abandoned():
                self._end_loans(sent=False)

    def _find(self, request: FindEndp | FindDest) -> None:
        if isinstance(request, FindEndp):
            loan = self._cache.find_endp(request.endpoint)
        else:
            loan = self._cache.find_dest(request.destination)
        if loan is None:
            self._conversation.reply_miss(request)
            return
        self._loans.append(loan)
        if isinstance(request, FindEndp):
            self._conversation.reply_hit(loan.connection.properties)
        else:
            self._conversation.reply_hit(loan.destination_properties, loan.connection.properties)

    def _hand_over(self, data: bytes) -> None:
        """Send bytes that carry the descriptors of all that this client has found."""
        self._handed_over = True
        self._channel.send(data, [loan.descriptor for loan in self._loans])

    def _end_loans(self, *, sent: bool) -> None:
        """Part with the connections that this client found."""
        loans, self._loans = self._loans, []
        self._handed_over = False
        for loan in loans:
            if sent:
                self._cache.delivered(loan)
            else:
                self._cache.put_back(loan)

    def _note_malformed(self, name: bytes) -> None:
        kind = name.decode() if name in GRAMMAR else "unknown"
        self._cache.counts[f"{kind}_bad"] += 1
        if not self._warned:
            self._warned = True
            logger.warning(
                "client with process id %d sent a malformed or unknown request (%s): "
                "answered with status 1, further ones of this client are not logged",
                self._peer.pid,
                kind,
            )
