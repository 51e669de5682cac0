"""The daemon process: sockets, signals, time-outs and background tasks, on anyio."""

from __future__ import annotations

from scache.daemon.launch import Launch
from scache.daemon.main import run
from scache.daemon.supervisor import Supervisor

__all__ = ["Launch", "Supervisor", "run"]
