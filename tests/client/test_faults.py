"""Clients without a daemon, and with one that dies, hangs or sends invalid replies.

Each kind of client has its own code to connect, send, receive and wait, which is tested with each
kind. The handling of replies is the same for all kinds, and is tested with the blocking client.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from scache import Client, Found, ProtocolError, Unavailable
from scache.client import arguments
from scache.client.connection import Connection, send_courtesy
from scache.model import Status
from scache.protocol.messages import (
    ANNOUNCEMENT,
    DESCRIPTOR_BYTE,
    DUMMY,
    HELLO_REPLY,
    STATUS_REPLY,
    encode_reply,
)
from scache.unix import fdpass
from tests.support.clients import Connect, Pair, expect_other_end
from tests.support.daemon import Daemon
from tests.support.dialogue import DEADLINE
from tests.support.scripted import HIT, MISS, Script, by_turns, hang, hear, saying, serving, then

TIMEOUT = 0.1
"""Seconds, for clients that shall time out."""


@pytest.fixture
def no_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients send requests that do not fit into the buffer of a socket."""
    monkeypatch.setattr(arguments, "_SURELY_FITS", 10_000_000)


def expect_late(ask: Callable[[], object], timeout: float = TIMEOUT) -> None:
    """Check that a request times out, and not too early."""
    began = time.monotonic()
    with pytest.raises(Unavailable, match=f"did not answer within {timeout} s"):
        ask()
    assert timeout <= time.monotonic() - began


# No daemon


def test_missing_socket_is_unavailable(tmp_path: Path, connect: Connect) -> None:
    """A path that is too long for a socket is unavailable, too."""
    for name in ("nothing", "directory/nothing", "x" * 200):
        client = connect(tmp_path / name)
        for _ in range(2):
            with pytest.raises(Unavailable, match=name):
                client.find_endp("endpoint")
            assert "not connected" in repr(client)


def test_impossible_path_is_a_value_error(connect: Connect) -> None:
    """Each request raises it."""
    client = connect("\ud800")
    for _ in range(2):
        with pytest.raises(ValueError, match="surrogates"):
            client.find_endp("endpoint")
        assert "not connected" in repr(client)


def test_stale_socket_is_unavailable(path: Path) -> None:
    """No process listens on the socket any more."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with Client(path) as client, pytest.raises(Unavailable, match="refused"):
        client.find_endp("endpoint")


# A daemon that was restarted


def test_client_connects_to_a_restarted_daemon(
    path: Path, connect: Connect, inline: bool, pair: Pair
) -> None:
    """Without a daemon it raises Unavailable."""
    ours, theirs = pair
    client = connect(path, inline=inline, timeout=DEADLINE)
    with Daemon(path) as daemon:
        assert client.find_endp("endpoint") is None
        assert daemon.terminate() == 0
    with Daemon(path):
        assert client.save_many([(60, "endpoint", "", theirs)]) == [True]
        expect_other_end(client.find_endp("endpoint"), ours)
    with pytest.raises(Unavailable, match="cannot connect to the daemon at"):
        client.find_endp("endpoint")


def test_request_that_the_server_has_not_read_is_repeated(path: Path, connect: Connect) -> None:
    """The server hung up with the request in its socket, so it cannot have carried it out."""

    def leave_unread(client: socket.socket) -> None:
        assert select.select([client], [], [], DEADLINE)[0]

    script = by_turns(then(saying(b"", MISS), leave_unread), saying(b"", MISS))
    with serving(path, script) as connections:
        client = connect(path, inline=False, timeout=DEADLINE)
        for _ in range(2):
            assert client.find_endp("endpoint") is None
        assert len(connections) == 2


def test_request_reconnects_once(path: Path, connect: Connect, inline: bool) -> None:
    """If the server hangs up again, the request raises Unavailable."""
    hello = [STATUS_REPLY[Status.BAD]] if inline else []
    script = by_turns(saying(b"", *hello, MISS), saying())
    with serving(path, script) as connections:
        client = connect(path, inline=inline, timeout=DEADLINE)
        assert client.find_endp("endpoint") is None
        with pytest.raises(Unavailable, match="hung up"):
            client.find_endp("endpoint")
        assert len(connections) == 2


@pytest.mark.parametrize(
    "answers", [[], [STATUS_REPLY[Status.OK][:3]], [STATUS_REPLY[Status.OK], b""]]
)
def test_request_that_the_server_has_read_is_not_repeated(
    path: Path, connect: Connect, answers: list[bytes]
) -> None:
    """The server may have carried it out before it hung up."""
    saved = []

    def read(client: socket.socket) -> None:
        saved.append(hear(client))
        for answer in answers:
            client.sendall(answer)

    script = by_turns(then(saying(b"", MISS), read), then(saying(b"", MISS), hang))
    with serving(path, script) as connections:
        client = connect(path, inline=False, timeout=DEADLINE)
        assert client.find_endp("endpoint") is None
        with pytest.raises(Unavailable, match="hung up"):
            client.save_dest_many([(60, "a", "", "b"), (60, "c", "", "d")])
        assert len(saved) == 1
        assert client.find_endp("endpoint") is None
        assert len(connections) == 2
        client.close()


@pytest.mark.usefixtures("no_size_limit")
def test_request_that_the_server_has_read_in_part_is_not_repeated(
    path: Path, connect: Connect
) -> None:
    """The server hung up before the client had sent all of it."""

    def read_a_part(client: socket.socket) -> None:
        hear(client)

    with serving(path, then(saying(b"", MISS), read_a_part)) as connections:
        client = connect(path, inline=False, timeout=DEADLINE)
        assert client.find_endp("endpoint") is None
        # It does not fit into the socket at once: the client is still sending when the server ends.
        with pytest.raises(Unavailable, match="hung up"):
            client.save_dest(60, "x" * 2_000_000, "", "")
        assert len(connections) == 1


# Servers that die


@pytest.mark.parametrize(
    "script",
    [
        saying(),
        saying(ANNOUNCEMENT[:5]),
        saying(ANNOUNCEMENT),
        saying(ANNOUNCEMENT, HIT[:-1]),
        saying(ANNOUNCEMENT, HIT),
        saying(ANNOUNCEMENT, (HIT, 1)),
        saying(ANNOUNCEMENT, HIT, b""),
    ],
)
def test_server_that_hangs_up_within_an_exchange_is_unavailable(path: Path, script: Script) -> None:
    """The client closes the connection."""
    with serving(path, script), Client(path, inline=False, timeout=DEADLINE) as client:
        for _ in range(2):
            with pytest.raises(Unavailable, match="hung up"):
                client.find_endp("endpoint")
            assert "not connected" in repr(client)


@pytest.mark.parametrize(
    "script",
    [
        saying(ANNOUNCEMENT, STATUS_REPLY[Status.BAD]),
        saying(ANNOUNCEMENT, HELLO_REPLY),
        saying(ANNOUNCEMENT, HELLO_REPLY, (HIT[:-1], 1)),
    ],
)
def test_server_that_hangs_up_after_hello_is_unavailable(path: Path, script: Script) -> None:
    """Before or after its reply to hello."""
    with serving(path, script), Client(path, timeout=DEADLINE) as client:
        for _ in range(2):
            with pytest.raises(Unavailable, match="hung up"):
                client.find_endp("endpoint")


def test_find_succeeds_if_the_last_dummy_cannot_be_sent(path: Path, connect: Connect) -> None:
    """The descriptor has been received, so the failure does not matter."""

    def script(client: socket.socket) -> None:
        saying(ANNOUNCEMENT, HIT)(client)
        assert fdpass.receive(client)[0] == DUMMY
        client.shutdown(socket.SHUT_RD)
        saying((DESCRIPTOR_BYTE, 1))(client)

    with serving(path, script):
        client = connect(path, inline=False, timeout=DEADLINE)
        for _ in range(2):
            found = client.find_endp("endpoint")
            assert found is not None
            found.close()


SECOND_HALVES = [
    pytest.param(saying(b""), Unavailable, False, id="dies"),
    pytest.param(then(saying((HIT[:-1], 1)), hang), Unavailable, True, id="hangs"),
    pytest.param(saying((DUMMY, 1)), ProtocolError, False, id="invalid reply"),
    pytest.param(saying(HIT), ProtocolError, False, id="sends no descriptor"),
]


@pytest.mark.parametrize(("second_half", "error", "hangs"), SECOND_HALVES)
def test_find_many_that_fails_closes_what_was_found(
    path: Path, connect: Connect, second_half: Script, error: type[Exception], hangs: bool
) -> None:
    """The first of three finds has succeeded already."""
    script = then(saying(ANNOUNCEMENT, HELLO_REPLY, (HIT, 1)), second_half)
    with serving(path, script):
        client = connect(path, timeout=TIMEOUT if hangs else DEADLINE)
        for _ in range(2):
            with pytest.raises(error):
                client.find_many(["endpoint"] * 3)
            assert "not connected" in repr(client)


# Servers that violate the protocol


@pytest.mark.parametrize(
    "script",
    [
        saying(ANNOUNCEMENT, encode_reply(Status.OK)),
        saying(ANNOUNCEMENT, (encode_reply(Status.OK, b"", b""), 2)),
        saying(ANNOUNCEMENT, (DUMMY, 1)),
        saying(ANNOUNCEMENT, b"x" * 140_000),
        saying(ANNOUNCEMENT, HIT, DESCRIPTOR_BYTE),
    ],
)
def test_invalid_reply_is_a_protocol_error(path: Path, script: Script) -> None:
    """Descriptors that came with it are closed, and so is the connection."""
    with serving(path, script), Client(path, inline=False, timeout=DEADLINE) as client:
        for _ in range(2):
            with pytest.raises(ProtocolError):
                client.find_endp("endpoint")
            assert "not connected" in repr(client)


# Slow servers


@pytest.mark.parametrize(
    ("inline", "answers"),
    [
        (False, []),
        (False, [ANNOUNCEMENT, HIT[:-1]]),
        (False, [ANNOUNCEMENT, HIT]),
        (True, [ANNOUNCEMENT]),
        (True, [ANNOUNCEMENT, HELLO_REPLY]),
    ],
)
def test_server_that_hangs_is_unavailable_after_the_timeout(
    path: Path, connect: Connect, inline: bool, answers: list[bytes]
) -> None:
    """It may hang at any point of an exchange, also before its reply to hello."""
    with serving(path, then(saying(*answers), hang)):
        client = connect(path, inline=inline, timeout=TIMEOUT)
        for _ in range(2):
            expect_late(lambda: client.find_endp("endpoint"))
            assert "not connected" in repr(client)


@pytest.mark.usefixtures("no_size_limit")
def test_server_that_reads_nothing_is_unavailable_after_the_timeout(
    path: Path, connect: Connect, pair: Pair
) -> None:
    """The request does not fit into the socket."""
    over = threading.Event()

    def wait(_: socket.socket) -> None:
        over.wait(DEADLINE)

    with serving(path, wait):
        client = connect(path, inline=False, timeout=TIMEOUT)
        expect_late(lambda: client.save_endp(60, "x" * 2_000_000, "", pair[1]))
        over.set()


def test_server_that_sends_byte_by_byte_gets_no_extra_time(path: Path, connect: Connect) -> None:
    """Received data does not extend the timeout."""

    def drip(client: socket.socket) -> None:
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:  # or until the client hangs up
            client.send(b"x")
            time.sleep(TIMEOUT / 20)

    with serving(path, drip):
        client = connect(path, inline=False, timeout=TIMEOUT)
        expect_late(lambda: client.find_endp("endpoint"))


def answering(pause: float) -> Script:
    """Return a script that answers each request with status 0 after ``pause`` seconds."""

    def script(client: socket.socket) -> None:
        while client.recv(1000):
            time.sleep(pause)
            client.sendall(STATUS_REPLY[Status.OK])

    return script


def test_many_requests_have_one_timeout_together(path: Path, connect: Connect) -> None:
    """Each reply comes early enough, but not all of them."""
    with serving(path, answering(TIMEOUT / 4)):
        client = connect(path, inline=False, timeout=TIMEOUT)
        expect_late(lambda: client.save_dest_many([(60, "", "", "")] * 20))


def test_timeout_applies_to_a_slow_client(
    path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers at once, but the client is slow to receive."""
    receive = Connection.receive

    def receive_slowly(connection: Connection, buffer: memoryview) -> None:
        time.sleep(TIMEOUT / 4)
        receive(connection, buffer)

    with serving(path, answering(0)):
        client = connect(path, inline=False, timeout=TIMEOUT)
        monkeypatch.setattr(Connection, "receive", receive_slowly)
        expect_late(lambda: client.save_dest_many([(60, "", "", "")] * 20))
        client.close()


def test_server_with_a_full_backlog_is_unavailable_after_the_timeout(
    path: Path, connect: Connect
) -> None:
    """A second client waits, too."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        for client in (connect(path, timeout=TIMEOUT), connect(path, timeout=TIMEOUT)):
            expect_late(lambda client=client: client.find_endp("endpoint"))  # type: ignore[misc]


def test_client_waits_for_room_in_the_backlog(path: Path, connect: Connect) -> None:
    """The server accepts a connection before the timeout."""
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as other,
    ):
        listener.bind(str(path))
        listener.listen(0)
        other.connect(str(path))

        def accept() -> None:
            time.sleep(0.05)
            for script in (saying(), saying(b"", MISS)):
                accepted, _ = listener.accept()
                with accepted:
                    accepted.settimeout(DEADLINE)
                    script(accepted)

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            client = connect(path, inline=False, timeout=DEADLINE)
            assert client.find_endp("endpoint") is None
        finally:
            accepting.join()


def test_hit_that_arrived_before_the_timeout_is_returned(
    path: Path, connect: Connect, inline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has its descriptor, although the timeout ends before the request returns."""
    receive, came_late = Connection.receive, False

    def receive_late(connection: Connection, buffer: memoryview) -> None:
        nonlocal came_late
        receive(connection, buffer)
        if connection.conversation.descriptors:
            came_late = True
            time.sleep(timeout + 0.1)

    monkeypatch.setattr(Connection, "receive", receive_late)
    hit = saying(b"", HELLO_REPLY, (HIT, 1)) if inline else saying(b"", HIT, (DESCRIPTOR_BYTE, 1))
    with serving(path, then(hit, hang)):
        for timeout in (0.3, 3, 30):
            client = connect(path, inline=inline, timeout=timeout)
            try:
                found = client.find_endp("endpoint")
            except Unavailable:
                assert not came_late  # on a busy machine: try a longer timeout
                continue
            assert isinstance(found, Found)
            os.fstat(found.descriptor)
            found.close()
            client.close()
            break
    assert came_late


def test_late_reply_is_not_taken_for_that_of_the_next_request(path: Path, connect: Connect) -> None:
    """The timeout closes the connection."""
    late = threading.Event()

    def answer_late(client: socket.socket) -> None:
        hear(client)
        late.wait(DEADLINE)
        client.sendall(MISS)

    with serving(path, by_turns(answer_late, saying(b"", encode_reply(Status.FAIL, b"", b"")))):
        client = connect(path, inline=False, timeout=0.5)
        expect_late(lambda: client.find_endp("endpoint"), 0.5)
        late.set()
        answered = False
        while not answered:
            with suppress(Unavailable):  # on a busy machine half a second may be too short
                assert client.find_dest("destination") is None
                answered = True


def test_send_courtesy_shuts_the_connection_down_if_it_cannot_send() -> None:
    """The next message would follow a dummy that is missing."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        with suppress(BlockingIOError):
            while ours.send(bytes(65536)):
                pass
        send_courtesy(ours, DUMMY)
        with pytest.raises(BrokenPipeError):
            ours.send(b"next request")
        rest = b"".join(iter(lambda: theirs.recv(1 << 20), b""))
        assert rest.strip(b"\0") == b""
