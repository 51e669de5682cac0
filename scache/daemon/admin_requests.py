"""The requests of administrators: snapshots, purges, and those of observers.

Their form is in `protocol.messages`, and `ANSWERS` of `daemon.client_requests` leads here.
"""

from __future__ import annotations

from collections.abc import Callable

from scache.cache import Cache
from scache.daemon.access import AccessControl
from scache.daemon.followers import Follower
from scache.daemon.observation import Observation
from scache.daemon.snapshot_reply import SnapshotReply
from scache.daemon.transport import Transport
from scache.model import Peer, Status
from scache.protocol.messages import (
    NAMES,
    PURGE_SLICE,
    Admin,
    Follow,
    PurgeDest,
    PurgeEndp,
    PurgeId,
    Snapshot,
    Stats,
)
from scache.protocol.server import ServerConversation


class AdminRequests:
    """The administrative requests of one client."""

    def __init__(
        self,
        cache: Cache,
        access: AccessControl,
        observation: Observation,
        transport: Transport,
        conversation: ServerConversation,
        client_id: int,
        peer: Peer,
        snapshot_reply: SnapshotReply,
        observe: Callable[[], str | None],
        abort: Callable[[], None],
    ) -> None:
        """Call ``observe`` before an observer's request is answered; it returns why to refuse."""
        self._cache = cache
        self._access = access
        self._observation = observation
        self._transport = transport
        self._conversation = conversation
        self._client_id = client_id
        self._peer = peer
        self._snapshot_reply = snapshot_reply
        self._observe = observe
        self._abort = abort
        self.follower: Follower | None = None
        """The follower that this client has become; None if it is none."""

    def answer(self, request: Admin) -> int:
        """Answer a request; return the number of purged connections or bindings.

        A snapshot is only requested; `SnapshotReply` sends it when it is taken.
        """
        if not self._access.permits(self._peer, self._transport.groups()):
            if not isinstance(request, Stats | Follow):
                kind = NAMES[type(request)].decode()
                self._cache.audit_log.request_refused(kind, self._client_id, "not permitted")
            self._conversation.reply_refusal(
                "not permitted: ask as root, as the user of the daemon, "
                "or as one of its admin_uids or admin_gids"
            )
            return 0
        if isinstance(request, Stats | Follow):
            self._answer_observer(request)
            return 0
        if isinstance(request, Snapshot):
            self._snapshot_reply.request()
            self._access.snapshot(self._snapshot_reply)
            return 0
        count = self._purge(request)
        if count is None:
            self._conversation.reply_refusal(
                "the database cannot be written now: try again", "database"
            )
            return 0
        self._conversation.reply_purged(count)
        return count

    def disconnected(self) -> None:
        """Send nothing more to a client that disconnected."""
        if self.follower is not None:
            self._observation.followers.remove(self.follower)

    def _answer_observer(self, request: Stats | Follow) -> None:
        if (reason := self._observe()) is not None:
            self._conversation.reply_refusal(reason)
            return
        if isinstance(request, Stats):
            self._conversation.reply_stats(self._observation.figures())
            return
        follower = Follower(self._transport, self._peer, self._abort)
        try:
            self._observation.followers.add(request, follower)
        except ValueError as error:
            self._conversation.reply_refusal(str(error))
            return
        self.follower = follower
        self._conversation.reply_status(Status.OK)
        self._conversation.ignore_input()

    def _purge(self, request: PurgeEndp | PurgeDest | PurgeId) -> int | None:
        """Purge; return the number of purged rows, or None if the database rejects it."""
        if isinstance(request, PurgeId):
            return self._cache.purge_id(request.id, self._client_id)
        if isinstance(request, PurgeEndp):
            return self._cache.purge_endp(request.endpoint, PURGE_SLICE, self._client_id)
        return self._cache.purge_dest(request.destination, PURGE_SLICE, self._client_id)
