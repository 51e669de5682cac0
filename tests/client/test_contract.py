"""One contract for every client, in both modes, with our server and with Postfix's scache(8).

The async client is used through a blocking facade, so one test covers every kind of client. Each
kind has its own code to send, receive and wait, which is tested with each kind (`client`).
Arguments, exchanges and the protocol are the same code for all kinds. They are tested with the
blocking client (`blocking`), and arguments with a client that never connects.

Faults are in test_faults.py. Features of the async client alone are in test_async_client.py.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from scache import Client, DescriptorLimit, Found, ProtocolError
from scache.protocol.codec import MAX_MESSAGE_SIZE
from scache.protocol.messages import FindEndp, SaveEndp, encode_request
from tests.support.clients import Connect, Pair, expect_other_end, label
from tests.support.commands import run_python
from tests.support.daemon import Daemon
from tests.support.descriptors import descriptors_left
from tests.support.dialogue import DEADLINE
from tests.support.postfix_scache import PostfixScache


class Mode(NamedTuple):
    """A server, and the mode that the client requests."""

    server: Daemon | PostfixScache
    inline: bool


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Run our server."""
    with Daemon(tmp_path_factory.mktemp("client") / "socket") as daemon:
        yield daemon


@pytest.fixture(
    scope="module",
    params=["inline", "base", pytest.param("postfix", marks=pytest.mark.postfix)],
)
def mode(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mode]:
    """Run our server, or Postfix's scache(8), which refuses inline mode."""
    if request.param == "postfix":
        with PostfixScache({"connection_cache_ttl_limit": "300s"}) as postfix:
            yield Mode(postfix, inline=True)
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


def expect_exact_bytes(client: Client, pair: Pair, name: str | bytes, properties: bytes) -> None:
    """Save a binding and a connection; check that a find returns the exact properties of both."""
    ours, theirs = pair
    assert client.save_dest(60, name, properties, name)
    assert client.save_endp(60, name, properties, theirs)
    found = client.find_dest(name)
    assert found is not None
    assert found.endpoint_properties == found.destination_properties == properties
    expect_other_end(found, ours)


def expect_numbered(found: list[Found | None], peers: Iterable[socket.socket]) -> None:
    """Check that the n-th found connection has the n-th peer, and n as its properties."""
    for number, (one, ours) in enumerate(zip(found, peers, strict=True)):
        assert one is not None
        assert one.endpoint_properties == b"%d" % number
        expect_other_end(one, ours)


def test_find_endp_returns_a_saved_connection_once(client: Client, pair: Pair) -> None:
    """The finder becomes the only owner of the connection."""
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
    assert ours.recv(1) == b""  # no other copy is open


def test_find_dest_returns_a_connection_of_a_bound_endpoint(client: Client, pair: Pair) -> None:
    """The result has the properties of the binding and those of the endpoint."""
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
def test_labels_and_properties_are_exact_bytes(blocking: Client, pair: Pair, text: bytes) -> None:
    """They may hold any byte but NUL."""
    expect_exact_bytes(blocking, pair, text, text)


def test_find_returns_properties_as_large_as_two_requests(blocking: Client, pair: Pair) -> None:
    """The reply to a find_dest may be longer than any request."""
    expect_exact_bytes(blocking, pair, label(), b"x" * 65_000)


def test_text_is_sent_as_utf8(blocking: Client, pair: Pair) -> None:
    """A text and its UTF-8 bytes are the same label."""
    ours, theirs = pair
    endpoint = label() + " \u00e9\u4e16"
    assert blocking.save_endp(60, endpoint, "\u00e9", theirs)
    found = blocking.find_endp(endpoint.encode())
    assert found is not None
    assert found.endpoint_properties == "\u00e9".encode()
    expect_other_end(found, ours)


def test_many_requests_have_results_in_order(client: Client) -> None:
    """The result of each is that of a single request."""
    destination, endpoint = label(), label()
    pairs = [socket.socketpair() for _ in range(300)]
    try:
        assert client.save_dest_many([(60, destination, "", endpoint)] * 3) == [True] * 3
        saves = [(60, endpoint, str(n), theirs) for n, (_, theirs) in enumerate(pairs)]
        assert client.save_many(saves) == [True] * 300
        found = client.find_many([endpoint] * 200 + [label()])
        found += client.find_dest_many([destination] * 101)
        assert found.pop(200) is found.pop() is None
        expect_numbered(found, (ours for ours, _ in pairs))
    finally:
        for end in itertools.chain(*pairs):
            end.close()


def test_many_accepts_an_empty_list(daemon: Daemon, connect: Connect) -> None:
    """The result is empty, too."""
    client = connect(daemon.path)
    assert client.save_many([]) == client.find_many([]) == []
    assert client.save_dest_many([]) == client.find_dest_many([]) == []


class Owner:
    """An object that closes its descriptor when it is dropped."""

    def __init__(self, sock: socket.socket) -> None:
        self._descriptor = sock.detach()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)


def test_many_accepts_generators(blocking: Client) -> None:
    """Objects that only the generator holds are not closed before they are sent."""
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
        expect_numbered(found, peers)
    finally:
        for ours in peers:
            ours.close()


def test_many_accepts_requests_that_fill_a_batch_each(blocking: Client) -> None:
    """The labels and properties are so large that a batch has room for one request."""
    large = [(label() + " ").ljust(20_000, "x") for _ in range(8)]
    with open(os.devnull, "rb") as file:  # noqa: PTH123
        assert blocking.save_many([(60, each, each, file) for each in large]) == [True] * 8
    assert blocking.save_dest_many([(60, each, each, each) for each in large]) == [True] * 8
    for each, found in zip(large, blocking.find_dest_many(large), strict=True):
        assert found is not None
        found.close()
        assert found.endpoint_properties == found.destination_properties == each.encode()


# Ownership of descriptors


def test_save_leaves_the_descriptor_of_the_caller_alone(blocking: Client, pair: Pair) -> None:
    """It stays open, and its mode is not changed."""
    _, theirs = pair
    theirs.setblocking(False)
    assert blocking.save_endp(60, label(), "", theirs)
    theirs.send(b"still mine")
    assert theirs.getblocking() is False
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


def test_found_connection_belongs_to_the_finder(blocking: Client, pair: Pair) -> None:
    """Its descriptor is close-on-exec, and stays open when the client is closed."""
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


def test_found_pipe_stays_open_when_socket_fails(blocking: Client) -> None:
    """A pipe is not a socket, so `Found.socket` raises OSError."""
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


# Invalid arguments, and limits


def test_wrong_item_of_many_requests_prevents_all(client: Client, pair: Pair) -> None:
    """It is detected before any request is sent, in the second batch as well."""
    ours, theirs = pair
    endpoint, fresh = label(), label()
    with open(os.devnull, "rb") as file:  # noqa: PTH123
        closed = os.dup(file.fileno())
    os.close(closed)
    assert client.save_endp(60, endpoint, "", theirs)
    with pytest.raises(ValueError, match=r"^items\[200\]: endpoint must not contain a NUL"):
        client.save_many([(60, fresh, "", theirs)] * 200 + [(60, "\0", "", theirs)])
    with pytest.raises(OSError, match=r"items\[200\]: connection must be an open descriptor"):
        client.save_many([(60, fresh, "", theirs)] * 200 + [(60, fresh, "", closed)])
    assert client.find_endp(fresh) is None
    with pytest.raises(ValueError, match=r"^endpoints\[200\]: endpoint must not contain a NUL"):
        client.find_many([endpoint] * 200 + ["\0"])
    expect_other_end(client.find_endp(endpoint), ours)
    assert client.find_endp(endpoint) is None


def test_save_of_a_closed_descriptor_is_an_os_error(client: Client, pair: Pair) -> None:
    """The client can be used afterwards."""
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
    """The error has the connections that fit. The rest stays in the cache."""
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
    """Nothing is requested, and the client stays connected."""
    ours, theirs = pair
    endpoint = label()
    assert client.save_endp(60, endpoint, "", theirs)
    with descriptors_left(0), pytest.raises(DescriptorLimit, match="ulimit -n"):
        client.find_endp(endpoint)
    assert " connected" in repr(client)
    with descriptors_left(1):
        expect_other_end(client.find_endp(endpoint), ours)


def test_ttl_above_the_range_of_the_protocol_is_accepted(blocking: Client, pair: Pair) -> None:
    """The client lowers it to the largest value that the protocol can express."""
    ours, theirs = pair
    endpoint = label()
    assert blocking.save_endp(sys.maxsize, endpoint, "", theirs)
    expect_other_end(blocking.find_endp(endpoint), ours)
    assert blocking.save_dest(2**32 + 1, endpoint, "", endpoint)


def test_request_of_64_kib_is_accepted_and_a_longer_one_is_a_value_error(
    blocking: Client, pair: Pair
) -> None:
    """The limit is that of the daemon's setting `max_message_size`, for the whole request."""
    ours, theirs = pair
    endpoint = label()
    room = MAX_MESSAGE_SIZE - len(encode_request(SaveEndp(60, endpoint.encode(), b"")))
    assert blocking.save_endp(60, endpoint, "x" * room, theirs)
    with pytest.raises(ValueError, match=r"^properties is too long"):
        blocking.save_endp(60, endpoint, "x" * (room + 1), theirs)
    expect_other_end(blocking.find_endp(endpoint), ours)
    longest = "x" * (MAX_MESSAGE_SIZE - len(encode_request(FindEndp(b""))))
    assert blocking.find_endp(longest) is None
    with pytest.raises(ValueError, match=r"^endpoint is too long"):
        blocking.find_endp(longest + "x")


def test_request_above_the_limit_of_the_daemon_is_a_protocol_error(
    path: Path, connect: Connect, inline: bool
) -> None:
    """The client does not know a lower `max_message_size`; it can be used again."""
    with Daemon(path, "--max-message-size", "100"):
        client = connect(path, inline=inline)
        with pytest.raises(ProtocolError, match="max_message_size"):
            client.save_dest(60, "x" * 100, "", "")
        with pytest.raises(ProtocolError, match="max_message_size"):
            client.find_endp("x" * 100)
        assert client.save_dest(60, "x", "", "x")


def test_closed_client_connects_again_at_the_next_request(client: Client) -> None:
    """Closing it twice does no harm."""
    assert "not connected" in repr(client)
    assert client.find_endp(label()) is None
    assert "not connected" not in repr(client)
    client.close()
    client.close()
    assert "not connected" in repr(client)
    assert client.find_endp(label()) is None


def test_client_needs_no_announcement(tmp_path: Path, inline: bool, pair: Pair) -> None:
    """A server before Postfix 3.6 does not send one."""
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
def test_base_client_speaks_to_postfix_scache_as_smtp_does(pair: Pair) -> None:
    """It sends no hello."""
    ours, theirs = pair
    endpoint = label()
    with PostfixScache() as postfix, Client(postfix.path, inline=False) as client:
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

inherited = sockets()

def find():
    if kind == "blocking":
        assert client.find_endp("nothing") is None
    else:
        assert anyio.run(client.find_endp, "nothing", backend=kind) is None
    (connection,) = sockets() - inherited
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
def test_forked_child_opens_its_own_connection(
    daemon: Daemon, kind: str, inline: bool, pid: str
) -> None:
    """The connection of its parent stays open, even if the child has the pid of its parent."""
    done = run_python(FORKING, daemon.path, kind, inline, pid)
    assert done.stderr == ""
    assert done.returncode == 0
