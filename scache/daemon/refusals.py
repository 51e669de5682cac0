"""The refusals of one session: why requests are refused, and what is recorded about it."""

from __future__ import annotations

from scache.cache import Cache
from scache.daemon.client_log import client_logger
from scache.errors import ProtocolError
from scache.model import Peer, Status
from scache.protocol.messages import (
    GRAMMAR,
    NAMES,
    FindDest,
    FindEndp,
    Follow,
    Hello,
    Ping,
    SaveDest,
    SaveEndp,
    Stats,
)
from scache.protocol.request_parser import Malformed
from scache.protocol.server import ServerConversation
from scache.protocol.server_events import Pinged, Save

_NOT_RECORDED = [NAMES[each] for each in (Hello, Ping, Stats, Follow)]
"""Requests that have no outcome to record."""


class Refusals:
    """Refused and malformed requests of one client.

    Of a client that is not allowed, only the first one is recorded, so that it cannot flush the
    audit log.
    """

    def __init__(
        self,
        cache: Cache,
        conversation: ServerConversation,
        client_id: int,
        peer: Peer,
        *,
        allowed: bool,
    ) -> None:
        self._closer = cache.closer
        self._audit_log = cache.audit_log
        self._conversation = conversation
        self._client_id = client_id
        self._peer = peer
        self._allowed = allowed
        self.reason: str | None = None
        """Reason for refusing saves and finds; None if the client is admitted."""
        self._records = True
        """False once the audit log has a record that the client is not allowed."""
        self._logs = allowed
        """False once the log has a message about a malformed request of the client."""

    def answer(self, event: Save | SaveDest | FindEndp | FindDest) -> None:
        """Refuse a save or a find of a client that is not admitted."""
        request = event.request if isinstance(event, Save) else event
        if self._is_recorded():
            kind = NAMES[type(request)].decode()
            self._audit_log.request_refused(kind, self._client_id, self.reason or "")
        if isinstance(event, Save) and event.descriptor is not None:
            self._closer.close((event.descriptor,))
        if isinstance(request, SaveEndp | SaveDest):
            self._conversation.reply_status(Status.FAIL)
        else:
            self._conversation.reply_miss(request)

    def answer_ping(self, event: Pinged) -> None:
        """Refuse a ping; it is not recorded."""
        if event.descriptor is not None:
            self._closer.close((event.descriptor,))
        self._conversation.reply_refusal(f"the daemon does not serve this client: {self.reason}")

    def malformed(self, event: Malformed) -> None:
        """Record a malformed request, to which the conversation has replied."""
        if event.descriptor is not None:
            self._closer.close((event.descriptor,))
        known = event.name in GRAMMAR and event.name not in _NOT_RECORDED
        kind = event.name.decode() if known else "unknown"
        if event.too_long:
            self._audit_log.limit_reached("message_size")
        self._record_malformed(kind, "longer than max_message_size" if event.too_long else None)
        if self._logs:
            self._logs = False
            client_logger.warning(
                "client with process id %(client_pid)d sent a malformed or unknown request "
                "(%(request)s): answered with status 1, further ones of this client are not logged",
                {"client_pid": self._peer.pid, "request": kind},
            )

    def overdue(self) -> None:
        """Record that the client exceeded the exchange time-out and is disconnected."""
        client_logger.warning(
            "client with process id %(client_pid)d stopped in the middle of an exchange: "
            "disconnected",
            {"client_pid": self._peer.pid},
        )
        self._audit_log.limit_reached("exchange_timeout")
        self._record_malformed("unknown", "limit: exchange timeout")

    def too_much_ahead(self, error: ProtocolError) -> None:
        """Record that the client sent too much ahead and is disconnected."""
        self._audit_log.limit_reached("ahead_size")
        self._record_malformed("unknown", str(error))
        client_logger.warning(
            "client with process id %(client_pid)d: %(reason)s: disconnected",
            {"client_pid": self._peer.pid, "reason": error},
        )

    def _record_malformed(self, kind: str, detail: str | None) -> None:
        if self._is_recorded():
            detail = detail if self._allowed else self.reason
            self._audit_log.request_malformed(kind, self._client_id, detail)

    def _is_recorded(self) -> bool:
        """Return True if this refusal is to be recorded."""
        if self._allowed:
            return True
        records, self._records = self._records, False
        if records:
            self._audit_log.client_not_allowed()
        return records
