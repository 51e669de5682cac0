"""Limits on clients and connections: the settings, reduced to fit the open file limit."""

from __future__ import annotations

import resource
from contextlib import suppress
from typing import NamedTuple

from scache.errors import SettingsError
from scache.settings.declarations import Settings

MIN_OPEN_FILES = 32
"""Smallest open file limit that the daemon starts with. With a database file it needs 18
descriptors for itself, and a few more while it takes a snapshot."""

_RAISE_OPEN_FILES = "ulimit -n, or LimitNOFILE= in a unit of systemd"


def raise_open_files() -> int:
    """Raise the soft limit on open files to the hard limit; return the limit in force.

    Raises SettingsError if it is less than MIN_OPEN_FILES.
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
    """Descriptors for clients and for cached connections; the remaining ones are the reserve."""

    clients: int
    connections: int


def capacity(settings: Settings, open_files: int) -> Capacity:
    """Return the capacity that fits into ``open_files`` descriptors (RLIMIT_NOFILE).

    Clients get at most a fourth of the descriptors that are not in the reserve. Connections get
    the rest.
    """
    spare = max(open_files - settings.descriptor_reserve, 2)
    clients = min(settings.max_clients, max(spare // 4, 1))
    connections = spare - clients
    return Capacity(clients, min(settings.max_connections or connections, connections))


def shortage(settings: Settings, room: Capacity, open_files: int) -> str | None:
    """Return a warning if the capacity is less than the settings ask for, else None."""
    if room.clients >= settings.max_clients and room.connections >= settings.max_connections:
        return None
    return (
        f"{room.clients} clients and {room.connections} connections at the most: "
        f"there are only {open_files} open files; raise the limit ({_RAISE_OPEN_FILES})"
    )


def client_limit(settings: Settings, clients: int) -> str:
    """Return the end of a log message: the limit that ``clients`` has reached, and its remedy."""
    if clients < settings.max_clients:
        return f"the limit on open files allows: raise it ({_RAISE_OPEN_FILES})"
    return "max_clients allows: raise it"
