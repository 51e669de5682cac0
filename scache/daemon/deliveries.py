"""The deliveries of one session: connections that its client has found and does not have yet.

The cache keeps the descriptor of a found connection open until the delivery ends.

    state        event                                    what is done                 next
    -----------  ---------------------------------------  ---------------------------  -----------
    FOUND        a find hits                              reply with the properties    FOUND
                 base protocol: the client's dummy        send descriptor with a byte  HANDED_OVER
                 base protocol: another message           put back                     FOUND
                 inline mode: replies are flushed         send descriptors with them   HANDED_OVER
                 the client disconnects                   put back                     FOUND
    HANDED_OVER  base protocol: the client's next dummy   delivered                    FOUND
                 inline mode: the kernel has taken all    delivered                    FOUND
                 inline mode: shortage of descriptors     deny, reply with misses      FOUND
                 base protocol: shortage of descriptors   disconnect                   HANDED_OVER
                 the client disconnects                   delivered if the kernel has  FOUND
                                                          taken all, else put back

All deliveries of a session are in the same state. FOUND is the state of a session without any.
"""

from __future__ import annotations

from enum import Enum, auto

from scache.cache import Cache
from scache.daemon.client_log import client_logger
from scache.daemon.probe import Probe, shortage_message
from scache.daemon.transport import Transport
from scache.errors import reason_of
from scache.model import Delivery
from scache.protocol.messages import FindDest, FindEndp, without_hits
from scache.protocol.server import ServerConversation


class _State(Enum):
    FOUND = auto()
    HANDED_OVER = auto()


# Global names are faster than members of the enumeration, which the metaclass looks up.
_FOUND, _HANDED_OVER = _State


class Deliveries:
    """The replies of one session, and the descriptors that go with them."""

    def __init__(
        self, cache: Cache, transport: Transport, conversation: ServerConversation, probe: Probe
    ) -> None:
        self._cache = cache
        self._transport = transport
        self._conversation = conversation
        self._probe = probe
        self._state = _FOUND
        self.found: list[Delivery] = []
        """Connections whose delivery is not completed yet."""

    def begin(self, request: FindEndp | FindDest, delivery: Delivery | None) -> None:
        """Reply to a find, and begin the delivery of its connection; None is a miss."""
        if delivery is not None and not self._conversation.inline:
            # In the base protocol the descriptor follows the reply, so test the send before the
            # reply promises a descriptor.
            error = self._probe.shortage(delivery.descriptor)
            if error is not None:
                client_logger.warning("%s", shortage_message(error))
                self._deny(delivery, error)
                delivery = None
        if delivery is None:
            self._conversation.reply_miss(request)
            return
        self.found.append(delivery)
        if delivery.destination is None:
            self._conversation.reply_hit(delivery.connection.properties)
        else:
            self._conversation.reply_hit(
                delivery.destination_properties, delivery.connection.properties
            )

    def flush(self) -> None:
        """Send the replies; in inline mode the descriptors go with them."""
        data = self._conversation.data_to_send()
        if not self._conversation.inline:
            self._transport.send(data)
            return
        self.hand_over(data)
        if self._transport.sent_all:
            self.end(sent=True)

    def hand_over(self, data: bytes) -> None:
        """Send bytes together with the descriptors of all deliveries."""
        self._state = _HANDED_OVER
        self._transport.send(data, [delivery.descriptor for delivery in self.found])

    def undeliverable(self, data: bytes, error: OSError) -> bytes | None:
        """Return the replies to send instead, with misses; None disconnects the client."""
        if not self._conversation.inline:
            # The base protocol has no error reply where the client expects the descriptor.
            self._cache.audit_log.connections_not_sent(len(self.found))
            return None
        found, self.found = self.found, []
        self._state = _FOUND
        for delivery in found:
            self._deny(delivery, error)
        return without_hits(data)

    def end(self, *, sent: bool, finder_left: bool = False) -> None:
        """Complete all deliveries: report them as delivered, or put the connections back."""
        found, self.found = self.found, []
        self._state = _FOUND
        for delivery in found:
            if sent:
                self._cache.delivered(delivery, finder_left=finder_left)
            else:
                self._cache.put_back(delivery)

    def disconnected(self) -> None:
        """End all deliveries of a client that disconnected."""
        sent = self._state is _HANDED_OVER and self._transport.sent_descriptors
        self.end(sent=sent, finder_left=True)

    def _deny(self, delivery: Delivery, error: OSError) -> None:
        self._cache.deny(delivery, f"descriptor not sent: {reason_of(error)}")
