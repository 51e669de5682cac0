"""A daemon that caches open connections for other processes, and a client for it.

It implements the protocol of Postfix's scache(8) and can replace it.
"""

from __future__ import annotations

from importlib import import_module

from scache.version import __version__

TYPE_CHECKING = False  # importing typing would take most of the start-up time of the command
if TYPE_CHECKING:
    from scache.client.aio import AsyncClient
    from scache.client.found import Found
    from scache.client.sync import Client
    from scache.errors import (
        ClientInUse,
        DescriptorLimit,
        NotNow,
        NotParkable,
        ProtocolError,
        Refused,
        ScacheError,
        TimedOut,
        TooOld,
        Unavailable,
    )
    from scache.protocol.observation import Stats

__all__ = [
    "AsyncClient",
    "Client",
    "ClientInUse",
    "DescriptorLimit",
    "Found",
    "NotNow",
    "NotParkable",
    "ProtocolError",
    "Refused",
    "ScacheError",
    "Stats",
    "TimedOut",
    "TooOld",
    "Unavailable",
    "__version__",
]

_HOME = {
    "AsyncClient": "scache.client.aio",
    "Client": "scache.client.sync",
    "Found": "scache.client.found",
    "Stats": "scache.protocol.observation",
}

_INTERNAL = {"TYPE_CHECKING", "_HOME", "_INTERNAL", "annotations", "import_module"}
"""Names of this module that `dir` does not list."""


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, because the daemon needs no client."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME.get(name, "scache.errors")), name)


def __dir__() -> list[str]:
    """Return the public names, also those that are not imported yet, and the loaded modules."""
    return sorted({*__all__, *globals()} - _INTERNAL)
