"""The interface between the daemon and the program that started it."""

from __future__ import annotations

from collections.abc import Callable


class Supervisor:
    """A supervisor that is told nothing, such as a shell."""

    def ready(self) -> None:
        """Report that the daemon accepts clients; also after a reload."""

    def reloading(self) -> None:
        """Report that the daemon reads its settings again; `ready` follows."""

    def stopping(self) -> None:
        """Report that the daemon stops."""

    def client_connected(self) -> None:
        """Report that a client has connected."""

    async def run(self, status: Callable[[], str], stop: Callable[[str], None]) -> None:
        """Exchange what is due at intervals, until cancelled.

        ``status`` returns one line about the state of the daemon. ``stop`` ends the daemon; its
        argument is the reason for the log.
        """
