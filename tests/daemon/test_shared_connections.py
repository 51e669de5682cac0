"""A connection that clients save more than once, through descriptors that share it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from scache import Client
from tests.support.daemon import Daemon

MANY = 600
"""More than the paths that Linux allows from one file to nested epoll instances: 500 through two of
them, 100 through three (fs/eventpoll.c, path_limits)."""

LONG_LABEL = b"x" * 4000
"""A label of which a thousand fill the write-ahead log, so that checkpoints follow each other."""

ROUNDS = 4


@pytest.mark.slow
def test_daemon_survives_checkpoints_while_one_connection_is_saved_many_times(
    tmp_path: Path,
) -> None:
    """A client may save a connection as often as it likes; checkpoints go on meanwhile."""
    database = tmp_path / "cache.db"
    ours, peer = socket.socketpair()
    with ours, peer, Daemon(tmp_path / "socket", database=database) as daemon:
        with Client(daemon.path) as client:
            for number in range(ROUNDS):
                label = b"%d %b" % (number, LONG_LABEL)
                assert all(client.save_many([(300, label, b"", ours)] * 2000))
            found = client.find_endp(label)
            assert found is not None
            found.close()
        assert daemon.terminate() == 0


def test_connections_saved_many_times_are_closed_when_their_peer_hangs_up(tmp_path: Path) -> None:
    """A find discards all of them: none of them is found."""
    ours, peer = socket.socketpair()
    with ours, peer, Daemon(tmp_path / "socket") as daemon, Client(daemon.path) as client:
        for _ in range(MANY):
            client.save_endp(300, b"shared", b"", ours)
        peer.close()
        assert client.find_endp(b"shared") is None
