"""Changes of the settings of a running daemon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from scache.settings.declarations import CLASS_TABLES, SETTINGS, Settings

AT_START: Final = (
    "socket",
    "database",
    "on_corrupt",
    "descriptor_reserve",
    "on_data",
    "audit_rows",
    "socket_mode",
    "socket_owner",
    "user",
    "log_format",
)
"""Settings that a daemon applies only when it starts."""


class Reloaded(NamedTuple):
    """The settings after a reload."""

    settings: Settings
    """The wanted ones; those of AT_START are unchanged."""
    changed: Sequence[str]
    """Names of the settings that differ from the ones before."""
    postponed: Sequence[str]
    """Names of the settings in AT_START that a restart would change."""


def reloaded(current: Settings, wanted: Settings) -> Reloaded:
    """Return the settings that a running daemon can have, of the wanted ones."""
    differing = [
        setting.name
        for setting in (*SETTINGS, CLASS_TABLES)
        if getattr(current, setting.name) != getattr(wanted, setting.name)
    ]
    settings = replace(wanted, **{name: getattr(current, name) for name in AT_START})
    return Reloaded(
        settings,
        [name for name in differing if name not in AT_START],
        [name for name in differing if name in AT_START],
    )
