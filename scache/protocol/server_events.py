"""The events of the server's side of a conversation."""

from __future__ import annotations

from typing import NamedTuple

from scache.protocol.messages import Admin, FindDest, FindEndp, SaveDest, SaveEndp
from scache.protocol.request_parser import Malformed


class Save(NamedTuple):
    """A complete ``save_endp``; answer with `reply_status`."""

    request: SaveEndp
    descriptor: int | None
    """The received descriptor, which the receiver of the event must close; None if none came."""
    lost: bool = False
    """True if the client sent a descriptor that could not be received."""


class Pinged(NamedTuple):
    """A complete ``ping``; answer with `reply_status` and the descriptor, or `reply_refusal`."""

    descriptor: int | None
    """The received descriptor, which the receiver of the event must close; None if none came."""
    lost: bool = False
    """True if the client sent a descriptor that could not be received."""


class Deliver(NamedTuple):
    """The client waits for the descriptor of its hit: send DESCRIPTOR_BYTE with it."""


class Delivered(NamedTuple):
    """The client has answered after the descriptor was sent: close the cache's copy."""


class Abandoned(NamedTuple):
    """The client sent something other than a dummy, so its hit was not delivered."""


Event = (
    Save
    | SaveDest
    | FindEndp
    | FindDest
    | Admin
    | Pinged
    | Malformed
    | Deliver
    | Delivered
    | Abandoned
)
"""An event of the conversation. Answer a ``save_dest`` with `reply_status`, a find with `reply_hit`
or `reply_miss`, and an administrator's request with `reply_status`, `reply_purged`, `reply_stats`
or `reply_refusal`."""
