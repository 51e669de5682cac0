"""The blocking client where a library of green threads has replaced modules, as eventlet does."""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path

import pytest

from scache import Client, Unavailable
from tests.support.daemon import Daemon, stopped
from tests.support.peer import Parked, take


class GreenSocket:
    """A socket class that is not the one of the standard library."""


def test_client_needs_neither_poll_nor_the_class_of_sockets(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The functions of eventlet are used for waiting, so other green threads go on."""
    waits = []
    native = select.select

    def green(*arguments: object) -> object:
        waits.append(arguments)
        return native(*arguments)  # type: ignore[arg-type]

    with Daemon(path) as daemon, Client(path, timeout=0.5) as client, socket.socket() as sock:
        with monkeypatch.context() as patch:
            patch.delattr(select, "poll")
            patch.setattr(select, "select", green)
            patch.setattr(socket, "socket", GreenSocket)
            assert client.save_endp(60, "e", "", sock)
            os.close(client.find_many(["e"])[0].detach())  # type: ignore[union-attr]
            assert waits
            with stopped(daemon.pid), pytest.raises(Unavailable):
                client.find_endp("e")
        with Parked(client, 60, "e") as parked:
            take(client.find_endp("e"), parked)
