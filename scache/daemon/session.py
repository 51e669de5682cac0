"""A client session: reads from one client, answers its requests in steps, and ends with it.

    state      event                                          what is done              next
    ---------  ---------------------------------------------  ------------------------  ---------
    SERVING    data is received, its quantum comes, or all    answer requests, flush    SERVING
               replies are sent                               the replies
               the daemon stops while an exchange is under    -                         FINISHING
               way
               the daemon stops otherwise                     disconnect                ENDED
    FINISHING  as in SERVING                                  as in SERVING             FINISHING
               no exchange is under way any more              disconnect                ENDED
    any        the exchange time-out or a limit is exceeded   record it, disconnect     ENDED
               the client disconnects                         end deliveries, close     ENDED
                                                              its descriptors

`ClientRequests` answers the requests. `Deliveries` and `DescriptorReply` have states of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto

from scache.cache import Cache
from scache.daemon.access import AccessControl
from scache.daemon.admin_requests import AdminRequests
from scache.daemon.admission import Admission
from scache.daemon.client_log import client_logger
from scache.daemon.client_requests import (
    ANSWERS,
    OF_OBSERVERS,
    REFUSALS,
    Answers,
    ClientRequests,
)
from scache.daemon.deliveries import Deliveries
from scache.daemon.descriptor_reply import DescriptorReply
from scache.daemon.observation import Observation
from scache.daemon.probe import Probe, shortage_message
from scache.daemon.refusals import Refusals
from scache.daemon.snapshot_reply import SnapshotReply
from scache.daemon.transport import Transport
from scache.errors import ProtocolError
from scache.model import Delivery, Peer
from scache.protocol.codec import NeedData
from scache.protocol.server import ServerConversation

_EVENTS_PER_STEP = 16
"""ClientRequests served for one client before it goes back to the scheduler's queue."""

_REPLIES_PER_MESSAGE = 64
"""Replies that go into one message; fewer than the descriptors that a message takes."""

_OUTPUT_SIZE = 32768
"""Bytes of replies in one message, at most about. The descriptors of all hits in a message go with
its first byte. A client that disconnects before it has read the message loses all of them, so
shorter messages lose fewer."""


class _State(Enum):
    SERVING = auto()
    FINISHING = auto()
    ENDED = auto()


# Global names are faster than members of the enumeration, which the metaclass looks up.
_SERVING, _FINISHING, _ENDED = _State


class Session:
    """The session of one client; its methods never block."""

    def __init__(
        self,
        transport: Transport,
        peer: Peer,
        cache: Cache,
        access: AccessControl,
        conversation: ServerConversation,
        admission: Admission,
        observation: Observation,
        on_end: Callable[[Session], None],
        on_shortage: Callable[[str], None],
        probe: Probe,
        *,
        allowed: bool = True,
    ) -> None:
        """Prepare a session; its requests are refused until ``admission`` admits it.

        A client that is not ``allowed`` is never admitted, and only its first refused request is
        recorded. `Admission` says when a session counts as a client.
        """
        self._transport = transport
        self.peer = peer
        self._cache = cache
        self._conversation = conversation
        self._admission = admission
        self._observation = observation
        self._on_end = on_end
        self._on_shortage = on_shortage
        """Callback with a message when an operation fails because descriptors have run out."""
        self.allowed = allowed
        self._client_id = client_id = cache.new_client()
        self._connected_at = cache.clock.now()
        self._is_recorded = False
        """True if the session is a client, with a row of its own."""
        self._acts = False
        """True if it has made a request of a client."""
        self._observes = False
        """True while it is an observer."""
        self._state = _SERVING
        self._refusals = Refusals(cache, conversation, client_id, peer, allowed=allowed)
        self._deliveries = Deliveries(cache, transport, conversation, probe)
        self._descriptor_reply = DescriptorReply(cache.closer, transport, conversation)
        self._snapshot_reply = SnapshotReply(
            cache.audit_log,
            transport,
            client_id,
            self._descriptor_reply,
            self._serve,
            self.abort,
        )
        self._admin_requests = AdminRequests(
            cache,
            access,
            observation,
            transport,
            conversation,
            client_id,
            peer,
            self._snapshot_reply,
            self._observe,
            self.abort,
        )
        self._requests = ClientRequests(
            cache,
            conversation,
            client_id,
            self._deliveries,
            self._refusals,
            self._admin_requests,
            self._descriptor_reply,
        )

    def __repr__(self) -> str:
        return f"<Session client={self._client_id} pid={self.peer.pid}>"

    def start(self) -> None:
        """Announce the protocol and begin to serve."""
        self._refusals.reason = self._admission.arrive(self)
        self._transport.start(self)
        if self._conversation.output:
            self._deliveries.flush()

    def finish(self) -> None:
        """Disconnect the client as soon as no exchange is in progress."""
        if self._state is _SERVING:
            self._state = _FINISHING
            self._end_if_finished()

    def abort(self) -> None:
        """Disconnect the client now; put back connections that were found but not sent."""
        if self._state is not _ENDED:
            self._transport.close()
            self.disconnected()

    def overdue(self) -> None:
        """Disconnect the client because it exceeded the exchange time-out."""
        self._act()
        self._refusals.overdue()
        self.abort()

    @property
    def half_done(self) -> bool:
        """True while the rest of an exchange is missing, or a reply is not fully sent.

        False while the client waits for a snapshot, because that is the daemon's work, and for a
        follower, whose reading `Followers` watches.
        """
        if self._snapshot_reply.awaited or self._admin_requests.follower is not None:
            return False
        conversation, transport = self._conversation, self._transport
        return not (
            conversation.between_exchanges and transport.sent_all and not conversation.output
        )

    @property
    def progress(self) -> int:
        """Number of steps that this client has made."""
        return self._requests.progress

    @property
    def awaited_quantum(self) -> int | None:
        """Number of the quantum that the client waits for in the queue; None if not queued."""
        return self._transport.quanta if self._transport.waiting else None

    @property
    def deliveries(self) -> list[Delivery]:
        """Connections that the client found and whose delivery is not completed yet."""
        return self._deliveries.found

    @property
    def waiting_descriptors(self) -> int:
        """Number of descriptors received from the client whose requests are not served yet."""
        return len(self._conversation.descriptors)

    def received(self, data: bytes, descriptors: Sequence[int], truncated: bool) -> None:
        """Take over data and descriptors from the client, and serve its requests."""
        if truncated:
            # The kernel does not report which descriptors it dropped, so the remaining ones cannot
            # be assigned to their requests.
            self._on_shortage("one that a client sent could not be received")
            self._cache.closer.close(descriptors)
            descriptors = ()
        self._conversation.receive(data, descriptors, lost=truncated)
        self._serve()

    def undeliverable(self, data: bytes, error: OSError) -> bytes | None:
        """Return the reply to send instead of descriptors that cannot be sent now.

        None disconnects the client.
        """
        client_logger.warning("%s", shortage_message(error))
        if self._descriptor_reply.is_sending:
            return self._descriptor_reply.replacement()
        return self._deliveries.undeliverable(data, error)

    def drained(self) -> None:
        """Continue after everything has been sent to the client."""
        if self._conversation.inline:
            self._deliveries.end(sent=True)
        self._snapshot_reply.drained()
        self._descriptor_reply.drained()
        if self._transport.waiting:
            self._transport.enqueue(self._serve)
        else:
            self._serve()

    def disconnected(self) -> None:
        """Release the resources of a client that disconnected."""
        self._state = _ENDED
        self._cache.closer.close(self._conversation.close())
        self._descriptor_reply.disconnected()
        self._deliveries.disconnected()
        self._admin_requests.disconnected()
        if not self._observes:
            self.record()
            self._cache.client_disconnected(self._client_id)
            self._observation.followers.client_disconnected(self._client_id)
        self._on_end(self)

    @property
    def is_silent(self) -> bool:
        """True if the client has sent nothing yet."""
        return not (self._conversation.inline or self._acts or self._requests.progress)

    def record(self) -> None:
        """Record the session as a client, unless it is one already."""
        if not self._is_recorded:
            self._is_recorded, self._observes = True, False
            self._cache.client_connected(self.peer, self._client_id, self._connected_at)
            self._observation.followers.client_connected(self._client_id, self.peer)
            self._refusals.reason = self._admission.recorded(self)

    def _act(self) -> None:
        """Become a client, by a request of a client."""
        self._acts = True
        self.record()

    def _observe(self) -> str | None:
        """Become an observer, if the session has made no request of a client.

        Return None, or why it cannot be one.
        """
        if self._acts or self._observes:
            return None
        refusal = self._admission.observe(self)
        if refusal is None:
            self._observes, self._refusals.reason = True, None
            if self._is_recorded:
                self._is_recorded = False
                self._cache.forget_client(self._client_id)
                self._observation.followers.client_disconnected(self._client_id)
        return refusal

    def _serve(self) -> None:
        """Answer received requests, for one step at most and while the client takes the replies."""
        conversation, transport, refusals = self._conversation, self._transport, self._refusals
        if refusals.reason is not None:
            refusals.reason = self._admission.admit(self)
        try:
            more = self._answer(ANSWERS if refusals.reason is None else REFUSALS)
        except ProtocolError as error:
            self._act()
            refusals.too_much_ahead(error)
            self.abort()
            return
        if more:
            transport.enqueue(self._serve)
            if len(conversation.output) < _REPLIES_PER_MESSAGE:
                return  # the next step adds more replies to the same message
        if conversation.output:
            self._deliveries.flush()
        if conversation.descriptors and not transport.more_to_read():
            self._cache.closer.close(conversation.surplus_descriptors())
        if self._state is _FINISHING:
            self._end_if_finished()

    def _answer(self, answers: Answers) -> bool:
        """Answer up to _EVENTS_PER_STEP requests; return True if this limit ended the step."""
        conversation, transport, requests = self._conversation, self._transport, self._requests
        snapshot_reply = self._snapshot_reply
        step_ends = requests.progress + _EVENTS_PER_STEP
        while conversation.unread and transport.sent_all and not snapshot_reply.awaited:
            event = conversation.next_event()
            if isinstance(event, NeedData):
                break
            if not self._acts and type(event) not in OF_OBSERVERS:
                self._act()
                answers = ANSWERS if self._refusals.reason is None else REFUSALS
            answers[type(event)](requests, event)
            requests.progress += 1
            if conversation.output_size > _OUTPUT_SIZE:
                self._deliveries.flush()
            if requests.progress >= step_ends:
                return True
        return False

    def _end_if_finished(self) -> None:
        if not self.half_done:
            self.abort()

    def fileno(self) -> int:
        """Return the descriptor of the client's socket."""
        return self._transport.fileno()
