"""Who may do what, by the credentials that the kernel recorded."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import NamedTuple

from scache.daemon.session import Session
from scache.daemon.snapshots import Snapshots
from scache.model import Peer
from scache.unix.namespace import ROOT, Unmapped


class Principals(NamedTuple):
    """Users, and the members of groups."""

    uids: Collection[int]
    gids: Collection[int]
    unmapped_users: Unmapped
    unmapped_groups: Unmapped
    """The ids of these stand for many users and groups, and so for none of them."""

    def include(self, peer: Peer, groups: Collection[int]) -> bool:
        """Return whether somebody is one of them, who also belongs to these groups."""
        if peer.uid in self.uids and not self.unmapped_users.may_be(peer.uid):
            return True
        return any(
            gid in self.gids and not self.unmapped_groups.may_be(gid) for gid in (peer.gid, *groups)
        )


class AccessControl:
    """Serves root, the daemon's own user, and the users and groups that the settings name."""

    def __init__(self, also: Principals, snapshots: Snapshots) -> None:
        """Serve also these."""
        self._people = also._replace(uids={ROOT, os.geteuid(), *also.uids})
        self._snapshots = snapshots

    def permits(self, peer: Peer, groups: Collection[int]) -> bool:
        """Return whether somebody may ask, who also belongs to these groups."""
        return self._people.include(peer, groups)

    def snapshot(self, session: Session) -> None:
        """Take a snapshot for a session."""
        self._snapshots.ask(session)
