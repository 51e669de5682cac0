"""Admission of clients: which sessions are served, and why the others are refused.

A session counts as one of three things:

- It is new until its first request. It has a place as a client has, but nothing is recorded.
- It is a client from its first request on, except ``ping``, ``stats`` and ``follow``; or when it
  has made no request for a moment, or has disconnected. Then its row is written, and it is counted.
- It is an observer after a ``stats`` or ``follow``, if it was no client before, or one that made
  no request. It gives its place back, its row (if there is one) is deleted, and ``max_idle`` goes
  on as if it had never connected. It is a client again with its first request of a client.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from scache.daemon.access import Principals
from scache.daemon.client_log import client_logger
from scache.daemon.idle import IdleTimer
from scache.model import Peer
from scache.store.audit import AuditLog

if TYPE_CHECKING:
    from scache.daemon.session import Session

MAX_REFUSED = 16
"""Refused clients that stay connected; a further one disconnects the oldest. Clients over the
client limit and clients that access control refuses are counted separately, so that one kind does
not disconnect the other."""

MAX_OBSERVERS = 32
"""Observers at a time. They use descriptors of the reserve."""

NOT_ALLOWED = "not allowed: see allow_uids and allow_gids"
"""The reason for refusing a client that access control does not permit."""


class Admission:
    """The admitted and the refused sessions, and the observers; a refused client stays."""

    def __init__(
        self,
        allowed: Principals,
        max_clients: int,
        remedy: str,
        audit_log: AuditLog,
        idle: IdleTimer,
    ) -> None:
        """Admit up to ``max_clients`` of these principals, or of all clients if there are none.

        ``remedy`` is the end of the log message when that limit is reached. ``idle`` is told about
        clients.
        """
        self.change(allowed, max_clients, remedy)
        self._audit_log = audit_log
        self._idle = idle
        self.new: set[Session] = set()
        """Sessions of which nothing is recorded yet."""
        self._admitted: set[Session] = set()
        """Sessions being served, new ones included."""
        self._over_limit: dict[Session, bool] = {}
        """Sessions over the client limit, oldest first; True for one that is counted."""
        self._not_allowed: dict[Session, None] = {}
        """Sessions that access control refuses, oldest first."""
        self._observers: set[Session] = set()
        self._at_limit = False
        """True while the client limit is reached; the log has a message about it."""

    def change(self, allowed: Principals, max_clients: int, remedy: str) -> None:
        """Apply other limits to the clients that connect from now on."""
        self._allowed = allowed
        self.max_clients = max_clients
        self._remedy = remedy

    @property
    def clients(self) -> int:
        """The number of clients being served."""
        return len(self._admitted) - len(self._admitted & self.new)

    @property
    def observers(self) -> int:
        """The number of observers."""
        return len(self._observers)

    def allows(self, peer: Peer, groups: Collection[int]) -> bool:
        """Return True if access control permits a peer with these supplementary groups."""
        allowed = self._allowed
        return not (allowed.uids or allowed.gids) or allowed.include(peer, groups)

    def arrive(self, session: Session) -> str | None:
        """Admit a new session, or return why its requests are refused for now."""
        self._idle.connected()
        self.new.add(session)
        return self.admit(session)

    def admit(self, session: Session) -> str | None:
        """Admit a session that is no observer, or return why its requests are refused for now."""
        if not session.allowed:
            self._not_allowed.setdefault(session)
            return NOT_ALLOWED
        if session in self._admitted:
            self._log_limit(reached=False)
            return None
        is_new = session in self.new
        if len(self._admitted) >= self.max_clients:
            counted = self._over_limit.setdefault(session, False)
            if not (counted or is_new):
                self._over_limit[session] = True
                self._audit_log.limit_reached("clients")
            if not is_new:
                self._log_limit(reached=True)
            return "limit: clients"
        if not is_new:
            self._log_limit(reached=False)
        self._over_limit.pop(session, None)
        self._admitted.add(session)
        return None

    def recorded(self, session: Session) -> str | None:
        """Count a session as a client, and admit it; return the result of `admit`."""
        self.new.discard(session)
        if session in self._observers:
            self._observers.remove(session)
            self._idle.connected()
        return self.admit(session)

    def observe(self, session: Session) -> str | None:
        """Count a session as an observer and not as a client, or return why it is refused."""
        if len(self._observers) >= MAX_OBSERVERS:
            return f"{MAX_OBSERVERS} observers are connected already: end one of them"
        self._leave(session)
        self._idle.discount()
        self._observers.add(session)
        return None

    def disconnect_surplus(self) -> None:
        """Disconnect the oldest refused session of each kind of which there are too many."""
        for refused in (self._over_limit, self._not_allowed):
            if len(refused) > MAX_REFUSED:
                next(iter(refused)).abort()

    def remove(self, session: Session) -> None:
        """Forget a session that disconnected."""
        if session in self._observers:
            self._observers.remove(session)
            return
        self._leave(session)
        self._idle.disconnected()

    def _leave(self, session: Session) -> None:
        self.new.discard(session)
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
