"""The requests of one client: each is passed to the cache, and its reply to the conversation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scache.cache import Cache
from scache.daemon.admin_requests import AdminRequests
from scache.daemon.deliveries import Deliveries
from scache.daemon.descriptor_reply import DescriptorReply
from scache.daemon.refusals import Refusals
from scache.daemon.shortages import Refusal
from scache.protocol.messages import (
    DESCRIPTOR_BYTE,
    Admin,
    FindDest,
    FindEndp,
    Follow,
    PurgeDest,
    PurgeEndp,
    PurgeId,
    SaveDest,
    Snapshot,
    Stats,
)
from scache.protocol.request_parser import Malformed
from scache.protocol.server import ServerConversation
from scache.protocol.server_events import (
    Abandoned,
    Deliver,
    Delivered,
    Event,
    Pinged,
    Save,
)

_CANNOT_PASS = Refusal("the daemon is out of descriptors (ulimit -n): try again", "descriptors")


class ClientRequests:
    """The requests of one client."""

    def __init__(
        self,
        cache: Cache,
        conversation: ServerConversation,
        client_id: int,
        deliveries: Deliveries,
        refusals: Refusals,
        admin_requests: AdminRequests,
        descriptor_reply: DescriptorReply,
    ) -> None:
        self._cache = cache
        self._conversation = conversation
        self._client_id = client_id
        self._deliveries = deliveries
        self._refusals = refusals
        self._admin_requests = admin_requests
        self._descriptor_reply = descriptor_reply
        self.progress = 0
        """Number of steps that this client has made; an exchange takes one to three steps."""

    def save_endp(self, event: Save) -> None:
        """Park a connection."""
        request, descriptor, lost = event
        status = self._cache.save_endp(*request, descriptor, self._client_id, lost=lost)
        self._conversation.reply_status(status)

    def save_dest(self, request: SaveDest) -> None:
        """Bind a destination to an endpoint."""
        status = self._cache.save_dest(*request, self._client_id)
        self._conversation.reply_status(status)

    def find_endp(self, request: FindEndp) -> None:
        """Take a connection of an endpoint."""
        delivery = self._cache.find_endp(request.endpoint, self._client_id)
        self._deliveries.begin(request, delivery)

    def find_dest(self, request: FindDest) -> None:
        """Take a connection for a destination."""
        delivery = self._cache.find_dest(request.destination, self._client_id)
        self._deliveries.begin(request, delivery)

    def deliver(self, _: Deliver) -> None:
        """Send the descriptor of a hit in the base protocol."""
        if self._conversation.output:
            self._deliveries.flush()
        self._deliveries.hand_over(DESCRIPTOR_BYTE)

    def delivered(self, _: Delivered) -> None:
        """Complete a delivery: the client has the descriptor."""
        self._deliveries.end(sent=True)

    def abandoned(self, _: Abandoned) -> None:
        """Put a connection back: the client has not asked for its descriptor."""
        self._deliveries.end(sent=False)

    def administer(self, request: Admin) -> None:
        """Answer a request of an administrator."""
        if isinstance(request, Snapshot) and self._conversation.output:
            self._deliveries.flush()  # deliveries must be under way before the snapshot
        purged = self._admin_requests.answer(request)
        self.progress += purged  # each is as much work as a request
        if isinstance(request, Follow):
            self._deliveries.flush()  # the reply must be under way before the first event

    def ping(self, event: Pinged) -> None:
        """Send the descriptor of a ping back; nothing is counted or recorded."""
        descriptor, lost = event
        if descriptor is None and not lost:
            self._conversation.reply_refusal("no descriptor came with the ping")
            return
        if self._conversation.output:
            self._deliveries.flush()  # a message of its own: the descriptor is no delivery
        self._descriptor_reply.give(descriptor, _CANNOT_PASS)

    def malformed(self, event: Malformed) -> None:
        """Record a malformed request."""
        self._refusals.malformed(event)

    def refuse(self, event: Save | SaveDest | FindEndp | FindDest) -> None:
        """Refuse a save or a find of a client that is not admitted."""
        self._refusals.answer(event)

    def refuse_ping(self, event: Pinged) -> None:
        """Refuse a ping of a client that is not admitted."""
        self._refusals.answer_ping(event)


Answers = dict[type[Event], Callable[[ClientRequests, Any], None]]

ANSWERS: Answers = {
    Save: ClientRequests.save_endp,
    SaveDest: ClientRequests.save_dest,
    FindEndp: ClientRequests.find_endp,
    FindDest: ClientRequests.find_dest,
    Deliver: ClientRequests.deliver,
    Delivered: ClientRequests.delivered,
    Abandoned: ClientRequests.abandoned,
    Snapshot: ClientRequests.administer,
    PurgeEndp: ClientRequests.administer,
    PurgeDest: ClientRequests.administer,
    PurgeId: ClientRequests.administer,
    Stats: ClientRequests.administer,
    Follow: ClientRequests.administer,
    Pinged: ClientRequests.ping,
    Malformed: ClientRequests.malformed,
}
"""The answer to each event of the conversation with an admitted client."""

REFUSALS: Answers = ANSWERS | {
    Save: ClientRequests.refuse,
    SaveDest: ClientRequests.refuse,
    FindEndp: ClientRequests.refuse,
    FindDest: ClientRequests.refuse,
    Pinged: ClientRequests.refuse_ping,
}
"""The answer to each event of the conversation with a client that is not admitted."""

OF_OBSERVERS = frozenset({Stats, Follow, Pinged})
"""The requests that make no client of a session."""
