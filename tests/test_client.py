"""The blocking client, with every server that it speaks to."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from scache import Client, Found, ProtocolError, Unavailable, fdpass
from scache.model import Status
from scache.protocol.messages import (
    ANNOUNCEMENT,
    DESCRIPTOR_BYTE,
    DUMMY,
    HELLO_REPLY,
    STATUS_REPLY,
    encode_reply,
)
from tests.support.daemon import Daemon
from tests.support.dialogue import DEADLINE
from tests.support.genuine import GenuineScache

_numbers = itertools.count()


@pytest.fixture(scope="module", params=["memory", "file", "genuine", "silent"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon | GenuineScache]:
    """Run a server: ours on memory, on a file, and without announcement, or the genuine one."""
    if request.param == "genuine":
        with GenuineScache({"connection_cache_ttl_limit": "300s"}) as genuine:
            yield genuine
        return
    directory = tmp_path_factory.mktemp("client")
    database = directory / "cache.db" if request.param == "file" else ":memory:"
    options = ["--no-announce"] if request.param == "silent" else []
    with Daemon(directory / "socket", *options, database=database) as daemon:
        yield daemon


@pytest.fixture(params=["inline", "base"])
def inline(request: pytest.FixtureRequest) -> bool:
    """Say whether the client asks for inline mode."""
    return bool(request.param == "inline")


@pytest.fixture
def client(server: Daemon | GenuineScache, inline: bool) -> Iterator[Client]:
    """Connect a client to the server."""
    with Client(server.path, inline=inline, timeout=DEADLINE) as client:
        yield client


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Make a connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(DEADLINE)
        yield ours, theirs


def label() -> str:
    """Return a label that no other test uses."""
    return f"label {next(_numbers)}"


def expect_other_end(found: Found | None, ours: socket.socket) -> None:
    """Insist on having found the other end of this connection; close it."""
    assert found is not None
    with found.socket() as theirs:
        theirs.sendall(b"hello")
    assert ours.recv(10) == b"hello"


Pair = tuple[socket.socket, socket.socket]


def test_save_and_find(client: Client, pair: Pair) -> None:
    """What one saves under an endpoint is found there once, and by nobody else."""
    ours, theirs = pair
    endpoint = label()
    assert client.find_endp(endpoint) is None
    assert client.save_endp(60, endpoint, "properties", theirs) is True
    theirs.close()
    found = client.find_endp(endpoint)
    assert found is not None
    assert found.endpoint_properties == b"properties"
    assert found.destination_properties == b""
    assert client.find_endp(endpoint) is None
    expect_other_end(found, ours)
    assert ours.recv(1) == b""  # nobody else has it


def test_destination(client: Client, pair: Pair) -> None:
    """A destination leads to a connection of its endpoint, with the properties of both."""
    ours, theirs = pair
    destination, endpoint = label(), label()
    assert client.save_dest(60, destination, "of the binding", endpoint) is True
    assert client.find_dest(destination) is None
    assert client.save_endp(60, endpoint, "of the endpoint", theirs.fileno()) is True
    found = client.find_dest(destination)
    assert found is not None
    assert found.endpoint_properties == b"of the endpoint"
    assert found.destination_properties == b"of the binding"
    expect_other_end(found, ours)


@pytest.mark.parametrize("text", [b"", b"\xff\xfe\n", bytes(range(1, 256)), b"x" * 3000])
def test_exact_bytes(client: Client, pair: Pair, text: bytes) -> None:
    """Labels and properties are any bytes but NUL, and come back exact."""
    ours, theirs = pair
    assert client.save_dest(60, text, text, text)
    assert client.save_endp(60, text, text, theirs)
    found = client.find_dest(text)
    assert found is not None
    assert found.endpoint_properties == found.destination_properties == text
    expect_other_end(found, ours)


def test_text(client: Client, pair: Pair) -> None:
    """Text is sent as UTF-8, and names the same label as its bytes."""
    ours, theirs = pair
    endpoint = label() + " \u00e9\u4e16"
    assert client.save_endp(60, endpoint, "\u00e9", theirs)
    found = client.find_endp(endpoint.encode())
    assert found is not None
    assert found.endpoint_properties == "\u00e9".encode()
    expect_other_end(found, ours)


def test_many(client: Client) -> None:
    """Many requests at once do what one at a time does, in order."""
    destination, endpoint = label(), label()
    pairs = [socket.socketpair() for _ in range(300)]
    try:
        assert client.save_dest_many([(60, destination, "", endpoint)] * 3) == [True] * 3
        saves = [(60, endpoint, str(n), theirs) for n, (_, theirs) in enumerate(pairs)]
        assert client.save_many(saves) == [True] * 300
        found = client.find_many([endpoint] * 200 + [label()])
        found += client.find_dest_many([destination] * 101)
        assert found.pop(200) is found.pop() is None
        for number, (one, (ours, _)) in enumerate(zip(found, pairs, strict=True)):
            assert one is not None
            assert one.endpoint_properties == b"%d" % number
            expect_other_end(one, ours)
    finally:
        for end in itertools.chain(*pairs):
            end.close()


# Who owns a descriptor


def test_owner_after_a_save(client: Client, pair: Pair) -> None:
    """The caller's descriptor stays open, in its mode, and the caller's to close."""
    _, theirs = pair
    theirs.setblocking(False)
    assert client.save_endp(60, label(), "", theirs)
    theirs.send(b"still mine")
    assert theirs.getblocking() is False
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


def test_owner_after_a_find(client: Client, pair: Pair) -> None:
    """What was found stays open when the client is closed, is close-on-exec, and one's own."""
    ours, theirs = pair
    endpoint = label()
    assert client.save_endp(60, endpoint, "", theirs)
    found = client.find_endp(endpoint)
    client.close()
    theirs.close()
    assert found is not None
    assert os.get_inheritable(found.descriptor) is False
    os.write(found.descriptor, b"mine")
    assert ours.recv(10) == b"mine"
    found.close()
    assert ours.recv(10) == b""


def test_found_is_frozen() -> None:
    """What a find gives is a value: equal to its like, and unchangeable."""
    found = Found(7, b"properties")
    assert found == Found(descriptor=7, endpoint_properties=b"properties")
    assert hash(found) == hash(Found(7, b"properties", b""))
    with pytest.raises(FrozenInstanceError):
        found.descriptor = 8  # type: ignore[misc]


def test_what_is_no_socket(client: Client) -> None:
    """A pipe has no socket: asking for it is an OSError, and the pipe stays open."""
    endpoint = label()
    reading, writing = os.pipe()
    assert client.save_endp(60, endpoint, "", writing)
    os.close(writing)
    found = client.find_endp(endpoint)
    assert found is not None
    with pytest.raises(OSError, match="socket"):
        found.socket()
    os.write(found.descriptor, b"open")
    found.close()
    assert os.read(reading, 10) + os.read(reading, 10) == b"open"
    os.close(reading)


# What goes wrong


@pytest.mark.parametrize(
    "request_",
    [
        lambda client, theirs: client.save_endp(60, "a\0b", "", theirs),
        lambda client, theirs: client.save_endp(60, "", b"\0", theirs),
        lambda client, _: client.find_endp("\0"),
        lambda client, _: client.find_dest(b"\0"),
        lambda client, _: client.save_dest(60, "\0", "", ""),
        lambda client, _: client.save_dest(60, "", "\0", ""),
        lambda client, _: client.save_dest(60, "", "", "\0"),
    ],
)
def test_nul(
    client: Client, pair: Pair, request_: Callable[[Client, socket.socket], object]
) -> None:
    """A NUL cannot be sent: that is a ValueError, and the client can go on."""
    ours, theirs = pair
    with pytest.raises(ValueError, match="NUL"):
        request_(client, theirs)
    endpoint = label()
    assert client.save_endp(60, endpoint, "", theirs)
    expect_other_end(client.find_endp(endpoint), ours)


@pytest.mark.parametrize("ttl", [0, -5])
def test_bad_ttl(client: Client, pair: Pair, ttl: int) -> None:
    """A ttl below 1 is malformed: that is a ProtocolError, and the client can go on."""
    ours, theirs = pair
    endpoint = label()
    with pytest.raises(ProtocolError):
        client.save_endp(ttl, endpoint, "", theirs)
    with pytest.raises(ProtocolError):
        client.save_dest(ttl, endpoint, "", endpoint)
    assert client.find_endp(endpoint) is None
    assert client.save_endp(60, endpoint, "", theirs)
    expect_other_end(client.find_endp(endpoint), ours)


def test_ttl_that_is_no_integer(client: Client, pair: Pair) -> None:
    """A ttl is a whole number of seconds: anything else is a TypeError."""
    ttl: int = 1.5  # type: ignore[assignment]
    with pytest.raises(TypeError):
        client.save_endp(ttl, label(), "", pair[0])


def test_closed_client(client: Client) -> None:
    """A client that was closed connects again when it is asked for something."""
    assert "not connected" in repr(client)
    assert client.find_endp(label()) is None
    assert "not connected" not in repr(client)
    client.close()
    client.close()
    assert "not connected" in repr(client)
    assert client.find_endp(label()) is None


FORKING = """
import os, sys
from scache import Client

client = Client(sys.argv[1], inline=sys.argv[2] == "True")
conversation = lambda: os.fstat(client._socket.fileno()).st_ino
assert client.find_endp("nothing") is None
before = conversation()
child = os.fork()
assert client.find_endp("nothing") is None
assert (conversation() == before) is (child != 0)
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.find_endp("nothing") is None
    assert conversation() == before
client.close()
"""


def test_fork(server: Daemon | GenuineScache, inline: bool) -> None:
    """A forked child has a conversation of its own, and leaves its parent's alone."""
    command = [sys.executable, "-W", "error", "-c", FORKING, str(server.path), str(inline)]
    done = subprocess.run(command, timeout=DEADLINE, check=False, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("name", ["nothing", "directory/nothing", "x" * 200])
def test_no_daemon(tmp_path: Path, name: str) -> None:
    """Where no socket is, or can be, the daemon is unavailable."""
    with Client(tmp_path / name) as client, pytest.raises(Unavailable, match=name):
        client.find_endp("endpoint")


def test_nobody_listens(path: Path) -> None:
    """Where nobody listens any more, the daemon is unavailable."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with Client(path) as client, pytest.raises(Unavailable, match="refused"):
        client.find_endp("endpoint")


def test_restart(path: Path, database: str, inline: bool, pair: Pair) -> None:
    """A client whose daemon was started anew goes on by itself."""
    ours, theirs = pair
    with Client(path, inline=inline, timeout=DEADLINE) as client:
        for _ in range(2):
            with Daemon(path, database=database) as daemon:
                assert client.find_endp("endpoint") is None
                assert daemon.terminate() == 0
            with Daemon(path, database=database):
                assert client.save_endp(60, "endpoint", "", theirs)
                expect_other_end(client.find_endp("endpoint"), ours)
            with pytest.raises(Unavailable):
                client.find_endp("endpoint")
            path.unlink()  # what is killed leaves its socket


# Servers that break the rules

Script = Callable[[socket.socket], None]


@contextmanager
def serving(path: Path, script: Script) -> Iterator[None]:
    """Run a server that does this to each client that connects."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, suppress(ConnectionError):
                    client.settimeout(DEADLINE)
                    script(client)

    with (
        ThreadPoolExecutor(1) as thread,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(str(path))
        listener.listen()
        serving = thread.submit(serve)
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            serving.result(DEADLINE)


def saying(*answers: bytes | tuple[bytes, int]) -> Script:
    """Return a script that says this, the first at once and each other when it is told something.

    A number is how many descriptors go with the bytes.
    """

    def script(client: socket.socket) -> None:
        for number, answer in enumerate(answers):
            if number:
                assert fdpass.receive(client)[0]
            data, count = answer if isinstance(answer, tuple) else (answer, 0)
            with Path(os.devnull).open() as anything:
                fdpass.send(client, data, [anything.fileno()] * count)

    return script


HIT = encode_reply(Status.OK, b"")


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
def test_server_that_dies(path: Path, script: Script) -> None:
    """A server that hangs up in the middle of an exchange is unavailable."""
    with serving(path, script), Client(path, inline=False, timeout=DEADLINE) as client:
        for _ in range(2):
            with pytest.raises(Unavailable, match="hung up"):
                client.find_endp("endpoint")


@pytest.mark.parametrize(
    "script",
    [
        saying(ANNOUNCEMENT, STATUS_REPLY[Status.BAD]),
        saying(ANNOUNCEMENT, HELLO_REPLY),
        saying(ANNOUNCEMENT, HELLO_REPLY, (HIT[:-1], 1)),
    ],
)
def test_server_that_dies_after_hello(path: Path, script: Script) -> None:
    """A server that hangs up after it was asked for inline mode is unavailable."""
    with serving(path, script), Client(path, timeout=DEADLINE) as client:
        for _ in range(2):
            with pytest.raises(Unavailable, match="hung up"):
                client.find_endp("endpoint")


def test_server_that_wants_no_last_dummy(path: Path) -> None:
    """A descriptor that was received is found, although the server hears no more of it."""

    def script(client: socket.socket) -> None:
        saying(ANNOUNCEMENT, HIT)(client)
        assert fdpass.receive(client)[0] == DUMMY
        client.shutdown(socket.SHUT_RD)
        saying((DESCRIPTOR_BYTE, 1))(client)

    with serving(path, script), Client(path, inline=False, timeout=DEADLINE) as client:
        for _ in range(2):
            found = client.find_endp("endpoint")
            assert found is not None
            found.close()


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
def test_server_that_makes_no_sense(path: Path, script: Script) -> None:
    """A reply that is none is a ProtocolError, and nothing of it is left behind."""
    with serving(path, script), Client(path, inline=False, timeout=DEADLINE) as client:
        for _ in range(2):
            with pytest.raises(ProtocolError):
                client.find_endp("endpoint")
            assert "not connected" in repr(client)


@pytest.mark.parametrize(
    "answers", [[], [ANNOUNCEMENT], [ANNOUNCEMENT, HIT[:-1]], [ANNOUNCEMENT, HIT]]
)
def test_server_that_hangs(path: Path, answers: list[bytes]) -> None:
    """A server that does not go on in time is unavailable."""

    def script(client: socket.socket) -> None:
        saying(*answers)(client)
        while fdpass.receive(client)[0]:
            pass

    with serving(path, script), Client(path, inline=False, timeout=0.1) as client:
        for _ in range(2):
            with pytest.raises(Unavailable, match=r"within 0\.1 seconds"):
                client.find_endp("endpoint")


def test_server_that_accepts_nobody(path: Path) -> None:
    """A server whose queue is full is unavailable when the timeout is over."""
    with socket.socket(socket.AF_UNIX) as listener, Client(path, timeout=0.1) as client:
        listener.bind(str(path))
        listener.listen(0)
        with Client(path, timeout=0.1) as first:
            for waiting in (first, client):
                with pytest.raises(Unavailable):
                    waiting.find_endp("endpoint")
