"""Admission of clients: which sessions are served, and why the others are refused."""

from __future__ import annotations

from collections.abc import Collection

from scache.daemon.access import Principals
from scache.daemon.session import Session
from scache.daemon.transport import client_logger
from scache.model import Peer
from scache.store.audit import AuditLog

MAX_REFUSED = 16
"""Refused clients that stay connected; a further one disconnects the oldest. Clients over the
client limit and clients that access control refuses are counted separately, so that one kind does
not disconnect the other."""


NOT_ALLOWED = "not allowed: see allow_uids and allow_gids"
"""The reason for refusing a client that access control does not permit."""


class Admission:
    """The admitted and the refused sessions; a refused client stays connected."""

    def __init__(
        self, allowed: Principals, max_clients: int, remedy: str, audit_log: AuditLog
    ) -> None:
        """Admit up to ``max_clients`` of these principals, or of all clients if there are none.

        ``remedy`` is the end of the log message when that limit is reached.
        """
        self.change(allowed, max_clients, remedy)
        self._audit_log = audit_log
        self._admitted: set[Session] = set()
        """Sessions being served."""
        self._over_limit: dict[Session, None] = {}
        """Sessions over the client limit, oldest first."""
        self._not_allowed: dict[Session, None] = {}
        """Sessions that access control refuses, oldest first."""
        self._at_limit = False
        """True while the client limit is reached; the log has a message about it."""

    def change(self, allowed: Principals, max_clients: int, remedy: str) -> None:
        """Apply other limits to the clients that connect from now on."""
        self._allowed = allowed
        self._max_clients = max_clients
        self._remedy = remedy

    @property
    def admitted(self) -> int:
        """The number of sessions being served."""
        return len(self._admitted)

    def allows(self, peer: Peer, groups: Collection[int]) -> bool:
        """Return True if access control permits a peer with these supplementary groups."""
        allowed = self._allowed
        return not (allowed.uids or allowed.gids) or allowed.include(peer, groups)

    def admit(self, session: Session) -> str | None:
        """Admit a session, or return why its requests are refused for now."""
        if not session.allowed:
            self._not_allowed.setdefault(session)
            return NOT_ALLOWED
        if len(self._admitted) >= self._max_clients:
            if session not in self._over_limit:
                self._over_limit[session] = None
                self._audit_log.limit_reached("clients")
            self._log_limit(reached=True)
            return "limit: clients"
        self._log_limit(reached=False)
        self._over_limit.pop(session, None)
        self._admitted.add(session)
        return None

    def disconnect_surplus(self) -> None:
        """Disconnect the oldest refused session of each kind of which there are too many."""
        for refused in (self._over_limit, self._not_allowed):
            if len(refused) > MAX_REFUSED:
                next(iter(refused)).abort()

    def remove(self, session: Session) -> None:
        """Forget a session that disconnected."""
        self._admitted.discard(session)
        self._over_limit.pop(session, None)
        self._not_allowed.pop(session, None)

    def _log_limit(self, *, reached: bool) -> None:
        """Log once when the client limit is reached, and once when a client is admitted again."""
        if reached and not self._at_limit:
            client_logger.warning(
                "client limit reached (%(clients)d connected): refusing requests from new "
                "clients; %(remedy)s",
                {"clients": len(self._admitted), "remedy": self._remedy},
            )
        elif self._at_limit and not reached:
            client_logger.warning("below the client limit again: new clients are served")
        self._at_limit = reached
