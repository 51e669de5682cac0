"""Limits on clients and connections: the settings, reduced to fit the open file limit."""

from __future__ import annotations

from typing import NamedTuple

from scache.cache.limits import Limits
from scache.errors import SettingsError
from scache.settings.declarations import Settings

MIN_OPEN_FILES = 32
"""Smallest open file limit that the daemon starts with. With a database file it needs 18
descriptors for itself, and a few more while it takes a snapshot."""

MAX_CONNECTIONS = 1_000_000
"""Connections cached by default where the limit on open files allows more: they take about 1 GB."""

_RAISE_OPEN_FILES = "ulimit -n, or LimitNOFILE= in a unit of systemd"


def check_open_files(open_files: int) -> None:
    """Raise SettingsError if the limit on open files is less than MIN_OPEN_FILES."""
    if open_files < MIN_OPEN_FILES:
        raise SettingsError(
            f"only {open_files} files may be open, and the daemon needs {MIN_OPEN_FILES}: "
            f"raise the limit ({_RAISE_OPEN_FILES})"
        )


def most_open_files(settings: Settings) -> int:
    """Return a limit on open files that is enough for the settings."""
    connections = max(settings.max_connections, MAX_CONNECTIONS)
    return settings.descriptor_reserve + settings.max_clients + connections


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
    connections = settings.max_connections or MAX_CONNECTIONS
    return Capacity(clients, min(connections, spare - clients))


def shortage(settings: Settings, room: Capacity, open_files: int) -> str | None:
    """Return a warning if the capacity is less than the settings ask for, else None."""
    if room.clients >= settings.max_clients and room.connections >= settings.max_connections:
        return None
    return (
        f"the limit on open files ({open_files}) allows only {room.clients} clients and "
        f"{room.connections} connections: raise it ({_RAISE_OPEN_FILES})"
    )


def client_limit_remedy(settings: Settings, clients: int) -> str:
    """Return the end of a log message: how to raise the limit of ``clients`` in force."""
    if clients < settings.max_clients:
        return f"raise the limit on open files ({_RAISE_OPEN_FILES})"
    return "raise max_clients"


def limits(settings: Settings, room: Capacity) -> Limits:
    """Return the limits of the cache for this capacity."""
    return Limits(
        settings.ttl_limit,
        room.connections,
        settings.max_connections_per_endpoint,
        settings.max_bindings_per_destination,
        settings.max_bindings,
        settings.max_bytes,
    )


def in_force(settings: Settings, room: Capacity, open_files: int) -> dict[str, str]:
    """Return the settings as text, with the limits in force, for the table ``setting``."""
    return settings.as_text() | {
        "max_clients": str(room.clients),
        "max_connections": str(room.connections),
        "open_files_limit": str(open_files),
    }
