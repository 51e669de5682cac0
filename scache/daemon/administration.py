"""Who may look inside and purge, and what is done for them."""

from __future__ import annotations

import os
from collections.abc import Collection

from scache.daemon.session import Session
from scache.daemon.snapshots import Snapshots
from scache.model import Peer

ROOT = 0


class Administration:
    """Serves root, the daemon's own user, and the users and groups that the settings name."""

    def __init__(self, uids: Collection[int], gids: Collection[int], snapshots: Snapshots) -> None:
        """Serve also these users, and whoever belongs to one of these groups."""
        self._uids = {ROOT, os.geteuid(), *uids}
        self._gids = set(gids)
        self._snapshots = snapshots

    def permits(self, peer: Peer, groups: Collection[int]) -> bool:
        """Return whether somebody may ask, who also belongs to these groups."""
        return peer.uid in self._uids or not self._gids.isdisjoint((peer.gid, *groups))

    def snapshot(self, session: Session) -> None:
        """Take a snapshot for a session."""
        self._snapshots.ask(session)
