"""A reply with one descriptor, sent after all earlier replies: to a snapshot request or a ping.

    state    event                                        what is done             next
    -------  -------------------------------------------  -----------------------  -------
    NONE     a reply is given                             send, or refuse          SENDING
             the same, but earlier replies are not sent   keep the descriptor      DUE
    DUE      earlier replies are sent                     send, or refuse          SENDING
    SENDING  the kernel has accepted the descriptor       close it                 NONE
             shortage of descriptors                      close it, refuse         NONE
    any      the client disconnects                       close the descriptor     CLOSED
    CLOSED   a reply is given                             close the descriptor     CLOSED

After a refusal the state is NONE at once, because there is no descriptor to close.
"""

from __future__ import annotations

from enum import Enum, auto

from scache.daemon.shortages import Refusal
from scache.daemon.transport import Transport
from scache.model import Status
from scache.protocol.server import ServerConversation
from scache.unix.closing import Closer


class _State(Enum):
    NONE = auto()
    DUE = auto()
    SENDING = auto()
    CLOSED = auto()


# Global names are faster than members of the enumeration, which the metaclass looks up.
_NONE, _DUE, _SENDING, _CLOSED = _State


class DescriptorReply:
    """The reply that one client waits for, and the owner of its descriptor."""

    def __init__(
        self, closer: Closer, transport: Transport, conversation: ServerConversation
    ) -> None:
        self._closer = closer
        self._transport = transport
        self._conversation = conversation
        self._state = _NONE
        self._descriptor: int | None = None
        self._refusal: Refusal

    @property
    def is_sending(self) -> bool:
        """True while the descriptor is given to the transport and not sent yet."""
        return self._state is _SENDING

    @property
    def is_closed(self) -> bool:
        """True if the client has disconnected."""
        return self._state is _CLOSED

    def give(self, descriptor: int | None, refusal: Refusal) -> None:
        """Take over a descriptor and send it; send the refusal if it is None or cannot be sent."""
        self._descriptor, self._refusal = descriptor, refusal
        if self._state is _CLOSED:
            self._close()
        elif self._transport.sent_all:
            self._send()
        else:
            # Earlier replies may carry deliveries, which must be completed first.
            self._state = _DUE

    def drained(self) -> None:
        """Continue after everything has been sent to the client."""
        if self._state is _DUE:
            self._send()
        elif self._state is _SENDING:
            self._sent()

    def replacement(self) -> bytes:
        """Return the refusal to send instead, because the descriptor cannot be sent now."""
        self._sent()
        self._conversation.reply_refusal(*self._refusal)
        return self._conversation.data_to_send()

    def disconnected(self) -> None:
        """Close the descriptor; a reply that is given later is closed too."""
        self._state = _CLOSED
        self._close()

    def _send(self) -> None:
        if self._descriptor is None:
            self._transport.send(self.replacement())
            return
        self._state = _SENDING
        self._conversation.reply_status(Status.OK)
        self._transport.send(self._conversation.data_to_send(), (self._descriptor,))
        if self._transport.sent_all:
            self._sent()

    def _sent(self) -> None:
        self._state = _NONE
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            self._closer.close((self._descriptor,))
            self._descriptor = None
