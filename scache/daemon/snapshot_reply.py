"""The snapshot that one client has requested."""

from __future__ import annotations

from collections.abc import Callable

from scache.daemon.descriptor_reply import DescriptorReply
from scache.daemon.shortages import no_snapshot
from scache.daemon.transport import Transport
from scache.store.audit import AuditLog


class SnapshotReply:
    """A request for a snapshot, which is answered when the snapshot is taken."""

    def __init__(
        self,
        audit_log: AuditLog,
        transport: Transport,
        client_id: int,
        reply: DescriptorReply,
        serve: Callable[[], None],
        abort: Callable[[], None],
    ) -> None:
        """Call ``serve`` when the next requests of the client can be answered."""
        self._audit_log = audit_log
        self._transport = transport
        self._client_id = client_id
        self._reply = reply
        self._serve = serve
        self._abort = abort
        self.awaited = False
        """True from the request until the snapshot is taken or has failed."""

    def request(self) -> None:
        """Wait for the snapshot; the session answers no request until it is taken."""
        self.awaited = True
        if self._transport.sent_all:
            self._transport.hold()

    def drained(self) -> None:
        """Continue after everything has been sent to the client."""
        if self.awaited:
            self._transport.hold()

    def snapshot_taken(self, descriptor: int | None, shortage: str | None = None) -> None:
        """Take over the descriptor of a snapshot and send it.

        None means that there is none, and ``shortage`` is then the word for what is missing.
        """
        self.awaited = False
        detail = "see the log" if descriptor is None else None
        self._audit_log.snapshot_taken(self._client_id, detail)
        at_once = self._transport.sent_all and not self._reply.is_closed
        if at_once:
            self._transport.release()
        # A snapshot that cannot be sent is refused, too.
        self._reply.give(descriptor, no_snapshot(shortage if descriptor is None else "descriptors"))
        if at_once:
            self._serve()

    def abort(self) -> None:
        """Disconnect the client, because `snapshot_taken` raised an exception."""
        self._abort()
