"""Detection of a listening socket whose path is lost, which clients cannot reach any more."""

from __future__ import annotations

import logging
from collections.abc import Callable
from socket import socket

from scache.daemon.listening_socket import InheritedSocket, ListeningSocket, Loss
from scache.errors import SocketError

LOOK_INTERVAL = 0.5
"""Seconds between two checks of the path."""

_LOST = {"removed": "was removed", "replaced": "was replaced by another file"}

logger = logging.getLogger(__name__)


class SocketWatch:
    """The check of the path of a listening socket, and the replacement of a lost socket."""

    def __init__(
        self, sock: ListeningSocket | InheritedSocket, on_renewed: Callable[[socket], None]
    ) -> None:
        """Call ``on_renewed`` with the old socket when there is a new one."""
        self._socket = sock
        self._on_renewed = on_renewed
        self._loss: Loss | None = None
        self._obstacle = ""
        """The last error of `ListeningSocket.renew`, which is not logged again."""

    def look(self) -> None:
        """Check the path and log each change; listen anew if the path was removed.

        A file of another program at the path is never replaced. Raises SocketError if a supervisor
        has made the socket, because only the supervisor can make it anew.
        """
        loss, path = self._socket.loss(), self._socket.path
        if loss is not None and isinstance(self._socket, InheritedSocket):
            raise SocketError(
                f"the socket {path}, which the supervisor made, {_LOST[loss]}: no client can "
                "connect until the supervisor makes it anew; with systemd, restart the socket unit"
            )
        if loss != self._loss:
            self._loss, self._obstacle = loss, ""
            if loss is None:
                logger.warning("the socket %s is back", path)
            elif loss == "replaced":
                logger.warning(
                    "the socket %s was replaced by another file, so no client can connect: remove "
                    "that file, and the daemon listens there again",
                    path,
                )
        if loss == "removed" and isinstance(self._socket, ListeningSocket):
            self._renew(self._socket)

    def _renew(self, sock: ListeningSocket) -> None:
        try:
            old = sock.renew()
        except SocketError as error:
            if str(error) != self._obstacle:
                self._obstacle = str(error)
                logger.warning(
                    "the socket %s was removed, so no client can connect: %s; trying again",
                    sock.path,
                    error,
                )
            return
        self._on_renewed(old)
        self._loss = None
        logger.warning("the socket %s was removed, and is made anew", sock.path)
