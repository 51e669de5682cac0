"""Peers that hang up, data of peers, and sockets whose close(2) would block."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from scache import Client
from tests.support.clients import Pair
from tests.support.dialogue import eventually
from tests.support.served_client import count, served
from tests.support.snapshots import snapshot
from tests.support.wire import DUMMY, Wire, encode


class TestHangUps:
    def test_connections_are_closed_when_their_peers_close(self, path: Path, database: str) -> None:
        """Sockets of all families and pipes are closed, and the hang-ups are recorded."""
        with served(path, database=database) as client:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                tcp = socket.create_connection(listener.getsockname())
                tcp_peer, _ = listener.accept()
            unix, unix_peer = socket.socketpair()
            reader, writer = os.pipe()
            with tcp, unix, tcp_peer, unix_peer:
                client.save_endp(60, "tcp", "", tcp)
                client.save_endp(60, "unix", "", unix)
                client.save_endp(60, "pipe", "", reader)
                os.close(reader)
                assert snapshot(client, "SELECT count(*) FROM connection") == [(3,)]
            os.close(writer)
            eventually(lambda: snapshot(client, "SELECT * FROM connection") == [])
            for endpoint in ("tcp", "unix", "pipe"):
                assert client.find_endp(endpoint) is None
            recorded = "SELECT endpoint FROM event WHERE kind = 'hung_up' ORDER BY endpoint"
            assert snapshot(client, recorded) == [("pipe",), ("tcp",), ("unix",)]
            assert count(client, "connections_hung_up") == 3

    def test_connection_whose_peer_closed_before_the_save_is_closed(
        self, path: Path, pair: Pair
    ) -> None:
        """A hang-up before the save is noticed, too."""
        with served(path) as client:
            pair[0].close()
            assert client.save_endp(60, "e", "", pair[1])
            eventually(lambda: count(client, "connections_hung_up") == 1)

    def test_connection_that_was_put_back_is_watched_again(self, path: Path, pair: Pair) -> None:
        """The hang-up is noticed after a delivery that failed."""
        with served(path) as client:
            assert client.save_endp(60, "e", "", pair[1])
            with Wire(path) as leaver:
                leaver.announcement()
                leaver.send(encode([(b"request", b"find_endp"), (b"label", b"e")]))
                assert leaver.receive_message()[0] == (b"status", b"0")
            put_back = "SELECT count(*) FROM event WHERE kind = 'put_back'"
            eventually(lambda: snapshot(client, put_back) == [(1,)])
            pair[0].close()
            pair[1].close()
            eventually(lambda: count(client, "connections_hung_up") == 1)

    @pytest.mark.parametrize("on_data", ["keep", "close"])
    def test_on_data_decides_about_unread_data(self, path: Path, pair: Pair, on_data: str) -> None:
        """Data of the peer is left to the finder (keep), or is a hang-up (close)."""
        ours, theirs = pair
        with served(path, "--on-data", on_data) as client:
            assert client.save_endp(60, "e", "", theirs)
            ours.sendall(b"421 go away")
            if on_data == "close":
                eventually(lambda: count(client, "connections_hung_up") == 1)
                return
            unread = "SELECT unread_bytes FROM descriptor"
            eventually(lambda: snapshot(client, unread) == [(11,)])
            found = client.find_endp("e")
            assert found is not None
            with found.socket() as connection:
                assert connection.recv(100) == b"421 go away"
            assert count(client, "connections_hung_up") == 0

    def test_file_that_epoll_refuses_is_cached(self, path: Path, tmp_path: Path) -> None:
        """A find asks for the state of a connection that is not watched."""
        with served(path) as client, (tmp_path / "file").open("wb") as file:
            assert client.save_endp(60, "e", "", file)
            assert count(client, "connections_hung_up") == 0
            found = client.find_endp("e")
            assert found is not None
            found.close()


def test_hang_up_is_noticed_at_once(client: Client, pair: Pair) -> None:
    """A connection is watched soon after it was saved, and closed when its peer hangs up."""
    client.save_endp(60, "e", "", pair[1])
    pair[1].close()
    time.sleep(0.2)
    pair[0].close()
    eventually(lambda: snapshot(client, "SELECT 1 FROM event WHERE kind = 'hung_up'"))
    age = "SELECT age < 60 FROM event WHERE kind = 'hung_up'"
    assert snapshot(client, age) == [(1,)]


@contextmanager
def lingering() -> Iterator[socket.socket]:
    """Connect a socket with unsent data whose close(2) waits for its peer (SO_LINGER)."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as lingers,
        listener.accept()[0],
    ):
        lingers.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("2i", 1, 600))
        lingers.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                lingers.send(bytes(65536))
        yield lingers


def test_purge_of_a_lingering_socket_does_not_block(path: Path) -> None:
    """The socket is closed at once, although it has unsent data."""
    with served(path) as client, lingering() as lingers:
        assert client.save_endp(60, "e", "", lingers)
        lingers.close()  # the daemon is to be the last that closes it
        assert client.purge(["e"]).connections == 1
        assert client.find_endp("e") is None


def test_delivery_of_a_lingering_socket_does_not_block(path: Path) -> None:
    """The finder closes it first, so the daemon's copy is the one that would wait."""
    with served(path) as client, Wire(path) as finder, lingering() as lingers:
        assert client.save_endp(60, "e", "", lingers)
        lingers.close()
        finder.announcement()
        finder.send(encode([(b"request", b"find_endp"), (b"label", b"e")]))
        assert finder.receive_message()[0] == (b"status", b"0")
        finder.send(DUMMY)
        os.close(finder.receive_descriptor())
        finder.send(DUMMY)
        assert client.find_endp("e") is None
