"""The circumstances in which the daemon was started."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import NamedTuple

from scache.daemon.supervisor import Supervisor
from scache.settings.declarations import Settings


class Launch(NamedTuple):
    """Parameters of the daemon that depend on the program that starts it."""

    supervisor: Supervisor = Supervisor()
    listening: socket.socket | None = None
    """The listening socket of the supervisor; None if the daemon makes one."""
    reread: Callable[[], Settings] | None = None
    """Read the settings again for a reload, or raise SettingsError; None if they cannot change."""
    memory_on_fault: bool = False
    """True to go on with a database in memory if the database file cannot be opened."""
