"""Snapshots of a live daemon: their content, their replies, and their consistency."""

from __future__ import annotations

import fcntl
import os
import socket
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import pytest

from scache import Client
from scache.store.database import MEMORY
from tests.support.children import children_of
from tests.support.clients import Connect, Pair
from tests.support.daemon import Daemon
from tests.support.descriptors import descriptors_of
from tests.support.dialogue import eventually, until
from tests.support.slow_session import slow_session
from tests.support.snapshots import opened, snapshot
from tests.support.store_fixture import Opened
from tests.support.wire import Wire, encode

WAYS_OUT = ("found", "expired", "evicted", "hung_up", "purged", "lost")


@pytest.fixture
def daemon(path: Path, database: str) -> Iterator[Daemon]:
    """Run a daemon that keeps all events."""
    with Daemon(path, "--audit-rows", "1000000", database=database) as daemon:
        yield daemon


def test_snapshot_has_rows_and_descriptor_information(
    connect: Connect, daemon: Daemon, pair: Pair
) -> None:
    """A snapshot has what was saved, and what the kernel reports about the descriptor."""
    client = connect(daemon.path)
    client.save_endp(60, b"\xff\n", "p", pair[1])
    client.save_dest(60, "d", "q", b"\xff\n")
    with opened(client.snapshot()) as connection:
        connection.text_factory = bytes
        found = connection.execute(
            "SELECT endpoint, kind, unread_bytes FROM connection JOIN descriptor"
            " ON connection_id = id"
        ).fetchall()
        assert found == [(b"\xff\n", b"unix", 0)]
        assert connection.execute("SELECT destination FROM binding").fetchall() == [(b"d",)]


def test_snapshot_is_sealed(client: Client) -> None:
    """No client can write, shrink or grow a snapshot, however it is opened."""
    descriptor = client.snapshot()
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(descriptor, b"x")
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
        try:
            for change in (
                lambda: os.pwrite(again, b"x", 0),
                lambda: os.ftruncate(again, 0),
                lambda: os.ftruncate(again, 10**9),
                lambda: fcntl.fcntl(again, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
            ):
                with pytest.raises(PermissionError):
                    change()
        finally:
            os.close(again)
    finally:
        os.close(descriptor)


def test_snapshot_describes_descriptors_of_every_kind(client: Client, tmp_path: Path) -> None:
    """Addresses, TCP state and unread bytes are listed; what a kind does not have is NULL."""
    with ExitStack() as peers:  # stay open: a connection whose peer hangs up is closed
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port)) as ours:
                theirs = peers.enter_context(listener.accept()[0])
                theirs.sendall(b"12345")
                client.save_endp(60, "tcp", "", ours)
                local = f"127.0.0.1:{ours.getsockname()[1]}"
            client.save_endp(60, "listener", "", listener)
        if socket.has_ipv6:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
                udp.bind(("::1", 0))
                client.save_endp(60, "udp", "", udp)
        with socket.socket(socket.AF_UNIX) as named:
            named.bind(str(tmp_path / "named"))
            client.save_endp(60, "named", "", named)
        with socket.socket(socket.AF_UNIX) as abstract:
            abstract.bind(f"\0{tmp_path}")
            client.save_endp(60, "abstract", "", abstract)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as netlink:
            netlink.bind((0, 0))
            client.save_endp(60, "netlink", "", netlink)
        reader, writer = os.pipe()
        peers.callback(os.close, writer)
        os.write(writer, b"123")
        with open(tmp_path / "file", "wb") as file:  # noqa: PTH123
            for endpoint, descriptor in (("pipe", reader), ("file", file.fileno())):
                client.save_endp(60, endpoint, "", descriptor)
        os.close(reader)
        facts = {
            row[0]: row[1:]
            for row in snapshot(
                client,
                "SELECT endpoint, kind, local, peer, tcp_state, rtt_us > 0, unread_bytes"
                " FROM connection JOIN descriptor ON connection_id = id",
            )
        }
    assert facts.pop("tcp") == ("tcp", local, f"127.0.0.1:{port}", "ESTABLISHED", 1, 5)
    assert facts.pop("listener")[:4] == ("tcp", f"127.0.0.1:{port}", None, "LISTEN")
    kind, address, peer, *_ = facts.pop("udp")
    assert (kind, address.startswith("[::1]:"), peer) == ("udp", True, None)
    nothing = (None, None, None)
    assert facts.pop("named")[:3] == ("unix", str(tmp_path / "named"), None)
    assert facts.pop("abstract")[:3] == ("unix", f"@{tmp_path}", None)
    assert facts.pop("netlink")[:3] == ("socket", None, None)
    assert facts.pop("pipe") == ("pipe", None, None, None, None, 3)
    assert facts.pop("file") == ("file", None, None, *nothing)
    assert not facts


def test_snapshot_has_connections_in_delivery(daemon: Daemon, client: Client, pair: Pair) -> None:
    """A connection is live until its descriptor is sent, although its row is taken before."""
    client.save_endp(60, "e", "", pair[1])
    with Wire(daemon.path) as finder:
        finder.announcement()
        finder.send(encode([(b"request", b"find_endp"), (b"label", b"e")]))
        assert finder.receive_message()[0] == (b"status", b"0")
        both = "SELECT count(*) FROM connection JOIN descriptor ON connection_id = id"
        assert snapshot(client, both) == [(1,)]
        assert snapshot(client, "SELECT count(*) FROM event WHERE kind = 'found'") == [(0,)]


class Traffic:
    """Clients that save and find without pause, in both protocols."""

    def __init__(self, path: Path, clients: int) -> None:
        self._path = path
        self._clients = clients
        self._enough = Event()
        self.saved = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the clients inside the context."""
        with ThreadPoolExecutor(self._clients) as threads:
            work = [threads.submit(self._work, seed) for seed in range(self._clients)]
            try:
                yield
            finally:
                self._enough.set()
        self.saved = sum(each.result() for each in work)

    def _work(self, seed: int) -> int:
        random, saved = Random(seed), 0
        with (
            Client(self._path, inline=bool(seed % 2)) as client,
            open(os.devnull) as something,  # noqa: PTH123
        ):
            while not self._enough.is_set():
                label = f"{random.randrange(50)}"
                if random.random() < 0.5:
                    saved += client.save_endp(random.choice((1, 60)), label, "", something)
                else:
                    client.save_dest(60, label, "", f"{random.randrange(50)}")
                    found = getattr(client, random.choice(("find_endp", "find_dest")))(label)
                    if found:
                        found.close()
        return saved


def check(connection: sqlite3.Connection) -> int:
    """Check that a snapshot is consistent; return the number of saved connections."""
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    ways_out = ", ".join(f"'{way}'" for way in WAYS_OUT)
    saved, found, expired = (
        connection.execute(
            f"SELECT connection_id FROM event WHERE {condition} AND connection_id IS NOT NULL"
        ).fetchall()
        for condition in ("kind = 'save_endp' AND status = 0", "kind = 'found'", "kind = 'expired'")
    )
    out = connection.execute(
        f"SELECT connection_id FROM event WHERE kind IN ({ways_out}) AND connection_id IS NOT NULL"
    ).fetchall()
    live = connection.execute("SELECT id FROM connection").fetchall()
    described = connection.execute("SELECT connection_id FROM descriptor").fetchall()
    assert sorted(live) == sorted(described)
    assert sorted(saved) == sorted(out + live)
    counters = dict(connection.execute("SELECT name, value FROM counter").fetchall())
    assert counters.get("save_endp_ok", 0) == len(saved)
    assert counters.get("connections_found", 0) == len(found)
    assert counters.get("connections_expired", 0) == len(expired)
    return len(saved)


@pytest.mark.slow
def test_snapshots_under_traffic_are_consistent(daemon: Daemon, client: Client) -> None:
    """In each snapshot a connection is live or has one close reason, and the counters agree."""
    traffic = Traffic(daemon.path, 4)
    seen = [0]
    with traffic.running():
        while len(seen) < 30 or seen[-1] < 300:
            with opened(client.snapshot()) as connection:
                seen.append(check(connection))
    assert seen == sorted(seen)
    with opened(client.snapshot()) as connection:
        assert check(connection) == traffic.saved


def test_fifty_clients_at_once_get_a_snapshot_each(
    daemon: Daemon, client: Client, pair: Pair
) -> None:
    """The daemon leaves no descriptor and no child."""
    client.save_endp(60, "e", "", pair[1])
    before = descriptors_of(daemon.pid)

    def ask(_: int) -> list[tuple[Any, ...]]:
        with Client(daemon.path) as another:
            return snapshot(another, "SELECT endpoint FROM connection")

    with ThreadPoolExecutor(50) as threads:
        assert list(threads.map(ask, range(50))) == [[("e",)]] * 50
    eventually(lambda: descriptors_of(daemon.pid) == before)
    eventually(lambda: children_of(daemon.pid) == "")


def test_snapshot_of_a_client_that_left_is_closed(daemon: Daemon, client: Client) -> None:
    """The daemon closes an image that no client waits for."""
    assert client.find_endp("e") is None
    before = descriptors_of(daemon.pid)
    for _ in range(5):
        with Wire(daemon.path) as leaver:
            leaver.announcement()
            leaver.send(encode([(b"request", b"hello")]) + encode([(b"request", b"snapshot")]))
    eventually(lambda: descriptors_of(daemon.pid) == before)
    eventually(lambda: children_of(daemon.pid) == "")
    assert snapshot(client, "SELECT count(*) FROM client WHERE disconnected_at IS NULL") == [(1,)]


def test_requests_after_a_snapshot_request_are_answered_in_order(
    daemon: Daemon, pair: Pair
) -> None:
    """The reply to a snapshot request keeps its place among the replies."""
    find = encode([(b"request", b"find_endp"), (b"label", b"nothing")])
    miss = encode([(b"status", b"2"), (b"property", b"")])
    ask = encode([(b"request", b"snapshot")])
    with Wire(daemon.path) as client:
        client.announcement()
        client.send(encode([(b"request", b"hello")]) + find + ask + find * 100 + ask + find)
        assert client.receive_message()[0] == (b"status", b"0")
        expected = [miss, *[encode([(b"status", b"0")])], *[miss] * 100]
        expected += [encode([(b"status", b"0")]), miss]
        assert [client.receive_message_bytes() for _ in expected] == expected
        _, descriptors = client.receive_raw()
        assert len(descriptors) == 2
        for descriptor in descriptors:
            os.close(descriptor)
    assert pair


def test_base_protocol_has_no_administrative_requests(daemon: Daemon) -> None:
    """The reply is that of Postfix's scache(8) to an unknown request."""
    bad = encode([(b"status", b"1")])
    with Wire(daemon.path) as client:
        client.announcement()
        for name in (b"snapshot", b"purge_endp", b"purge_dest", b"purge_id", b"ping"):
            client.send(encode([(b"request", name), (b"label", b"x")]))
            assert client.receive_message_bytes() == bad


@pytest.mark.parametrize("image", [True, False], ids=["image", "none"])
def test_snapshot_is_sent_after_earlier_deliveries(image: bool) -> None:
    """A descriptor that was sent is not put back, even if the client leaves before the snapshot."""

    async def converse() -> None:
        with slow_session(database) as slow:
            slow.save(b"p" * 30_000)
            find = encode([(b"request", b"find_endp"), (b"label", b"e")])
            ask = encode([(b"request", b"snapshot")])
            slow.client.sendall(encode([(b"request", b"hello")]) + find + ask)
            await until(lambda: slow.asked)
            slow.asked[0].snapshot_taken(os.open(os.devnull, os.O_RDONLY) if image else None)
            assert slow.session.half_done
            _, descriptors, *_ = socket.recv_fds(slow.client, 10, 9)
            assert len(descriptors) == 1
            os.close(descriptors[0])
            slow.client.close()
            await until(lambda: slow.left)
            assert slow.left == {"found": 1}

    before = descriptors_of(os.getpid())
    with Opened(MEMORY) as database:
        database.run(converse())
        assert database.rows("SELECT count(*) FROM connection") == [(0,)]
    assert descriptors_of(os.getpid()) == before
