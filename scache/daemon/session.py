"""One client's session: where its conversation and the cache meet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from scache import fdpass
from scache.cache import Cache
from scache.daemon.channel import Channel
from scache.errors import ProtocolError
from scache.model import Loan, Peer
from scache.protocol.codec import NeedData
from scache.protocol.messages import DESCRIPTOR_BYTE, GRAMMAR, FindDest, FindEndp, SaveDest
from scache.protocol.requests import Malformed
from scache.protocol.server import (
    Abandoned,
    Deliver,
    Delivered,
    Event,
    Save,
    ServerConversation,
)

_EVENTS_PER_TURN = 64
"""Requests served for one client before the others have their turn."""

_OUTPUT_SIZE = 32768
"""Bytes of replies that are sent at a time: descriptors go with the first of them, so the fewer
hits there are behind it, the fewer are lost with a client that leaves before it has read them."""

logger = logging.getLogger(__name__)


class Session:
    """Serves one client, and nobody else waits for it."""

    def __init__(
        self,
        channel: Channel,
        peer: Peer,
        cache: Cache,
        on_end: Callable[[Session], None],
        *,
        announce: bool,
    ) -> None:
        self._channel = channel
        self._peer = peer
        self._cache = cache
        self._on_end = on_end
        self._conversation = ServerConversation(announce=announce)
        self._client_id = cache.client_connected(peer)
        self._loans: list[Loan] = []
        self._handed_over = False
        self.progress = 0
        """Steps that this client has made, of which a whole exchange has one to three."""
        self._finishing = False
        self._warned = False

    def __repr__(self) -> str:
        return f"<Session client={self._client_id} pid={self._peer.pid}>"

    def start(self) -> None:
        """Announce the protocol and begin to serve."""
        self._channel.start(self)
        if self._conversation.output:
            self._flush()

    def finish(self) -> None:
        """End as soon as the exchange under way, if any, has come to its end."""
        self._finishing = True
        self._leave_if_finished()

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

    @property
    def half_done(self) -> bool:
        """Whether the client owes us the rest of an exchange, or does not take what we sent."""
        return not (self._conversation.between_exchanges and self._channel.sent_all)

    def received(self, data: bytes, descriptors: Sequence[int], truncated: bool) -> None:
        """Serve what the client sent."""
        if truncated:
            # Which of them the kernel dropped is unknown, so none can be told from another.
            logger.warning("out of descriptors: one that a client sent could not be received")
            fdpass.close(descriptors)
            descriptors = ()
        self._conversation.receive(data, descriptors, lost=truncated)
        self._serve()

    def drained(self) -> None:
        """Go on, now that the client has taken everything."""
        if self._conversation.inline:
            self._end_loans(sent=True)
        self._serve()

    def disconnected(self) -> None:
        """Clear up after a client that has gone."""
        fdpass.close(self._conversation.close())
        self._end_loans(sent=self._handed_over and self._channel.sent_descriptors)
        self._cache.client_disconnected(self._client_id)
        self._on_end(self)

    def _serve(self) -> None:
        """Answer what has been received: a turn's worth of it, and while the client takes it."""
        conversation, channel = self._conversation, self._channel
        turn_ends = self.progress + _EVENTS_PER_TURN
        try:
            while conversation.unread and channel.sent_all:
                event = conversation.next_event()
                if isinstance(event, NeedData):
                    break
                self._ANSWERS[type(event)](self, event)
                self.progress += 1
                if conversation.output_size > _OUTPUT_SIZE:
                    self._flush()
                if self.progress == turn_ends:
                    channel.yield_turn(self._serve)
                    break
        except ProtocolError as error:
            logger.warning("client with process id %d: %s: disconnected", self._peer.pid, error)
            self.abort()
            return
        if conversation.output:
            self._flush()
        if conversation.descriptors and not channel.more_to_read():
            fdpass.close(conversation.surplus_descriptors())
        if self._finishing:
            self._leave_if_finished()

    def _flush(self) -> None:
        data = self._conversation.data_to_send()
        if not self._conversation.inline:
            self._channel.send(data)
            return
        self._hand_over(data)
        if self._channel.sent_all:
            self._end_loans(sent=True)

    def _leave_if_finished(self) -> None:
        if self._channel.open and not self.half_done:
            self.abort()

    def _save(self, event: Save) -> None:
        status = self._cache.save_endp(*event.request, event.descriptor, self._client_id)
        self._conversation.reply_status(status)

    def _bind(self, request: SaveDest) -> None:
        status = self._cache.save_dest(*request, self._client_id)
        self._conversation.reply_status(status)

    def _deliver(self, _: Deliver) -> None:
        if self._conversation.output:
            self._flush()
        self._hand_over(DESCRIPTOR_BYTE)

    def _delivered(self, _: Delivered) -> None:
        self._end_loans(sent=True)

    def _abandoned(self, _: Abandoned) -> None:
        self._end_loans(sent=False)

    def _find_endp(self, request: FindEndp) -> None:
        loan = self._cache.find_endp(request.endpoint, self._client_id)
        if loan is None:
            self._conversation.reply_miss(request)
        else:
            self._loans.append(loan)
            self._conversation.reply_hit(loan.connection.properties)

    def _find_dest(self, request: FindDest) -> None:
        loan = self._cache.find_dest(request.destination, self._client_id)
        if loan is None:
            self._conversation.reply_miss(request)
        else:
            self._loans.append(loan)
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

    def _malformed(self, event: Malformed) -> None:
        if event.descriptor is not None:
            fdpass.close((event.descriptor,))
        kind = event.name.decode() if event.name in GRAMMAR else "unknown"
        self._cache.malformed(kind, self._client_id)
        if not self._warned:
            self._warned = True
            logger.warning(
                "client with process id %d sent a malformed or unknown request (%s): "
                "answered with status 1, further ones of this client are not logged",
                self._peer.pid,
                kind,
            )

    _ANSWERS: ClassVar[dict[type[Event], Callable[[Session, Any], None]]] = {
        Save: _save,
        SaveDest: _bind,
        FindEndp: _find_endp,
        FindDest: _find_dest,
        Malformed: _malformed,
        Deliver: _deliver,
        Delivered: _delivered,
        Abandoned: _abandoned,
    }
