"""Descriptors whose close(2) waits for another program do not block the daemon."""

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
    """Run a FUSE server, and end it before the test closes its files."""
    with fuse_server(tmp_path / "mounted") as server:
        if server is None:
            pytest.skip("FUSE is not available here")
        yield server
        server.close()
        stack.close()


def opened(stack: ExitStack, *descriptors: int) -> int:
    """Close these descriptors after the test; return the first."""
    for descriptor in descriptors:
        stack.callback(os.close, descriptor)
    return descriptors[0]


def tcp(stack: ExitStack, *, linger: bool = False) -> tuple[int, socket.socket]:
    """Return a TCP connection and its peer; with ``linger``, its close(2) waits for the peer."""
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
    """Return a descriptor of each kind; no other process has it open."""
    large_epoll = select.epoll()
    stack.callback(large_epoll.close)
    for _ in range(100):
        large_epoll.register(unix(stack)[0], select.EPOLLIN)
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
        "epoll": large_epoll.fileno(),
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
    """Saves, finds, purges, expiry and snapshots go on, and only files stay open."""
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
            # A pipe is closed, although every thread for files is stuck or soon will be.
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


def test_clients_are_answered_when_files_are_refused_or_not_used(
    path: Path, stack: ExitStack, fuse: FuseServer
) -> None:
    """Threads close the files that are not cached, and those that are still in a queue."""
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


def test_client_socket_with_a_queue_is_closed_by_a_thread(stack: ExitStack) -> None:
    """The queue may hold descriptors whose close(2) takes long."""
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


def test_clients_are_answered_when_out_of_band_data_carries_a_lingering_socket(
    path: Path, stack: ExitStack
) -> None:
    """Without SO_OOBINLINE, recvmsg(2) would close the socket and wait for its peer."""
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


def test_stopped_daemon_frees_its_socket_and_database_while_a_file_is_not_closed(
    path: Path, tmp_path: Path, fuse: FuseServer
) -> None:
    """The log says that the process cannot end yet; another daemon can start meanwhile."""
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


def test_descriptors_that_cannot_be_closed_count_against_max_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise these and the connections would exceed the limit on open files."""
    with rigged(":memory:", limits=Limits(300, connections=3)) as rig:
        rig.save(5)
        rig.save(6)
        monkeypatch.setattr(FakeDescriptors, "held", 1)
        rig.save(7)
        assert rig.batch.counts["connections_evicted"] == 1


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Make a cache whose slices of time end after one step."""
    with rigged(":memory:") as rig:
        monkeypatch.setattr(cache, "EXPIRY_SLICE", 64)
        monkeypatch.setattr(slices, "SLICE", 0)
        yield rig


def test_expiry_goes_on_after_a_slice_of_time(rig: Rig) -> None:
    """Each slice removes one entry, and the last one leaves none."""
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
    """Each slice handles one connection, and none is skipped."""
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
