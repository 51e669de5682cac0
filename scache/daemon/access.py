"""Access control by the peer credentials that the kernel recorded."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import NamedTuple

from scache.daemon.snapshots import Asker, Snapshots
from scache.model import Peer
from scache.unix.namespace import ROOT, Unmapped


class Principals(NamedTuple):
    """Users, given by user ID or by membership in a group.

    An ID that may be an overflow ID never matches, because many unmapped users or groups share it.
    """

    uids: Collection[int]
    gids: Collection[int]
    unmapped_users: Unmapped
    unmapped_groups: Unmapped

    def include(self, peer: Peer, groups: Collection[int]) -> bool:
        """Return True if a peer with these supplementary groups is one of the principals."""
        if peer.uid in self.uids and not self.unmapped_users.may_be(peer.uid):
            return True
        return any(
            gid in self.gids and not self.unmapped_groups.may_be(gid) for gid in (peer.gid, *groups)
        )


class AccessControl:
    """Access to administrative requests: root, the daemon's user and configured principals."""

    def __init__(self, also: Principals, snapshots: Snapshots) -> None:
        """Permit the principals ``also``, besides root and the daemon's user."""
        self._snapshots = snapshots
        self.change(also)

    def change(self, also: Principals) -> None:
        """Permit these principals from now on, besides root and the daemon's user."""
        self._principals = also._replace(uids={ROOT, os.geteuid(), *also.uids})

    def permits(self, peer: Peer, groups: Collection[int]) -> bool:
        """Return True if a peer with these supplementary groups may send these requests."""
        return self._principals.include(peer, groups)

    def snapshot(self, asker: Asker) -> None:
        """Request a snapshot; `Asker.snapshot_taken` is called when it is taken or has failed."""
        self._snapshots.ask(asker)
