"""Detection of the daemon's own sockets, which it does not cache, and of similar sockets."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack, chdir
from pathlib import Path

import pytest

from scache import Client
from scache.daemon.identity import OwnSockets
from scache.model import Peer
from scache.unix import credentials
from tests.support.clients import Pair
from tests.support.daemon import Daemon
from tests.support.descriptors import sockets_of
from tests.support.dialogue import eventually
from tests.support.served_client import refusals, served
from tests.support.snapshots import snapshot
from tests.support.wire import Wire

EXECUTES_THE_DAEMON = """
import os, socket, sys

path, *command = sys.argv[1:]
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
one, other = socket.socketpair()
if os.fork() == 0:
    for descriptor in (0, 1, 2):
        os.close(descriptor)
    sock, _ = server.accept()
    socket.send_fds(sock, [b"x"], [one.fileno()])
    while data := sock.recv(100):
        sock.sendall(data.upper())
    os._exit(0)
for sock in (server, one):
    sock.close()
os.execv(command[0], command)
"""
"""Listens, leaves the listening socket to a child, and then executes the daemon."""


class Listening:
    """A listening socket at a path, and its connections."""

    def __init__(self, stack: ExitStack, path: str) -> None:
        self._stack = stack
        self._path = path
        self.accepted: list[socket.socket] = []
        self.socket = self._new()
        self.socket.bind(path)
        self.socket.listen()
        self.own = OwnSockets(self.socket)

    def connect(self, *, accept: bool = True) -> socket.socket:
        """Return the client's end of a connection."""
        client = self._new()
        client.connect(self._path)
        if accept:
            self.accepted.append(self._stack.enter_context(self.socket.accept()[0]))
        return client

    def _new(self) -> socket.socket:
        return self._stack.enter_context(socket.socket(socket.AF_UNIX))


@pytest.fixture(params=["diagnosis", "address"])
def listening(
    request: pytest.FixtureRequest,
    stack: ExitStack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Listening:
    """Return a listening socket, with and without sock_diag(7) in the kernel."""
    if request.param == "address":
        monkeypatch.setattr(socket, "AF_NETLINK", socket.AF_UNSPEC)
    return Listening(stack, str(tmp_path / "socket"))


@pytest.mark.parametrize("copy", [False, True], ids=["original", "copy"])
def test_own_sockets_include_both_ends_of_each_connection(
    listening: Listening, *, copy: bool
) -> None:
    """They also include the listening socket, and duplicates of all of these."""
    clients = [listening.connect(), listening.connect(), listening.connect(accept=False)]
    for sock in (*clients, *listening.accepted, listening.socket):
        descriptor = os.dup(sock.fileno()) if copy else sock.fileno()
        assert listening.own.include(descriptor)
        if copy:
            os.close(descriptor)


def test_own_sockets_include_no_others(
    listening: Listening, stack: ExitStack, tmp_path: Path
) -> None:
    """Other sockets of this process, which have its pid, are not included either."""
    other = Listening(stack, str(tmp_path / "other"))
    pair = [stack.enter_context(sock) for sock in socket.socketpair()]
    tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    connection = stack.enter_context(socket.create_connection(tcp.getsockname()))
    datagram = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    unbound = stack.enter_context(socket.socket(socket.AF_UNIX))
    clients = [other.connect(), other.connect(accept=False)]
    sockets = (*clients, *other.accepted, other.socket, *pair, tcp, connection, datagram, unbound)
    reader, writer = os.pipe()
    for descriptor in (*(sock.fileno() for sock in sockets), reader, writer):
        assert not listening.own.include(descriptor)
    for descriptor in (reader, writer):
        os.close(descriptor)


def test_own_sockets_exclude_those_of_a_server_with_the_same_relative_path(
    stack: ExitStack, tmp_path: Path
) -> None:
    """Two servers in two directories may have the same relative path."""
    servers = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        with chdir(tmp_path / name):
            server = Listening(stack, "socket")
            servers.append((server, server.connect()))
    (one, client), (other, stranger) = servers
    assert one.own.include(client.fileno())
    assert other.own.include(stranger.fileno())
    for sock in (other.socket, *other.accepted, stranger):
        assert not one.own.include(sock.fileno())


def test_own_sockets_exclude_those_of_a_later_server_at_the_same_path(
    stack: ExitStack, tmp_path: Path
) -> None:
    """Example: a new daemon starts while an earlier one still serves its clients."""
    path = tmp_path / "socket"
    one = Listening(stack, str(path))
    clients = [one.connect(), one.connect(accept=False)]
    path.unlink()
    other = Listening(stack, str(path))
    strangers = [other.connect(), other.socket, *other.accepted]
    for sock in (*clients, *one.accepted, one.socket):
        assert one.own.include(sock.fileno())
    for sock in strangers:
        assert not one.own.include(sock.fileno())


def test_daemon_caches_sockets_of_the_process_that_executed_it(tmp_path: Path) -> None:
    """They have the daemon's pid: a connection to a server in a child, and a socket pair."""
    path = tmp_path / "server"
    daemon = Daemon(
        tmp_path / "socket", prefix=(sys.executable, "-c", EXECUTES_THE_DAEMON, str(path))
    )
    with daemon, Client(daemon.path) as client, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        _, (one,), *_ = socket.recv_fds(connection, 1, 1)
        assert client.save_endp(60, "pair", "", one)
        os.close(one)
        assert client.save_endp(60, "server", "", connection)
        found = client.find_endp("server")
        assert found is not None
        with found.socket() as sock:
            sock.sendall(b"hello")
            assert sock.recv(10) == b"HELLO"


def test_daemon_notices_the_end_of_a_client_that_tried_to_save_its_own_connection(
    tmp_path: Path,
) -> None:
    """The connection was refused, so the daemon sees its end."""
    with Daemon(tmp_path / "socket") as daemon, Client(daemon.path) as client:
        assert client.find_endp("e") is None
        before = sockets_of(os.getpid())
        with Client(daemon.path) as gone:
            assert gone.find_endp("e") is None
            (connection,) = sockets_of(os.getpid()).keys() - before.keys()
            assert not client.save_endp(60, "e", "", connection)
        left = "SELECT count(*) FROM client WHERE disconnected_at IS NOT NULL"
        eventually(lambda: snapshot(client, left) == [(1,)])


def test_client_has_no_program_when_its_process_has_ended(
    listening: Listening, monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    """Another process may have the pid by then."""
    open_ = os.open

    def open_that_of_another(path: str, flags: int) -> int:
        return open_("/proc/self/comm" if path.endswith("/comm") else path, flags)

    monkeypatch.setattr(os, "open", open_that_of_another)
    child = os.fork()
    if child == 0:
        try:
            listening.connect(accept=False)
        finally:
            os._exit(0)
    accepted = stack.enter_context(listening.socket.accept()[0])
    os.waitpid(child, 0)
    assert credentials.peer(accepted) == Peer(child, os.geteuid(), os.getegid(), None)
    listening.connect()
    assert credentials.peer(listening.accepted[-1]).program


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "base"])
def test_connection_to_the_daemon_is_refused(path: Path, inline: bool) -> None:
    """The daemon would not notice that a client left if its connection was cached."""
    with served(path) as client:
        with Client(path, inline=inline) as own, socket.socket(socket.AF_UNIX) as another:
            another.connect(str(path))
            before = sockets_of(os.getpid())
            assert own.find_endp("e") is None
            (connection,) = sockets_of(os.getpid()).keys() - before.keys()
            for number in (connection, another.fileno()):
                assert not own.save_endp(60, "e", "", number)
        assert refusals(client) == [("save_endp", "a socket of the daemon itself")]


def test_connection_to_the_daemon_in_the_queue_of_a_cached_socket_stays(
    path: Path, pair: Pair
) -> None:
    """The daemon cannot see it: its client seems connected until the socket is closed."""
    connected = "SELECT count(*) FROM client WHERE disconnected_at IS NULL"
    with served(path) as client:
        with Wire(path) as hidden:
            assert hidden.announcement()
            socket.send_fds(pair[0], [b"x"], [hidden.fileno()])
            assert client.save_endp(60, "e", "", pair[1])
            pair[1].close()
        assert snapshot(client, connected) == [(2,)]
        client.purge(["e"])
        eventually(lambda: snapshot(client, connected) == [(1,)])
