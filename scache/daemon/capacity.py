"""How much the daemon takes on: what the settings say, as far as its open files allow."""

from __future__ import annotations

import resource
from contextlib import suppress
from typing import NamedTuple

from scache.errors import SettingsError
from scache.settings.declarations import Settings

MIN_OPEN_FILES = 32
"""Open files without which there is no daemon: with a database in a file it has 18 for itself, and
a few more while it takes a snapshot."""

_RAISE_OPEN_FILES = "ulimit -n, or LimitNOFILE= in a unit of systemd"


def raise_open_files() -> int:
    """Let this process hold as many descriptors as it may; return how many these are.

    Raises SettingsError if they are too few.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if open_files < MIN_OPEN_FILES:
        raise SettingsError(
            f"only {open_files} files may be open, and the daemon needs {MIN_OPEN_FILES}: "
            f"raise the limit ({_RAISE_OPEN_FILES})"
        )
    return open_files


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


def shortage(settings: Settings, room: Capacity, open_files: int) -> str | None:
    """Return a sentence if there is room for less than the settings say."""
    if room.clients >= settings.max_clients and room.connections >= settings.max_connections:
        return None
    return (
        f"{room.clients} clients and {room.connections} connections at the most: "
        f"there are only {open_files} open files; raise the limit ({_RAISE_OPEN_FILES})"
    )


def client_limit(settings: Settings, clients: int) -> str:
    """Return which limit has so many clients reached, the most that fit, and what raises it."""
    if clients < settings.max_clients:
        return f"the limit on open files allows: raise it ({_RAISE_OPEN_FILES})"
    return "max_clients allows: raise it"
