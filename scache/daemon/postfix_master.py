"""The service protocol of Postfix's master(8)."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable
from contextlib import suppress

import anyio

from scache.daemon.supervisor import Supervisor

STATUS_DESCRIPTOR = 5
"""The pipe on which a service reports to master(8); it hangs up when master(8) reloads or stops."""

LISTENING_DESCRIPTOR = 6
"""The listening socket of the service."""

_STATUS = struct.Struct("=iIi")
"""Process id, generation, and 1 if the process is available for clients or 0 if it is busy."""

_SIGNAL_DELAY = 0.005
"""Seconds from the hang-up in which the SIGTERM of ``postfix stop`` arrives."""


class PostfixMaster(Supervisor):
    """The master(8) that started this process."""

    def __init__(self, generation: int) -> None:
        """Report for this generation, which master(8) passes in its environment."""
        self._generation = generation
        self._reported = False

    def client_connected(self) -> None:
        """Report once that the process has served a client.

        Without a report, master(8) takes the end of the process for a bad start, and does not
        start the service again for a minute.
        """
        if self._reported:
            return
        self._reported = True
        with suppress(OSError):  # master(8) has gone
            for available in (0, 1):
                message = _STATUS.pack(os.getpid(), self._generation, available)
                os.write(STATUS_DESCRIPTOR, message)

    async def run(self, status: Callable[[], str], stop: Callable[[str], None]) -> None:  # noqa: ARG002
        """Stop the daemon when master(8) reloads or stops; its successor waits for that."""
        watched = select.epoll()
        with watched:
            watched.register(STATUS_DESCRIPTOR, 0)  # EPOLLERR and EPOLLHUP are always reported
            await anyio.wait_readable(watched.fileno())
        await anyio.sleep(_SIGNAL_DELAY)
        stop("master(8) has closed its pipe: it reloads or stops")


def generation_of(text: str) -> int:
    """Return the generation from the variable GENERATION, an octal number; 0 if it is not one."""
    try:
        return int(text, 8) & 0xFFFFFFFF
    except ValueError:
        return 0
