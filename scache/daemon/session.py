"""A client session: passes the requests of one conversation to the cache, and the replies back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, Protocol

from scache.cache import Cache
from scache.daemon.probe import Probe, shortage_message
from scache.daemon.transport import Transport, client_logger
from scache.errors import ProtocolError
from scache.model import Delivery, Peer, Status
from scache.protocol.codec import NeedData
from scache.protocol.messages import (
    DESCRIPTOR_BYTE,
    GRAMMAR,
    NAMES,
    PURGE_SLICE,
    FindDest,
    FindEndp,
    Hello,
    PurgeDest,
    PurgeEndp,
    PurgeId,
    SaveDest,
    Snapshot,
    without_hits,
)
from scache.protocol.request_parser import Malformed
from scache.protocol.server import (
    Abandoned,
    Deliver,
    Delivered,
    Event,
    Save,
    ServerConversation,
)

_EVENTS_PER_STEP = 16
"""Requests served for one client before it goes back to the scheduler's queue."""

_EVENTS_PER_MESSAGE = 64
"""Requests whose replies go into one message; fewer than the descriptors that a message takes."""

_OUTPUT_SIZE = 32768
"""Bytes of replies in one message, at most about. The descriptors of all hits in a message go with
its first byte. A client that disconnects before it has read the message loses all of them, so
shorter messages lose fewer."""

_NO_SNAPSHOT = "no snapshot can be taken now: see the daemon's log"


class AdminAccess(Protocol):
    """Access control and snapshots for administrative requests."""

    def permits(self, peer: Peer, groups: Collection[int]) -> bool:
        """Return True if a peer with these supplementary groups may send these requests."""

    def snapshot(self, session: Session) -> None:
        """Request a snapshot; `Session.snapshot_taken` is called when it is taken or has failed."""


class Session:
    """The session of one client; its methods never block."""

    def __init__(
        self,
        transport: Transport,
        peer: Peer,
        cache: Cache,
        access: AdminAccess,
        conversation: ServerConversation,
        admit: Callable[[Session], str | None],
        on_end: Callable[[Session], None],
        on_shortage: Callable[[str], None],
        probe: Probe,
        *,
        allowed: bool = True,
    ) -> None:
        """Prepare a session; its requests are refused until ``admit`` returns None.

        ``admit`` returns the reason while the client is not admitted. A client that is not
        ``allowed`` is never admitted, and only its first refused request is recorded.
        """
        self._transport = transport
        self.peer = peer
        self._cache = cache
        self._on_end = on_end
        self._on_shortage = on_shortage
        """Callback with a message when an operation fails because descriptors have run out."""
        self._probe = probe
        self._conversation = conversation
        self._admit = admit
        self.allowed = allowed
        self._denied = False
        """True once the audit log has a record that the client is not allowed."""
        self._refusal: str | None = None
        """Reason for refusing the client's requests; None once it is admitted."""
        self._client_id = cache.client_connected(peer)
        self._access = access
        self._asking = False
        """True while the client waits for a snapshot; its requests are not served meanwhile."""
        self._parcel: int | None = None
        """Descriptor of the snapshot to send to the client; None if there is none."""
        self._answer_due = False
        """True if the reply to the snapshot request waits until earlier replies are sent."""
        self.deliveries: list[Delivery] = []
        """Connections that the client found and whose delivery is not completed yet."""
        self._handed_over = False
        self._flush_at = _EVENTS_PER_MESSAGE
        self.progress = 0
        """Number of steps that this client has made; an exchange takes one to three steps."""
        self._finishing = False
        self._warned = False

    def __repr__(self) -> str:
        return f"<Session client={self._client_id} pid={self.peer.pid}>"

    def start(self) -> None:
        """Announce the protocol and begin to serve."""
        self._refusal = self._admit(self)
        self._transport.start(self)
        if self._conversation.output:
            self._flush()

    def finish(self) -> None:
        """Disconnect the client as soon as no exchange is in progress."""
        self._finishing = True
        self._leave_if_finished()

    def abort(self) -> None:
        """Disconnect the client now; put back connections that were found but not sent."""
        if self._transport.open:
            self._transport.close()
            self.disconnected()

    def overdue(self) -> None:
        """Disconnect the client because it exceeded the exchange time-out."""
        client_logger.warning(
            "client with process id %d stopped in the middle of an exchange: disconnected",
            self.peer.pid,
        )
        self._cache.counts["limit_exchange_timeout"] += 1
        self._record_malformed("unknown", "limit: exchange timeout")
        self.abort()

    @property
    def half_done(self) -> bool:
        """True while the rest of an exchange is missing, or a reply is not fully sent.

        False while the client waits for a snapshot, because that is the daemon's work.
        """
        if self._asking:
            return False
        conversation, transport = self._conversation, self._transport
        return not (
            conversation.between_exchanges and transport.sent_all and not conversation.output
        )

    @property
    def awaited_quantum(self) -> int | None:
        """Number of the quantum that the client waits for in the queue; None if not queued."""
        return self._transport.quanta if self._transport.waiting else None

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
        if not self._conversation.inline:
            # The base protocol has no error reply where the client expects the descriptor.
            self._cache.counts["connections_not_sent"] += len(self.deliveries)
            return None
        if not self.deliveries:  # a snapshot is sent only after all deliveries are completed
            self._close_parcel()
            self._conversation.reply_refusal(_NO_SNAPSHOT)
            return self._conversation.data_to_send()
        deliveries, self.deliveries = self.deliveries, []
        for delivery in deliveries:
            self._cache.deny(delivery, f"descriptor not sent: {error.strerror}")
        return without_hits(data)

    def drained(self) -> None:
        """Continue after everything has been sent to the client."""
        if self._conversation.inline:
            self._end_deliveries(sent=True)
        if self._answer_due:
            self._answer_snapshot()
        else:
            self._close_parcel()
        if self._asking:
            self._transport.hold()
        if self._transport.waiting:
            self._transport.enqueue(self._serve)
        else:
            self._serve()

    def disconnected(self) -> None:
        """Release the resources of a client that disconnected."""
        self._cache.closer.close(self._conversation.close())
        self._close_parcel()
        sent = self._handed_over and self._transport.sent_descriptors
        self._end_deliveries(sent=sent, finder_left=True)
        self._cache.client_disconnected(self._client_id)
        self._on_end(self)

    def _serve(self) -> None:
        """Answer received requests, for one step at most and while the client takes the replies."""
        conversation, transport = self._conversation, self._transport
        if self._refusal is not None:
            self._refusal = self._admit(self)
        try:
            more = self._answer(self._ANSWERS if self._refusal is None else self._REFUSALS)
        except ProtocolError as error:
            self._cache.counts["limit_ahead_size"] += 1
            self._record_malformed("unknown", str(error))
            client_logger.warning(
                "client with process id %d: %s: disconnected", self.peer.pid, error
            )
            self.abort()
            return
        if more:
            transport.enqueue(self._serve)
            if self.progress < self._flush_at:
                return  # the next step adds more replies to the same message
        if conversation.output:
            self._flush()
        if conversation.descriptors and not transport.more_to_read():
            self._cache.closer.close(conversation.surplus_descriptors())
        if self._finishing:
            self._leave_if_finished()

    def _answer(self, answers: dict[type[Event], Callable[[Session, Any], None]]) -> bool:
        """Answer up to _EVENTS_PER_STEP requests; return True if this limit ended the step."""
        conversation, transport = self._conversation, self._transport
        step_ends = self.progress + _EVENTS_PER_STEP
        while conversation.unread and transport.sent_all and not self._asking:
            event = conversation.next_event()
            if isinstance(event, NeedData):
                break
            answers[type(event)](self, event)
            self.progress += 1
            if conversation.output_size > _OUTPUT_SIZE:
                self._flush()
            if self.progress >= step_ends:
                return True
        return False

    def _flush(self) -> None:
        self._flush_at = self.progress + _EVENTS_PER_MESSAGE
        data = self._conversation.data_to_send()
        if not self._conversation.inline:
            self._transport.send(data)
            return
        self._hand_over(data)
        if self._transport.sent_all:
            self._end_deliveries(sent=True)

    def _leave_if_finished(self) -> None:
        if self._transport.open and not self.half_done:
            self.abort()

    def _save(self, event: Save) -> None:
        request, descriptor, lost = event
        status = self._cache.save_endp(*request, descriptor, self._client_id, lost=lost)
        self._conversation.reply_status(status)

    def _bind(self, request: SaveDest) -> None:
        status = self._cache.save_dest(*request, self._client_id)
        self._conversation.reply_status(status)

    def _deliver(self, _: Deliver) -> None:
        if self._conversation.output:
            self._flush()
        self._hand_over(DESCRIPTOR_BYTE)

    def _delivered(self, _: Delivered) -> None:
        self._end_deliveries(sent=True)

    def _abandoned(self, _: Abandoned) -> None:
        self._end_deliveries(sent=False)

    def _refuse_save(self, event: Save) -> None:
        if event.descriptor is not None:
            self._cache.closer.close((event.descriptor,))
        self._refuse("save_endp")
        self._conversation.reply_status(Status.FAIL)

    def _refuse_bind(self, _: SaveDest) -> None:
        self._refuse("save_dest")
        self._conversation.reply_status(Status.FAIL)

    def _refuse_find(self, request: FindEndp | FindDest) -> None:
        self._refuse(NAMES[type(request)].decode())
        self._conversation.reply_miss(request)

    def _refuse(self, kind: str) -> None:
        if self._to_be_recorded():
            self._cache.refuse(kind, self._client_id, self._refusal or "")

    def _record_malformed(self, kind: str, detail: str | None) -> None:
        if self._to_be_recorded():
            self._cache.malformed(kind, self._client_id, detail if self.allowed else self._refusal)

    def _to_be_recorded(self) -> bool:
        """Return True if a refusal is to be recorded.

        A client that is not allowed is recorded once, so it cannot flush the audit log.
        """
        if self.allowed:
            return True
        known, self._denied = self._denied, True
        if not known:
            self._cache.counts["clients_not_allowed"] += 1
        return not known

    def _find_endp(self, request: FindEndp) -> None:
        self._answer_find(request, self._cache.find_endp(request.endpoint, self._client_id))

    def _find_dest(self, request: FindDest) -> None:
        self._answer_find(request, self._cache.find_dest(request.destination, self._client_id))

    def _answer_find(self, request: FindEndp | FindDest, delivery: Delivery | None) -> None:
        if delivery is not None and not self._conversation.inline:
            # In the base protocol the descriptor follows the reply, so test the send before the
            # reply promises a descriptor.
            error = self._probe.shortage(delivery.descriptor)
            if error is not None:
                client_logger.warning("%s", shortage_message(error))
                self._cache.deny(delivery, f"descriptor not sent: {error.strerror}")
                delivery = None
        if delivery is None:
            self._conversation.reply_miss(request)
            return
        self.deliveries.append(delivery)
        if delivery.destination is None:
            self._conversation.reply_hit(delivery.connection.properties)
        else:
            self._conversation.reply_hit(
                delivery.destination_properties, delivery.connection.properties
            )

    def snapshot_taken(self, descriptor: int | None) -> None:
        """Take over the descriptor of a snapshot and send it; None means that there is none."""
        self._parcel = descriptor
        if not self._transport.open:
            self._close_parcel()
        detail = "see the log" if descriptor is None else None
        self._cache.snapshot_taken(self._client_id, detail)
        if not self._transport.open:
            return
        self._asking = False
        if not self._transport.sent_all:
            # Earlier replies with deliveries are not fully sent yet. Their completion must be known
            # first, so `drained` sends this reply.
            self._answer_due = True
            return
        self._transport.release()
        self._answer_snapshot()
        self._serve()

    def _answer_snapshot(self) -> None:
        self._answer_due = False
        if self._parcel is None:
            self._conversation.reply_refusal(_NO_SNAPSHOT)
            self._flush()
        else:
            self._conversation.reply_status(Status.OK)
            self._transport.send(self._conversation.data_to_send(), (self._parcel,))
            if self._transport.sent_all:
                self._close_parcel()

    def _close_parcel(self) -> None:
        if self._parcel is not None:
            self._cache.closer.close((self._parcel,))
            self._parcel = None

    def _snapshot(self, _: Snapshot) -> None:
        if not self._permitted("snapshot"):
            return
        if self._conversation.output:
            self._flush()
        self._asking = True
        if self._transport.sent_all:
            self._transport.hold()
        self._access.snapshot(self)

    def _purge_endp(self, request: PurgeEndp) -> None:
        if self._permitted("purge_endp"):
            done = self._cache.purge_endp(request.endpoint, PURGE_SLICE, self._client_id)
            self._purged(done)

    def _purge_dest(self, request: PurgeDest) -> None:
        if self._permitted("purge_dest"):
            done = self._cache.purge_dest(request.destination, PURGE_SLICE, self._client_id)
            self._purged(done)

    def _purge_id(self, request: PurgeId) -> None:
        if self._permitted("purge_id"):
            self._purged(self._cache.purge_id(request.id, self._client_id))

    def _purged(self, count: int | None) -> None:
        if count is None:
            self._conversation.reply_refusal("the database cannot be written now: try again")
        else:
            self.progress += count  # each is as much work as a request
            self._conversation.reply_purged(count)

    def fileno(self) -> int:
        """Return the descriptor of the client's socket."""
        return self._transport.fileno()

    def groups(self) -> list[int]:
        """Return the supplementary groups of the client."""
        return self._transport.groups()

    def _permitted(self, kind: str) -> bool:
        """Return True if the client may send administrative requests; else reply with a refusal."""
        permitted = self._access.permits(self.peer, self.groups())
        if not permitted:
            self._cache.refuse(kind, self._client_id, "not permitted")
            self._conversation.reply_refusal(
                "not permitted: ask as root, as the user of the daemon, "
                "or as one of its admin_uids or admin_gids"
            )
        return permitted

    def _hand_over(self, data: bytes) -> None:
        """Send bytes together with the descriptors of all deliveries."""
        self._handed_over = True
        self._transport.send(data, [delivery.descriptor for delivery in self.deliveries])

    def _end_deliveries(self, *, sent: bool, finder_left: bool = False) -> None:
        """Complete all deliveries: report them as delivered, or put the connections back."""
        deliveries, self.deliveries = self.deliveries, []
        self._handed_over = False
        for delivery in deliveries:
            if sent:
                self._cache.delivered(delivery, finder_left=finder_left)
            else:
                self._cache.put_back(delivery)

    def _malformed(self, event: Malformed) -> None:
        if event.descriptor is not None:
            self._cache.closer.close((event.descriptor,))
        # A hello has no outcome to record.
        known = event.name in GRAMMAR and event.name != NAMES[Hello]
        kind = event.name.decode() if known else "unknown"
        if event.too_long:
            self._cache.counts["limit_message_size"] += 1
        detail = "longer than max_message_size" if event.too_long else None
        self._record_malformed(kind, detail)
        if self.allowed and not self._warned:
            self._warned = True
            client_logger.warning(
                "client with process id %d sent a malformed or unknown request (%s): "
                "answered with status 1, further ones of this client are not logged",
                self.peer.pid,
                kind,
            )

    _ANSWERS: ClassVar[dict[type[Event], Callable[[Session, Any], None]]] = {
        Save: _save,
        SaveDest: _bind,
        FindEndp: _find_endp,
        FindDest: _find_dest,
        Malformed: _malformed,
        Snapshot: _snapshot,
        PurgeEndp: _purge_endp,
        PurgeDest: _purge_dest,
        PurgeId: _purge_id,
        Deliver: _deliver,
        Delivered: _delivered,
        Abandoned: _abandoned,
    }
    _REFUSALS: ClassVar[dict[type[Event], Callable[[Session, Any], None]]] = _ANSWERS | {
        Save: _refuse_save,
        SaveDest: _refuse_bind,
        FindEndp: _refuse_find,
        FindDest: _refuse_find,
    }
