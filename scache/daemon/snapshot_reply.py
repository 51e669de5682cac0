"""The reply to a snapshot request: one descriptor, sent after all earlier replies.

    state    event                                        what is done             next
    -------  -------------------------------------------  -----------------------  -------
    NONE     the client requests a snapshot               take no more requests    AWAITED
    AWAITED  the snapshot is taken, or has failed         send, or refuse          SENDING
             the same, but earlier replies are not sent   keep the descriptor      DUE
    DUE      earlier replies are sent                     send, or refuse          SENDING
    SENDING  the kernel has accepted the descriptor       close it                 NONE
             shortage of descriptors                      close it, refuse         NONE
    any      the client disconnects                       close the descriptor     CLOSED
    CLOSED   the snapshot is taken                        close the descriptor     CLOSED

After a refusal the state is NONE at once, because there is no descriptor to close.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from scache.cache import Cache
from scache.daemon.transport import Transport
from scache.model import Status
from scache.protocol.server import ServerConversation

_NO_SNAPSHOT = "no snapshot can be taken now: see the daemon's log"


class State(Enum):
    """The states of a `SnapshotReply`."""

    NONE = auto()
    AWAITED = auto()
    DUE = auto()
    SENDING = auto()
    CLOSED = auto()


# Global names are faster than members of the enumeration, which the metaclass looks up.
_NONE, AWAITED, _DUE, SENDING, _CLOSED = State


class SnapshotReply:
    """The snapshot that one client has requested, and the owner of its descriptor."""

    def __init__(
        self,
        cache: Cache,
        transport: Transport,
        conversation: ServerConversation,
        client_id: int,
        serve: Callable[[], None],
        abort: Callable[[], None],
    ) -> None:
        """Call ``serve`` when the next requests of the client can be answered."""
        self._cache = cache
        self._transport = transport
        self._conversation = conversation
        self._client_id = client_id
        self._serve = serve
        self._abort = abort
        self.state = _NONE
        self._descriptor: int | None = None

    def request(self) -> None:
        """Wait for the snapshot; the session answers no request until it is taken."""
        self.state = AWAITED
        if self._transport.sent_all:
            self._transport.hold()

    def snapshot_taken(self, descriptor: int | None) -> None:
        """Take over the descriptor of a snapshot and send it; None means that there is none."""
        self._descriptor = descriptor
        detail = "see the log" if descriptor is None else None
        self._cache.audit_log.snapshot_taken(self._client_id, detail)
        if self.state is _CLOSED:
            self._close()
        elif self._transport.sent_all:
            self._transport.release()
            self._send()
            self._serve()
        else:
            # Earlier replies may carry deliveries, which must be completed first.
            self.state = _DUE

    def drained(self) -> None:
        """Continue after everything has been sent to the client."""
        if self.state is AWAITED:
            self._transport.hold()
        elif self.state is _DUE:
            self._send()
        elif self.state is SENDING:
            self._sent()

    def replacement(self) -> bytes:
        """Return the refusal to send instead, because the descriptor cannot be sent now."""
        self._sent()
        self._conversation.reply_refusal(_NO_SNAPSHOT)
        return self._conversation.data_to_send()

    def disconnected(self) -> None:
        """Close the descriptor, now or when the snapshot is taken."""
        self.state = _CLOSED
        self._close()

    def abort(self) -> None:
        """Disconnect the client, because `snapshot_taken` raised an exception."""
        self._abort()

    def _send(self) -> None:
        if self._descriptor is None:
            self._transport.send(self.replacement())
            return
        self.state = SENDING
        self._conversation.reply_status(Status.OK)
        self._transport.send(self._conversation.data_to_send(), (self._descriptor,))
        if self._transport.sent_all:
            self._sent()

    def _sent(self) -> None:
        self.state = _NONE
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            self._cache.closer.close((self._descriptor,))
            self._descriptor = None
