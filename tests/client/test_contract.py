"""One contract for every client, in both modes, with our server and with Postfix's scache(8).

The async client is asked through a face that blocks, so each fact is written once. Each kind of
client sends, receives and waits by itself: those facts are tested with each kind. Arguments,
exchanges and the protocol are the same code for all: those are tested with the blocking client,
and arguments with a client that never connects.

What a client does when things go wrong is in test_client_faults.py, and what an async one alone can
do in test_async_client.py.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest

from scache import Client, DescriptorLimit, ProtocolError
from tests.support.clients import Connect, Pair, expect_other_end, label
from tests.support.commands import run_python
from tests.support.daemon import Daemon
from tests.support.descriptors import descriptors_left
from tests.support.dialogue import DEADLINE
from tests.support.postfix_scache import PostfixScache


class Mode(NamedTuple):
    """A server, and whether the client asks it for inline mode."""

    server: Daemon | PostfixScache
    inline: bool


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Run our server."""
    with Daemon(tmp_path_factory.mktemp("client") / "socket") as daemon:
        yield daemon


@pytest.fixture(
    scope="module",
    params=["inline", "base", pytest.param("genuine", marks=pytest.mark.postfix)],
)
def mode(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mode]:
    """Run our server, or Postfix's scache(8), which is asked for the mode that it lacks."""
    if request.param == "genuine":
        with PostfixScache({"connection_cache_ttl_limit": "300s"}) as genuine:
            yield Mode(genuine, inline=True)
    else:
        with Daemon(tmp_path_factory.mktemp("mode") / "socket") as daemon:
            yield Mode(daemon, inline=request.param == "inline")


@pytest.fixture
def client(mode: Mode, connect: Connect) -> Client:
    """Make a client of each kind."""
    return connect(mode.server.path, inline=mode.inline, timeout=DEADLINE)


@pytest.fixture
def blocking(mode: Mode) -> Iterator[Client]:
    """Make a blocking client."""
    with Client(mode.server.path, inline=mode.inline, timeout=DEADLINE) as client:
        yield client


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
def test_exact_bytes(blocking: Client, pair: Pair, text: bytes) -> None:
    """Labels and properties are any bytes but NUL, and come back exact."""
    ours, theirs = pair
    assert blocking.save_dest(60, text, text, text)
    assert blocking.save_endp(60, text, text, theirs)
    found = blocking.find_dest(text)
    assert found is not None
    assert found.endpoint_properties == found.destination_properties == text
    expect_other_end(found, ours)


def test_text(blocking: Client, pair: Pair) -> None:
    """Text is sent as UTF-8, and names the same label as its bytes."""
    ours, theirs = pair
    endpoint = label() + " \u00e9\u4e16"
    assert blocking.save_endp(60, endpoint, "\u00e9", theirs)
    found = blocking.find_endp(endpoint.encode())
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


def test_none(daemon: Daemon, connect: Connect) -> None:
    """Nothing at all can be asked for, too."""
    client = connect(daemon.path)
    assert client.save_many([]) == client.find_many([]) == []
    assert client.save_dest_many([]) == client.find_dest_many([]) == []


class Owner:
    """Closes a descriptor when nobody needs it any more."""

    def __init__(self, sock: socket.socket) -> None:
        self._descriptor = sock.detach()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)


def test_many_from_generators(blocking: Client) -> None:
    """Many may come from a generator, and nobody else need keep what it gives."""
    peers, endpoint = [], label()

    def saves() -> Iterator[tuple[int, str, str, Owner]]:
        for number in range(5):
            ours, theirs = socket.socketpair()
            peers.append(ours)
            yield 60, endpoint, str(number), Owner(theirs)

    try:
        assert blocking.save_many(saves()) == [True] * 5
        assert blocking.save_dest_many((60, endpoint, "", endpoint) for _ in range(2)) == [True] * 2
        found = blocking.find_many(endpoint for _ in range(3))
        found += blocking.find_dest_many(endpoint for _ in range(2))
        for number, (one, ours) in enumerate(zip(found, peers, strict=True)):
            assert one is not None
            assert one.endpoint_properties == b"%d" % number
            expect_other_end(one, ours)
    finally:
        for ours in peers:
            ours.close()


def test_many_large_ones(blocking: Client) -> None:
    """Labels and properties may be so large that not two requests fit into one batch."""
    large = [(label() + " ").ljust(20_000, "x") for _ in range(8)]
    with open(os.devnull, "rb") as something:  # noqa: PTH123
        assert blocking.save_many([(60, each, each, something) for each in large]) == [True] * 8
    assert blocking.save_dest_many([(60, each, each, each) for each in large]) == [True] * 8
    for each, found in zip(large, blocking.find_dest_many(large), strict=True):
        assert found is not None
        found.close()
        assert found.endpoint_properties == found.destination_properties == each.encode()


def test_largest_properties(blocking: Client, pair: Pair) -> None:
    """What a find brings may be as large as two requests."""
    ours, theirs = pair
    endpoint, large = label(), b"x" * 65_000
    assert blocking.save_dest(60, endpoint, large, endpoint)
    assert blocking.save_endp(60, endpoint, large, theirs)
    found = blocking.find_dest(endpoint)
    assert found is not None
    assert found.endpoint_properties == found.destination_properties == large
    expect_other_end(found, ours)


# Who owns a descriptor


def test_owner_after_a_save(blocking: Client, pair: Pair) -> None:
    """The caller's descriptor stays open, in its mode, and the caller's to close."""
    _, theirs = pair
    theirs.setblocking(False)
    assert blocking.save_endp(60, label(), "", theirs)
    theirs.send(b"still mine")
    assert theirs.getblocking() is False
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


def test_owner_after_a_find(blocking: Client, pair: Pair) -> None:
    """What was found stays open when the client is closed, is close-on-exec, and one's own."""
    ours, theirs = pair
    endpoint = label()
    assert blocking.save_endp(60, endpoint, "", theirs)
    found = blocking.find_endp(endpoint)
    blocking.close()
    theirs.close()
    assert found is not None
    assert os.get_inheritable(found.descriptor) is False
    os.write(found.descriptor, b"mine")
    assert ours.recv(10) == b"mine"
    found.close()
    assert ours.recv(10) == b""


def test_what_is_no_socket(blocking: Client) -> None:
    """A pipe has no socket: asking for it is an OSError, and the pipe stays open."""
    endpoint = label()
    reading, writing = os.pipe()
    assert blocking.save_endp(60, endpoint, "", writing)
    os.close(writing)
    found = blocking.find_endp(endpoint)
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
        lambda client: client.save_endp(60, "a\0b", "", 0),
        lambda client: client.save_endp(60, "", b"\0", 0),
        lambda client: client.find_endp("\0"),
        lambda client: client.find_dest(b"\0"),
        lambda client: client.save_dest(60, "\0", "", ""),
        lambda client: client.save_dest(60, "", "\0", ""),
        lambda client: client.save_dest(60, "", "", "\0"),
    ],
)
def test_nul(request_: Callable[[Client], object]) -> None:
    """A NUL cannot be sent: that is a ValueError, before anything is sent."""
    with Client("/nowhere") as client, pytest.raises(ValueError, match="NUL"):
        request_(client)


def test_nul_among_many(blocking: Client, pair: Pair) -> None:
    """One NUL among many is found before any of them is sent."""
    ours, theirs = pair
    endpoint, fresh = label(), label()
    assert blocking.save_endp(60, endpoint, "", theirs)
    with pytest.raises(ValueError, match="NUL"):
        blocking.save_many([(60, fresh, "", theirs)] * 200 + [(60, "\0", "", theirs)])
    assert blocking.find_endp(fresh) is None
    with pytest.raises(ValueError, match="NUL"):
        blocking.find_many([endpoint] * 200 + ["\0"])
    expect_other_end(blocking.find_endp(endpoint), ours)
    assert blocking.find_endp(endpoint) is None


def test_closed_descriptor(client: Client, pair: Pair) -> None:
    """What is closed cannot be saved: that is an OSError, and the client can go on."""
    ours, theirs = pair
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    endpoint = label()
    for _ in range(2):
        with pytest.raises(OSError, match="descriptor") as raised:
            client.save_endp(60, endpoint, "", writing)
        assert raised.value.errno == errno.EBADF
        with pytest.raises(OSError, match="descriptor"):
            client.save_many([(60, endpoint, "", theirs)] * 2 + [(60, endpoint, "", writing)])
    fresh = label()
    assert client.save_endp(60, fresh, "", theirs)
    expect_other_end(client.find_endp(fresh), ours)
    theirs.close()
    with pytest.raises(OSError, match="descriptor"):
        client.save_endp(60, endpoint, "", theirs)


def test_find_many_at_the_descriptor_limit_loses_nothing(client: Client, pair: Pair) -> None:
    """What there is room for comes with the error, and the rest stays in the cache."""
    _, theirs = pair
    endpoint = label()
    numbers = [b"%d" % number for number in range(20)]
    assert all(client.save_many([(60, endpoint, number, theirs) for number in numbers]))
    with descriptors_left(5), pytest.raises(DescriptorLimit, match="ulimit -n") as caught:
        client.find_many([endpoint, "nothing", *[endpoint] * 19])
    assert caught.value.errno == errno.EMFILE
    assert not isinstance(caught.value, ProtocolError)
    found = [*caught.value.found, *client.find_many([endpoint] * 16)]
    assert found.pop(1) is None  # nothing
    assert found.pop() is None  # the 21st of 20
    assert [each and each.endpoint_properties for each in found] == numbers
    for each in found:
        assert each is not None
        each.close()


def test_find_at_the_descriptor_limit_loses_nothing(client: Client, pair: Pair) -> None:
    """It is not asked for, and the client stays connected."""
    ours, theirs = pair
    endpoint = label()
    assert client.save_endp(60, endpoint, "", theirs)
    with descriptors_left(0), pytest.raises(DescriptorLimit, match="ulimit -n"):
        client.find_endp(endpoint)
    assert " connected" in repr(client)
    with descriptors_left(1):
        expect_other_end(client.find_endp(endpoint), ours)


def test_longest_ttl(blocking: Client, pair: Pair) -> None:
    """A ttl that is longer than the wire can hold is as good as the longest."""
    ours, theirs = pair
    endpoint = label()
    assert blocking.save_endp(sys.maxsize, endpoint, "", theirs)
    expect_other_end(blocking.find_endp(endpoint), ours)
    assert blocking.save_dest(2**32 + 1, endpoint, "", endpoint)


def test_huge_label(mode: Mode, blocking: Client, pair: Pair) -> None:
    """A label above 64 KiB is refused, but by the genuine program; the client can go on."""
    ours, theirs = pair
    endpoint, huge = label(), label().ljust(1_000_000, "x")
    genuine = isinstance(mode.server, PostfixScache)
    with nullcontext() if genuine else pytest.raises(ProtocolError):
        assert blocking.save_endp(60, huge, "", theirs)
    with nullcontext() if genuine else pytest.raises(ProtocolError):
        expect_other_end(blocking.find_many([endpoint, huge, endpoint])[1], ours)
    assert blocking.save_endp(60, endpoint, "", theirs)
    expect_other_end(blocking.find_endp(endpoint), ours)


@pytest.mark.parametrize("ttl", [0, -5])
def test_bad_ttl(blocking: Client, pair: Pair, ttl: int) -> None:
    """A ttl below 1 is malformed: that is a ProtocolError, and the client can go on."""
    ours, theirs = pair
    endpoint = label()
    with pytest.raises(ProtocolError):
        blocking.save_endp(ttl, endpoint, "", theirs)
    with pytest.raises(ProtocolError):
        blocking.save_dest(ttl, endpoint, "", endpoint)
    assert blocking.find_endp(endpoint) is None
    assert blocking.save_endp(60, endpoint, "", theirs)
    expect_other_end(blocking.find_endp(endpoint), ours)


def test_ttl_that_is_no_integer() -> None:
    """A ttl is a whole number of seconds: anything else is a TypeError."""
    ttl: int = 1.5  # type: ignore[assignment]
    with Client("/nowhere") as client:
        for ask in (
            lambda: client.save_endp(ttl, "", "", 0),
            lambda: client.save_dest(ttl, "", "", ""),
            lambda: client.save_many([(60, "", "", 0), (ttl, "", "", 0)]),
            lambda: client.save_dest_many([(60, "", "", ""), (ttl, "", "", "")]),
        ):
            with pytest.raises(TypeError):
                ask()


def test_closed_client(client: Client) -> None:
    """A client that was closed connects again when it is asked for something."""
    assert "not connected" in repr(client)
    assert client.find_endp(label()) is None
    assert "not connected" not in repr(client)
    client.close()
    client.close()
    assert "not connected" in repr(client)
    assert client.find_endp(label()) is None


def test_server_without_announcement(tmp_path: Path, inline: bool, pair: Pair) -> None:
    """A client does without it, in both modes."""
    ours, theirs = pair
    database = tmp_path / "cache.db"
    with (
        Daemon(tmp_path / "socket", "--no-announce", database=database) as daemon,
        Client(daemon.path, inline=inline) as client,
    ):
        assert client.save_dest(60, "d", "", "e")
        assert client.save_endp(60, "e", "", theirs)
        expect_other_end(client.find_dest("d"), ours)


@pytest.mark.postfix
def test_genuine_program_that_is_asked_for_nothing_else(pair: Pair) -> None:
    """A client that does not want inline mode speaks to it as smtp(8) does."""
    ours, theirs = pair
    endpoint = label()
    with PostfixScache() as genuine, Client(genuine.path, inline=False) as client:
        assert client.save_endp(60, endpoint, "", theirs)
        expect_other_end(client.find_endp(endpoint), ours)


FORKING = """
import os, sys
import anyio
from scache import AsyncClient, Client
from tests.support.descriptors import sockets_of

path, kind, inline, pid = sys.argv[1], sys.argv[2], sys.argv[3] == "True", sys.argv[4]
if pid == "recycled":
    os.getpid = lambda: 1
client = (Client if kind == "blocking" else AsyncClient)(path, inline=inline)

def sockets():
    return set(sockets_of(int(os.readlink("/proc/self"))).values())

others = sockets()

def find():
    if kind == "blocking":
        assert client.find_endp("nothing") is None
    else:
        assert anyio.run(client.find_endp, "nothing", backend=kind) is None
    (connection,) = sockets() - others
    return connection

before = find()
child = os.fork()
assert (find() == before) is (child != 0)
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert find() == before
client.close()
"""


@pytest.mark.parametrize("pid", ["new", "recycled"])
def test_fork(daemon: Daemon, kind: str, inline: bool, pid: str) -> None:
    """A forked child has a conversation of its own, and leaves its parent's alone."""
    done = run_python(FORKING, daemon.path, kind, inline, pid)
    assert done.stderr == ""
    assert done.returncode == 0
