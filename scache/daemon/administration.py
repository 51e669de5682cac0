"""Who may do what, by the credentials that the kernel recorded."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import NamedTuple

from scache.daemon.privileges import ROOT
from scache.daemon.session import Session
from scache.daemon.snapshots import Snapshots
from scache.model import Peer


class People(NamedTuple):
    """Users, and the members of groups."""

    uids: Collection[int]
    gids: Collection[int]

    def include(self, peer: Peer, groups: Collection[int]) -> bool:
        """Return whether somebody is one of them, who also belongs to these groups."""
        return peer.uid in self.uids or any(gid in self.gids for gid in (peer.gid, *groups))


class Administration:
    """Serves root, the daemon's own user, and the users and groups that the settings name."""

    def __init__(self, also: People, snapshots: Snapshots) -> None:
        """Serve also these."""
        self._people = People({ROOT, os.geteuid(), *also.uids}, also.gids)
        self._snapshots = snapshots

    def permits(self, peer: Peer, groups: Collection[int]) -> bool:
        """Return whether somebody may ask, who also belongs to these groups."""
        return self._people.include(peer, groups)

    def snapshot(self, session: Session) -> None:
        """Take a snapshot for a session."""
        self._snapshots.ask(session)
