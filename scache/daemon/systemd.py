"""Notifications to systemd: ready, status, watchdog, reload and stop (sd_notify(3))."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress

import anyio

from scache.daemon.supervisor import Supervisor

STATUS_INTERVAL = 10.0
"""Longest time in seconds between two reports of the status."""

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Systemd(Supervisor):
    """The service manager that listens on NOTIFY_SOCKET."""

    def __init__(self, address: str, watchdog: float | None) -> None:
        """Send to this address; ``watchdog`` is WatchdogSec= in seconds, None without one."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog = watchdog
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def ready(self) -> None:
        """Report READY=1."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Report RELOADING=1 with the time that Type=notify-reload requires."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """Report STOPPING=1."""
        self._send("STOPPING=1\nSTATUS=stopping")

    async def run(self, status: Callable[[], str], stop: Callable[[str], None]) -> None:  # noqa: ARG002
        """Report the status, and WATCHDOG=1 at twice the rate that systemd requires.

        This task runs in the event loop that serves the clients. So systemd restarts a daemon
        whose event loop is stuck.
        """
        interval, beat = STATUS_INTERVAL, ""
        if self._watchdog is not None:
            interval, beat = min(self._watchdog / 2, STATUS_INTERVAL), "\nWATCHDOG=1"
        while True:
            self._send(f"STATUS={status()}{beat}")
            await anyio.sleep(interval)

    def _send(self, message: str) -> None:
        # A notification that systemd cannot take now is lost; the next one has newer figures.
        with suppress(OSError):
            self._socket.sendto(message.encode(errors="backslashreplace"), self._address)


def systemd(environment: MutableMapping[str, str]) -> Systemd | None:
    """Return the service manager that started this process; None if there is none.

    The variables are removed, because they are not meant for child processes.
    """
    given = {name: environment.pop(name, "") for name in _VARIABLES}
    if not given["NOTIFY_SOCKET"].startswith(("/", "@")):
        return None
    for_this_process = given["WATCHDOG_PID"] in ("", str(os.getpid()))
    usec = given["WATCHDOG_USEC"]
    watchdog = int(usec) / 1e6 if for_this_process and usec.isdecimal() and int(usec) else None
    return Systemd(given["NOTIFY_SOCKET"], watchdog)
