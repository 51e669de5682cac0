"""The request ``ping`` on the wire: a descriptor to the daemon and back, and nothing else."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from scache import Client, Refused
from scache.store.database import MEMORY
from scache.unix import fdpass
from tests.support.as_user import as_user
from tests.support.daemon import Daemon, stopped
from tests.support.descriptors import descriptors_of
from tests.support.dialogue import MISS_ENDP, eventually, until
from tests.support.postfix_setup import private_directory
from tests.support.slow_session import slow_session
from tests.support.snapshots import snapshot
from tests.support.store_fixture import Opened
from tests.support.wire import Wire, encode

HELLO = encode([(b"request", b"hello"), (b"features", b"ping shortage")])
OLD_HELLO = encode([(b"request", b"hello"), (b"features", b"ping")])
PING = encode([(b"request", b"ping")])
OK = encode([(b"status", b"0")])
FIND = encode([(b"request", b"find_endp"), (b"label", b"e")])


@contextmanager
def greeted(path: Path, hello: bytes = HELLO) -> Iterator[Wire]:
    """Yield a client in inline mode."""
    with Wire(path) as client:
        client.announcement()
        client.send(hello)
        assert b"ping" in dict(client.receive_message())[b"features"].split()
        yield client


def identity(descriptor: int) -> tuple[int, int]:
    """Return the identity of an open file, and close the descriptor."""
    status = os.fstat(descriptor)
    os.close(descriptor)
    return status.st_dev, status.st_ino


@pytest.fixture
def pipes() -> Iterator[list[int]]:
    """Return descriptors of four different pipes."""
    ends = [os.pipe() for _ in range(4)]
    yield [reader for reader, _ in ends]
    for pair in ends:
        fdpass.close(pair)


def test_ping_returns_the_descriptor(daemon: Daemon, pipes: list[int]) -> None:
    """Each ping gets its own descriptor back, also when several are sent ahead."""
    with greeted(daemon.path) as client:
        before = descriptors_of(daemon.pid)
        for pipe in pipes:
            client.send(PING, [pipe])
            assert client.receive_message_bytes() == OK
            assert identity(client.take_descriptor()) == identity(os.dup(pipe))
        client.send(PING * len(pipes), pipes)
        for pipe in pipes:
            assert client.receive_message_bytes() == OK
            assert identity(client.take_descriptor()) == identity(os.dup(pipe))
        eventually(lambda: descriptors_of(daemon.pid) == before)


def test_ping_leaves_cache_audit_log_and_counters_alone(daemon: Daemon) -> None:
    """Only the client that connects is counted."""
    with Client(daemon.path) as client:
        os.close(client.snapshot())
        sql = "SELECT count(*) FROM event WHERE kind <> 'snapshot'"
        counters = "SELECT name, value FROM counter WHERE value AND name NOT GLOB 'snapshot*'"
        before = snapshot(client, counters), snapshot(client, sql)
        for _ in range(100):
            client.ping()
        assert (snapshot(client, counters), snapshot(client, sql)) == before
        assert before[1] == [(0,)]


def test_ping_between_finds_is_not_mixed_up_with_connections(
    daemon: Daemon, pipes: list[int]
) -> None:
    """A found connection and the descriptor of a ping come with their own replies."""
    first, second, *others = pipes
    with greeted(daemon.path) as client, Client(daemon.path) as other:
        assert other.save_many([(60, "e", "", first), (60, "e", "", second)])
        client.send((FIND + PING) * 2 + FIND, others)
        hit = encode([(b"status", b"0"), (b"property", b"")])
        for reply, pipe in ((hit, first), (OK, others[0]), (hit, second), (OK, others[1])):
            assert client.receive_message_bytes() == reply
            assert identity(client.take_descriptor()) == identity(os.dup(pipe))
        assert client.receive_message_bytes() == MISS_ENDP


def test_ping_with_wrong_number_of_descriptors(daemon: Daemon, pipes: list[int]) -> None:
    """None is a refusal. Of two, the first comes back, and the daemon closes the other one."""
    with greeted(daemon.path) as client:
        before = descriptors_of(daemon.pid)
        client.send(PING)
        refusal = [(b"status", b"2"), (b"reason", b"no descriptor came with the ping")]
        assert client.receive_message() == refusal
        client.send(PING, pipes[:2])
        assert client.receive_message_bytes() == OK
        assert identity(client.take_descriptor()) == identity(os.dup(pipes[0]))
        eventually(lambda: descriptors_of(daemon.pid) == before)
        client.send(FIND)
        assert client.receive_message_bytes() == MISS_ENDP


def test_ping_in_the_base_protocol_is_malformed(daemon: Daemon, pipes: list[int]) -> None:
    """The daemon closes the descriptor. The client can go on."""
    before = descriptors_of(daemon.pid)
    with Wire(daemon.path) as client:
        client.announcement()
        client.send(PING, pipes[:1])
        assert client.receive_message() == [(b"status", b"1")]
        assert client.find_endp(b"e") == (MISS_ENDP, None)
    eventually(lambda: descriptors_of(daemon.pid) == before)


def test_ping_that_is_too_long_is_malformed(path: Path, pipes: list[int]) -> None:
    """Its descriptor is not used for the next request."""
    with Daemon(path, "--max-message-size", "1000") as daemon, greeted(daemon.path) as client:
        before = descriptors_of(daemon.pid)
        long = encode([(b"request", b"ping"), (b"x", b"y" * 2000)])
        client.send(long + PING, pipes[:2])
        assert client.receive_message() == [(b"status", b"1")]
        assert client.receive_message_bytes() == OK
        assert identity(client.take_descriptor()) == identity(os.dup(pipes[1]))
        eventually(lambda: descriptors_of(daemon.pid) == before)


def test_client_that_leaves_during_a_ping_leaves_no_descriptor(
    daemon: Daemon, pipes: list[int]
) -> None:
    """The daemon has the descriptor, but no client to send it to."""
    before = descriptors_of(daemon.pid)
    for _ in range(20):
        with greeted(daemon.path) as client, stopped(daemon.pid):
            client.send(PING * 4, pipes)
            client.close()
    eventually(lambda: descriptors_of(daemon.pid) == before)


@pytest.mark.parametrize("hello", [HELLO, OLD_HELLO], ids=["new", "old"])
def test_ping_is_refused_when_the_daemon_is_out_of_descriptors(
    daemon: Daemon, pipes: list[int], hello: bytes
) -> None:
    """The word is for clients that know it; the client stays connected."""
    with greeted(daemon.path, hello) as client:
        limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        before = descriptors_of(daemon.pid)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (len(before), limits[1]))
        client.send(PING, pipes[:1])
        (status, reason, *more) = client.receive_message()
        assert (status, reason[0]) == ((b"status", b"2"), b"reason")
        assert b"out of descriptors" in reason[1]
        assert more == ([(b"shortage", b"descriptors")] if hello == HELLO else [])
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
        client.send(PING, pipes[:1])
        assert client.receive_message_bytes() == OK
        os.close(client.take_descriptor())
        eventually(lambda: descriptors_of(daemon.pid) == before)


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "leaves"])
def test_ping_waits_for_earlier_replies(pipes: list[int], reads: bool) -> None:
    """The descriptor is sent, or closed, after a connection that the client has found."""

    async def converse() -> None:
        with slow_session(opened) as slow:
            slow.save(b"p" * 30_000)
            fdpass.send(slow.client, HELLO + FIND + PING, pipes[:1])
            await until(lambda: slow.session.half_done)
            if reads:
                data, descriptors = b"", list[int]()
                while not data.endswith(OK):
                    await until(lambda: readable(slow.client))
                    more, came, _ = fdpass.receive(slow.client)
                    data, descriptors = data + more, [*descriptors, *came]
                assert len(descriptors) == 2
                os.close(descriptors[0])
                assert identity(descriptors[1]) == identity(os.dup(pipes[0]))
                await until(lambda: slow.left == {"found": 1})

    before = descriptors_of(os.getpid())
    with Opened(MEMORY) as opened:
        opened.run(converse())
    assert descriptors_of(os.getpid()) == before


def readable(sock: socket.socket) -> bool:
    """Return True if data can be received."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def test_ping_is_refused_when_the_kernel_sends_no_descriptor(
    pipes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor is closed; the client gets the reason."""
    send = fdpass.send

    def fail(sock: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> int:
        if descriptors:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        return send(sock, data, descriptors)

    async def converse() -> None:
        with slow_session(opened) as slow:
            fdpass.send(slow.client, HELLO + PING, pipes[:1])
            monkeypatch.setattr(fdpass, "send", fail)
            await until(lambda: readable(slow.client))
            await until(lambda: b"shortage\0descriptors" in slow.client.recv(9999, socket.MSG_PEEK))
            monkeypatch.undo()

    before = descriptors_of(os.getpid())
    with Opened(MEMORY) as opened:
        opened.run(converse())
    assert descriptors_of(os.getpid()) == before


def test_ping_over_the_client_limit_is_refused(path: Path) -> None:
    """The refusal is not recorded; the descriptor is closed."""
    with (
        Daemon(path, "--max-clients", "1") as daemon,
        Client(path) as served,
        Client(path) as other,
    ):
        served.ping()
        with pytest.raises(Refused):
            other.ping()  # the daemon may not have accepted it before
        before = len(descriptors_of(daemon.pid))
        with pytest.raises(Refused, match="does not serve this client: limit: clients"):
            other.ping()
        eventually(lambda: len(descriptors_of(daemon.pid)) == before)
        sql = "SELECT count(*) FROM event WHERE kind <> 'snapshot'"
        assert snapshot(served, sql) == [(0,)]


@pytest.mark.root
def test_ping_of_a_client_that_is_not_allowed_is_refused() -> None:
    """Such a client has no inline mode; the reply to its hello tells why."""

    def ask() -> None:
        with Client(path) as client:
            for work in (client.ping, client.snapshot, lambda: client.purge(["e"])):
                with pytest.raises(Refused, match="not allowed: see allow_uids and allow_gids"):
                    work()
            assert client.find_endp("e") is None

    with private_directory() as directory, ExitStack() as stack:
        path = directory / "socket"
        stack.enter_context(Daemon(path, "--socket-mode", "0666", "--allow-uids", "0"))
        as_user(ask)
