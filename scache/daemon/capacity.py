"""How much the daemon takes on: what the settings say, as far as its open files allow."""

from __future__ import annotations

from typing import NamedTuple

from scache.settings import Settings


class Capacity(NamedTuple):
    """Descriptors that may be used for each purpose; what is left is the reserve."""

    clients: int
    connections: int


def capacity(settings: Settings, open_files: int) -> Capacity:
    """Return what fits into so many open files (RLIMIT_NOFILE).

    Where they are few, clients get a fourth of those that are not in reserve,
    and connections the rest.
    """
    spare = max(open_files - settings.descriptor_reserve, 2)
    clients = min(settings.max_clients, max(spare // 4, 1))
    connections = spare - clients
    return Capacity(clients, min(settings.max_connections or connections, connections))
