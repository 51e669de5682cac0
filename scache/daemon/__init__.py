"""The daemon process: sockets, signals, time-outs and background tasks, on anyio."""

from __future__ import annotations

from scache.daemon.main import run

__all__ = ["run"]
