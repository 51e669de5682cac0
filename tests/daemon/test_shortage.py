"""Descriptors that the kernel does not send: no connection is lost, and the find is a miss."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import pytest

from scache import Client, Refused
from scache.cli.main import execute
from scache.daemon.poller import Poller
from scache.daemon.probe import Probe, shortage_message
from scache.daemon.transport import Transport
from scache.errors import EXIT_OK
from scache.model import Status
from scache.protocol.messages import DUMMY, encode_reply, without_hits
from scache.store.database import MEMORY
from scache.unix import fdpass
from scache.unix.closing import Closer
from tests.support.as_user import GID, as_user
from tests.support.clients import Connect, Pair, expect_other_end
from tests.support.daemon import Daemon
from tests.support.dialogue import MISS_DEST, MISS_ENDP, Dialogue, eventually, until
from tests.support.hostile import HELLO
from tests.support.postfix_setup import private_directory
from tests.support.request_sequences import find_dest, find_endp
from tests.support.rig import rigged
from tests.support.slow_session import slow_session
from tests.support.snapshots import snapshot
from tests.support.store_fixture import Opened
from tests.support.wire import Wire, encode

OPEN_FILES = 256
UID = 20_000 + os.getpid() % 20_000
"""A user of this process only, because tests that run in parallel need descriptors, too."""

NOT_SENT = "no descriptor can be sent to a client now (Too many references"
FAILED = "SELECT kind, endpoint, destination, detail FROM event WHERE status = 2 ORDER BY id"
COUNTED = "SELECT value FROM counter WHERE name = 'connections_not_sent'"
DETAIL = "fault: descriptor not sent: Too many references: cannot splice"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """Run a daemon without capabilities."""
    with private_directory() as directory:
        options = ("--user", f"{UID}:{GID}", "--socket-mode", "0666")
        with Daemon(directory / "socket", *options, open_files=OPEN_FILES) as daemon:
            yield daemon


@contextmanager
def many_in_transit() -> Iterator[None]:
    """Put more descriptors of the daemon's user in transit than the daemon may open."""
    pair = socket.socketpair()

    def send() -> None:
        with open(os.devnull, "rb") as something:  # noqa: PTH123
            for _ in range(OPEN_FILES // fdpass.MAX_DESCRIPTORS + 1):
                fdpass.send(pair[0], b"x", [something.fileno()] * fdpass.MAX_DESCRIPTORS)

    with pair[0], pair[1]:
        as_user(send, uid=UID, gid=GID)
        yield


def test_find_whose_descriptor_cannot_be_sent_is_a_miss(
    connect: Connect, inline: bool, daemon: Daemon, pair: Pair
) -> None:
    """The connection stays with its ttl, and is found when a descriptor can be sent again."""
    ours, theirs = pair
    with Client(daemon.path) as admin:
        client = connect(daemon.path, inline=inline)
        client.save_endp(60, "e", "p", theirs)
        client.save_dest(60, "d", "q", "e")
        live = "SELECT id, saved_at, expires_at FROM connection"
        before = snapshot(admin, live)
        with many_in_transit():
            assert client.find_endp("e") is None
            assert client.find_dest("d") is None
        daemon.wait_for_log(NOT_SENT)
        assert snapshot(admin, live) == before
        assert snapshot(admin, COUNTED) == [(2,)]
        failed = [("find_endp", "e", None, DETAIL), ("find_dest", None, "d", DETAIL)]
        assert snapshot(admin, FAILED) == failed
        assert execute(["check", "--socket", str(daemon.path)]) == EXIT_OK
        expect_other_end(client.find_dest("d"), ours)


def test_pipeline_whose_descriptors_cannot_be_sent_keeps_its_order(
    daemon: Daemon, pair: Pair
) -> None:
    """Each find that hit is answered as a miss of its kind; other replies do not change."""
    with Client(daemon.path) as admin, Dialogue(daemon.path) as client:
        admin.save_endp(60, "e", "", pair[1])
        admin.save_endp(60, "e2", "p", pair[1])
        admin.save_dest(60, "d", "q", "e2")
        client.send(HELLO)
        client.receive_message()
        requests = [
            find_endp(b"e"),
            find_endp(b"nothing"),
            find_dest(b"d"),
            [(b"request", b"nonsense")],
            find_dest(b"nothing"),
        ]
        with many_in_transit():
            client.send(b"".join(map(encode, requests)))
            replies = (MISS_ENDP, MISS_ENDP, MISS_DEST, encode_reply(Status.BAD), MISS_DEST)
            client.expect(b"".join(replies))
        assert snapshot(admin, "SELECT count(*) FROM connection") == [(2,)]


def test_snapshot_that_cannot_be_sent_is_refused(daemon: Daemon) -> None:
    """The client is refused, and gets a snapshot later."""
    with Client(daemon.path) as admin:
        with many_in_transit(), pytest.raises(Refused, match="no snapshot can be taken now"):
            admin.snapshot()
        assert snapshot(admin, "SELECT count(*) FROM connection") == [(0,)]


def test_snapshot_is_sent_after_hits_that_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hits become misses, and the snapshot is sent after their replies."""
    why: list[OSError] = [BlockingIOError()]
    send = fdpass.send

    def fail(sock: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> int:
        if descriptors and why:
            error = why[-1]
            if error.errno == errno.ETOOMANYREFS:  # only once
                why.clear()
            raise error
        return send(sock, data, descriptors)

    async def converse() -> None:
        with slow_session(opened) as slow:
            slow.save(b"p" * 30_000)
            requests = ([(b"request", b"hello")], find_endp(b"e"), [(b"request", b"snapshot")])
            slow.client.sendall(b"".join(map(encode, requests)))
            await until(lambda: slow.asked)
            slow.asked[0].snapshot_taken(os.open(os.devnull, os.O_RDONLY))
            assert not slow.left
            why.append(OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS)))
            await until(lambda: not slow.session.half_done)
            data, descriptors, _ = fdpass.receive(slow.client)
            fdpass.close(descriptors)
            assert data.endswith(MISS_ENDP + encode_reply(Status.OK))
            assert len(descriptors) == 1
        assert slow.left == {"not_sent": 1}

    monkeypatch.setattr(fdpass, "send", fail)
    with Opened(MEMORY) as opened:
        opened.run(converse())
        assert opened.rows("SELECT count(*) FROM connection") == [(1,)]


def test_connection_goes_back_when_its_descriptor_cannot_be_sent_after_the_hit(
    daemon: Daemon, pair: Pair
) -> None:
    """In the base protocol the daemon then disconnects the client, and logs why."""
    ours, theirs = pair
    with Client(daemon.path) as other, Dialogue(daemon.path) as client:
        other.save_endp(60, "e", "p", theirs)
        client.send(encode(find_endp(b"e")))
        assert client.receive_message()[0] == (b"status", b"0")
        with many_in_transit():
            client.send(DUMMY)
            client.await_end()
        daemon.wait_for_log(NOT_SENT)
        assert snapshot(other, COUNTED) == [(1,)]
        assert execute(["check", "--socket", str(daemon.path)]) == EXIT_OK
        expect_other_end(other.find_endp("e"), ours)


def test_connections_whose_replies_wait_for_a_slow_client_are_not_lost(
    daemon: Daemon, pair: Pair
) -> None:
    """Connections that were sent count as found, and the others stay cached."""
    many, properties = 20, "p" * 30_000
    with Client(daemon.path) as admin, Wire(daemon.path) as client:
        for _ in range(many):
            assert admin.save_endp(60, "e", properties, pair[1])
        client.announcement()
        client.send(HELLO)
        client.receive_message()
        client.send(encode(find_endp(b"e")) * many)
        sent = "SELECT count(*) FROM event WHERE kind = 'found'"
        eventually(lambda: snapshot(admin, sent)[0][0] > 0)
        with many_in_transit(), ExitStack() as stack:
            statuses = []
            for _ in range(many):
                statuses.append(client.receive_message()[0][1])
                if statuses[-1] == b"0":
                    stack.callback(os.close, client.take_descriptor())
        assert set(statuses) == {b"0", b"2"}
        left = "SELECT count(*) FROM connection WHERE id IN (SELECT connection_id FROM descriptor)"
        assert snapshot(admin, left) == [(statuses.count(b"2"),)]


class RecordingReceiver:
    """A receiver that records the calls of its transport."""

    def __init__(self, instead: bytes | None = None) -> None:
        """Reply with ``instead`` when data cannot be sent."""
        self._instead = instead
        self.asked: list[bytes] = []
        self.gone = False

    def received(self, data: bytes, *_: object) -> None:
        """Fail, because the client sends nothing."""
        raise AssertionError(data)

    def undeliverable(self, data: bytes, _: OSError) -> bytes | None:
        """Record the data that cannot be sent."""
        self.asked.append(data)
        return self._instead

    def drained(self) -> None:
        """Do nothing."""

    def disconnected(self) -> None:
        """Record that the client disconnected."""
        self.gone = True


@contextmanager
def transport(sock: socket.socket, receiver: RecordingReceiver) -> Iterator[Transport]:
    """Make a transport on the running loop."""
    with closing(Poller(asyncio.get_running_loop())) as poller:
        transport = Transport(sock, poller, Closer())
        transport.start(receiver)
        yield transport
        transport.close()


@pytest.mark.parametrize("number", [errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM])
@pytest.mark.parametrize("instead", [b"instead", None])
def test_transport_asks_its_receiver_for_a_replacement(
    monkeypatch: pytest.MonkeyPatch, pair: Pair, number: int, instead: bytes | None
) -> None:
    """It disconnects the client if there is no replacement."""
    send = fdpass.send

    def fail(sock: socket.socket, data: bytes, descriptors: tuple[int, ...] = ()) -> int:
        if descriptors:
            raise OSError(number, os.strerror(number))
        return send(sock, data)

    async def converse() -> None:
        receiver = RecordingReceiver(instead)
        with transport(pair[0], receiver) as ours:
            ours.send(b"hit", (0,))
            assert receiver.asked == [b"hit"]
            assert ours.sent_all is (instead is not None)
            assert ours.sent_descriptors is ours.sent_all
            assert not receiver.gone  # the caller of `send` is not prepared for it
            if instead is None:
                await until(lambda: receiver.gone)
            assert pair[1].recv(10) == (instead or b"")
            await asyncio.sleep(0.01)
            assert receiver.gone is (instead is None)

    monkeypatch.setattr(fdpass, "send", fail)
    asyncio.run(converse())


def test_transport_disconnects_when_its_client_has_disconnected(pair: Pair) -> None:
    """The receiver is not asked for a replacement, because nothing can be sent."""

    async def converse() -> None:
        receiver = RecordingReceiver(b"instead")
        with transport(pair[0], receiver) as ours:
            pair[1].close()
            ours.send(b"hit", (0,))
            assert not receiver.gone
            await until(lambda: receiver.gone)
            assert not receiver.asked

    asyncio.run(converse())


def test_probe_keeps_no_descriptor(pair: Pair) -> None:
    """The peer of the connection sees its end as soon as the daemon closes it."""
    probe = Probe()
    for _ in range(1000):
        assert probe.shortage(pair[1].fileno()) is None
    pair[1].close()
    assert pair[0].recv(1) == b""
    probe.close()


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ETOOMANYREFS, "ulimit -n"), (errno.ENOMEM, "memory"), (errno.ENOBUFS, "memory")],
)
def test_shortage_message_says_what_is_short(number: int, advice: str) -> None:
    """The message names the error, and the limit if that is the reason."""
    message = shortage_message(OSError(number, os.strerror(number)))
    assert os.strerror(number) in message
    assert advice in message


def test_without_hits_replaces_only_hits() -> None:
    """Properties may be empty, or look like a part of a reply."""
    hits = [
        encode_reply(Status.OK, b""),
        encode_reply(Status.OK, b"", b""),
        encode_reply(Status.OK, b"status"),
        encode_reply(Status.OK, b"0", b"property"),
    ]
    misses = [MISS_ENDP, MISS_DEST, MISS_ENDP, MISS_DEST]
    others = [encode_reply(status) for status in Status] + [
        encode([(b"status", b"0"), (b"count", b"3")]),
        encode([(b"status", b"2"), (b"reason", b"property")]),
        MISS_ENDP,
        MISS_DEST,
    ]
    for other in others:
        replies = b"".join(hit + other for hit in hits)
        assert without_hits(replies) == b"".join(miss + other for miss in misses)


def test_denied_find_counts_as_a_miss() -> None:
    """Statistics and counters agree; a connection that expired meanwhile is closed."""
    with rigged(MEMORY) as rig:
        rig.save(5)
        rig.bind()
        for find, label in ((rig.cache.find_endp, b"e"), (rig.cache.find_dest, b"d")):
            delivery = find(label, 1)
            assert delivery is not None
            rig.cache.deny(delivery, "why")
        statistics = rig.cache.statistics
        assert (statistics.address_hits, statistics.address_misses) == (0, 1)
        assert (statistics.domain_hits, statistics.domain_misses) == (0, 1)
        assert rig.batch.counts["find_endp_fail"] == rig.batch.counts["find_dest_fail"] == 1
        delivery = rig.cache.find_endp(b"e", 1)
        assert delivery is not None
        rig.clock.time += 10
        rig.cache.deny(delivery, "why")
        assert rig.batch.counts["connections_expired"] == 1
        assert not rig.descriptors.open
