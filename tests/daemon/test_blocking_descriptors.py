"""Descriptors whose close(2) waits for another program: nothing in the daemon waits for them."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from scache import Client
from scache.cache import cache, slices
from scache.cache.limits import Limits
from scache.daemon.poller import Poller
from scache.daemon.transport import Transport
from scache.model import Status
from scache.unix.closing import MAX_THREADS, Closer
from tests.support.daemon import Daemon
from tests.support.descriptors import descriptors_of
from tests.support.dialogue import DEADLINE, Dialogue, eventually
from tests.support.fuse import FuseServer, close_file, fuse_server
from tests.support.hostile import HELLO
from tests.support.peer import Parked
from tests.support.request_sequences import save_endp
from tests.support.rig import FakeDescriptors, Rig, rigged
from tests.support.snapshots import snapshot
from tests.support.store_fixture import read
from tests.support.wire import encode

MANY = MAX_THREADS + 4
"""Files that keep every thread for files busy."""

STUCK = "close(2) of a descriptor does not return (stuck: "
CLOSED = "every descriptor that waited to be closed is closed"


@pytest.fixture
def fuse(tmp_path: Path, stack: ExitStack) -> Iterator[FuseServer]:
    """Run a FUSE server, and end it before the test closes files of it."""
    with fuse_server(tmp_path / "mounted") as server:
        if server is None:
            pytest.skip("FUSE is not to be had here")
        yield server
        server.close()
        stack.close()


def opened(stack: ExitStack, *descriptors: int) -> int:
    """Close these descriptors in the end; return the first."""
    for descriptor in descriptors:
        stack.callback(os.close, descriptor)
    return descriptors[0]


def tcp(stack: ExitStack, *, linger: bool = False) -> tuple[int, socket.socket]:
    """Return a TCP connection, of which a part is unsent if it is to ``linger``, and its peer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = stack.enter_context(socket.create_connection(listener.getsockname()))
        peer = stack.enter_context(listener.accept()[0])
    if linger:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("2i", 1, 3600))
        ours.setblocking(False)
        try:
            while True:
                ours.send(bytes(65536))
        except BlockingIOError:
            pass
    return ours.fileno(), peer


def unix(stack: ExitStack, *queued: int) -> tuple[int, socket.socket]:
    """Return a UNIX socket with these descriptors in its queue, and its peer."""
    ours, peer = (stack.enter_context(end) for end in socket.socketpair())
    if queued:
        socket.send_fds(peer, [b"."], queued)
    return ours.fileno(), peer


def every_kind(stack: ExitStack, fuse: FuseServer) -> dict[str, int]:
    """Return a descriptor of each kind that nobody else has open."""
    crowd = select.epoll()
    stack.callback(crowd.close)
    for _ in range(100):
        crowd.register(unix(stack)[0], select.EPOLLIN)
    memory = opened(stack, os.memfd_create("memory"))
    os.posix_fallocate(memory, 0, 16 << 20)
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    stack.enter_context(socket.create_connection(listener.getsockname()))
    kinds = {
        "tcp": tcp(stack)[0],
        "tcp with linger": tcp(stack, linger=True)[0],
        "listening tcp": listener.fileno(),
        "udp": stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).fileno(),
        "unix": unix(stack)[0],
        "unix with a queue": unix(stack, memory, fuse.open_in(stack))[0],
        "netlink": stack.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)).fileno(),
        "pipe": opened(stack, *os.pipe()),
        "terminal": opened(stack, *pty.openpty()),
        "memory": memory,
        "eventfd": opened(stack, os.eventfd(0)),
        "epoll": crowd.fileno(),
        "file": opened(stack, os.open(__file__, os.O_RDONLY)),
        "directory": opened(stack, os.open("/", os.O_RDONLY)),
        "device": opened(stack, os.open(os.devnull, os.O_RDONLY)),
        "O_PATH": opened(stack, os.open("/", os.O_PATH)),
        "fuse directory": fuse.open_in(stack, "."),
    }
    return kinds | {f"fuse {number}": fuse.open_in(stack) for number in range(MANY)}


def test_clients_are_answered_while_descriptors_of_every_kind_wait(
    path: Path, database: str, stack: ExitStack, fuse: FuseServer
) -> None:
    """Saves, finds, purges, expiry and snapshots go on, and nothing but files stays open."""
    kinds = every_kind(stack, fuse)
    with Daemon(path, database=database, timeout=60) as daemon, closing(fuse):
        before = descriptors_of(daemon.pid)
        fuse.stop()
        with Client(path, timeout=DEADLINE * 2) as client:
            for kind, descriptor in kinds.items():
                for way, ttl in (("expired", 1), ("found", 60), ("purged", 60)):
                    assert client.save_endp(ttl, f"{way} {kind}", "", descriptor), kind
            live = dict(
                snapshot(
                    client,
                    "SELECT endpoint, kind FROM connection"
                    " JOIN descriptor ON connection_id = connection.id",
                )
            )
            assert (live["found fuse 0"], live["found fuse directory"]) == ("file", "directory")
            for kind in kinds:
                found = client.find_endp(f"found {kind}")
                assert found is not None, kind
                stack.callback(close_file, found.detach())
            client.purge([f"purged {kind}" for kind in kinds])
            with Parked(client, 1, "the last to expire") as parked:
                assert parked.peer.recv(1) == b""
            assert snapshot(client, "SELECT count(*) FROM connection") == [(0,)]
            daemon.wait_for_log(STUCK)
            # What is no file is closed, though every thread for files is stuck, or soon will be.
            reader, writer = os.pipe()
            assert client.save_endp(60, "pipe", "", reader)
            os.close(reader)
            client.purge(["pipe"])
            eventually(lambda: has_hung_up(writer))
            os.close(writer)
            ((stuck,),) = snapshot(client, "SELECT value FROM counter WHERE name = 'closes_stuck'")
            assert stuck > 0
        fuse.close()
        daemon.wait_for_log(CLOSED)
        eventually(lambda: descriptors_of(daemon.pid).keys() == before.keys())
        assert daemon.terminate() == 0


def has_hung_up(descriptor: int) -> bool:
    """Return True if the other end of a pipe is closed."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))


def test_clients_are_answered_when_files_are_refused_or_come_for_nothing(
    path: Path, stack: ExitStack, fuse: FuseServer
) -> None:
    """The daemon closes what it does not cache elsewhere, and what it has not received, too."""
    limit = ("--max-connections-per-endpoint", "1")
    with Daemon(path, *limit, timeout=60) as daemon, closing(fuse), Dialogue(path) as other:
        file = fuse.open_in(stack)
        fuse.stop()
        with Dialogue(path) as client, Dialogue(path) as queued:
            client.send(encode([(b"request", b"nonsense")]), [file, file])
            assert client.status() is Status.BAD
            saves = [client.park(b"e", file) for _ in range(2)]
            assert saves == [Status.OK, Status.FAIL]
            client.send(HELLO)
            assert client.receive_message()[0] == (b"status", b"0")
            client.send(encode(save_endp(b"e", b"p", b"no number")), [file])
            assert client.status() is Status.BAD
            client.send(b"x", [file])
            os.kill(daemon.pid, signal.SIGSTOP)
            queued.send(b"x", [file])
        os.kill(daemon.pid, signal.SIGCONT)
        daemon.wait_for_log(STUCK)
        assert other.take_endp(b"nothing") is None
        fuse.close()
        daemon.wait_for_log(CLOSED)


def test_client_socket_with_a_queue_is_closed_elsewhere(stack: ExitStack) -> None:
    """The queue may hold whatever takes long to be closed."""
    closer = Closer()
    told: list[int] = []
    closer.on_pending = lambda: told.append(closer.pending)

    async def close() -> None:
        poller = Poller(asyncio.get_running_loop())
        for data in (b"", b"x"):
            ours, theirs = map(stack.enter_context, socket.socketpair())
            theirs.send(data)
            Transport(ours, poller, closer).close()
            assert len(told) == len(data)
        poller.close()

    asyncio.run(close())
    assert closer.finish(DEADLINE) == 0


def test_clients_are_answered_when_a_byte_out_of_band_brings_a_lingering_socket(
    path: Path, stack: ExitStack
) -> None:
    """The kernel would close the socket, and wait for its peer, before it returns the bytes."""
    with Daemon(path) as daemon, Dialogue(path) as client, Dialogue(path) as other:
        with ExitStack() as ours:
            descriptor, peer = tcp(ours, linger=True)
            stack.enter_context(socket.socket(fileno=os.dup(peer.fileno())))
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))
            with socket.socket(fileno=os.dup(client.fileno())) as out_of_band:
                out_of_band.sendmsg([b"x"], [rights], socket.MSG_OOB)
        client.send(b"y")
        assert other.take_endp(b"e") is None
        before = len(descriptors_of(daemon.pid))
        client.close()
        eventually(lambda: len(descriptors_of(daemon.pid)) < before)
        assert other.take_endp(b"e") is None


def test_daemon_gives_way_to_another_though_a_file_cannot_be_closed(
    path: Path, tmp_path: Path, fuse: FuseServer
) -> None:
    """It says that its process cannot end yet; its socket and its database are free."""
    database = tmp_path / "cache.db"
    with Daemon(path, database=database, timeout=60) as first, closing(fuse):
        with Client(path) as client:
            descriptor = fuse.open()
            assert client.save_endp(60, "file", "", descriptor)
            os.close(descriptor)
            fuse.stop()
        os.kill(first.pid, signal.SIGTERM)
        first.wait_for_log("process ends when another program")
        with Daemon(path, database=database), Client(path) as other:
            assert other.find_endp("file") is None
        fuse.close()
        assert first.wait() == 0
    assert read(database, "SELECT count(*) FROM connection") == [(0,)]


def test_descriptors_that_cannot_be_closed_take_room_of_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else they and the connections would be more than may be open."""
    with rigged(":memory:", limits=Limits(300, connections=3)) as rig:
        rig.save(5)
        rig.save(6)
        monkeypatch.setattr(FakeDescriptors, "held", 1)
        rig.save(7)
        assert rig.batch.counts["connections_evicted"] == 1


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Make a cache whose every slice of time is over at once."""
    with rigged(":memory:") as rig:
        monkeypatch.setattr(cache, "EXPIRY_SLICE", 64)
        monkeypatch.setattr(slices, "SLICE", 0)
        yield rig


def test_expiry_goes_on_after_a_slice_of_time(rig: Rig) -> None:
    """Each slice clears one entry away, and the last one leaves none."""
    for number in range(3):
        rig.save(1)
        assert rig.bind(1, b"%d" % number) is Status.OK
    rig.clock.time += 2
    cleared, due = [], rig.clock.time
    while due <= rig.clock.time:
        due = rig.cache.expire()
        cleared.append((len(rig.descriptors.open), rig.cache.statistics.bindings))
    # The last of the connections goes in one slice with the first of the bindings.
    assert cleared == [(2, 3), (1, 3), (0, 2), (0, 1), (0, 0)]


def test_watching_and_hang_ups_go_on_after_a_slice_of_time(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    """Each slice takes one connection, and none is passed over."""
    monkeypatch.setattr(slices, "SLICE", 0)
    with rigged(":memory:") as rig:
        writers = []
        for _ in range(3):
            reader, writer = os.pipe()
            opened(stack, reader)
            writers.append(writer)
            rig.descriptors.open.add(reader)
            assert rig.cache.save_endp(60, b"e", b"", reader, 1) is Status.OK
        assert [rig.cache.watch() for _ in range(3)] == [True, True, False]
        for writer in writers:
            os.close(writer)
        for left in (2, 1, 0):
            rig.cache.close_hung_up()
            assert len(rig.descriptors.open) == left
