"""The running daemon, as its clients see it: data model, wire, passing of descriptors."""

from __future__ import annotations

import itertools
import os
import resource
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from scache import Client
from scache.model import Status
from scache.protocol.messages import (
    ANNOUNCEMENT,
    DESCRIPTOR_BYTE,
    DUMMY,
    FindDest,
    FindEndp,
    SaveDest,
    SaveEndp,
    encode_reply,
    encode_request,
)
from tests.support.abort_points import (
    FIND_AFTER_DESCRIPTOR,
    FIND_BEFORE_DESCRIPTOR,
    SAVE_STOPS,
    Stop,
    after_half,
    after_reply,
    after_request,
    with_reply_unread,
)
from tests.support.daemon import Daemon
from tests.support.descriptors import descriptors_of
from tests.support.dialogue import (
    DEADLINE,
    MISS_DEST,
    MISS_ENDP,
    Dialogue,
    Hit,
    eventually,
)
from tests.support.snapshots import snapshot

OK, BAD, FAIL = map(encode_reply, Status)
_numbers = itertools.count()


CONNECTED = "03"
"""The state of a socket that is no listener (/proc/net/unix, St)."""


def client_count(daemon: Daemon) -> int:
    """Return how many clients the daemon has accepted and not let go of."""
    own = descriptors_of(daemon.pid).values()
    count = 0
    for line in Path(f"/proc/{daemon.pid}/net/unix").read_text().splitlines():
        match line.split(maxsplit=7)[5:]:
            case [state, inode, path] if state == CONNECTED and path == str(daemon.path):
                count += f"socket:[{inode}]" in own
    return count


class Bench:
    """A daemon, its clients, and the connections that they park."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.endpoints: list[bytes] = []
        self._stack = ExitStack()

    def client(self) -> Dialogue:
        """Return a new client, which hangs up at the end of the test."""
        return self._stack.enter_context(Dialogue(self.daemon.path))

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Return the two ends of a connection, closed at the end of the test."""
        ours, theirs = socket.socketpair()
        ours.settimeout(DEADLINE)
        return self._stack.enter_context(ours), self._stack.enter_context(theirs)

    def label(self, text: bytes = b"label") -> bytes:
        """Return a label that no other test uses."""
        self.endpoints.append(b"%b %d" % (text, next(_numbers)))
        return self.endpoints[-1]

    def park(
        self, client: Dialogue, endpoint: bytes, properties: bytes = b"", ttl: int = 60
    ) -> socket.socket:
        """Park one end of a connection, and return the other."""
        ours, theirs = self.pair()
        assert client.park(endpoint, theirs.fileno(), properties, ttl) is Status.OK
        theirs.close()
        return ours

    def own(self, descriptor: int) -> int:
        """Return the descriptor, which is closed at the end of the test."""
        self._stack.callback(os.close, descriptor)
        return descriptor

    def empty(self) -> None:
        """Take out all that the test has parked."""
        with Dialogue(self.daemon.path) as client:
            for endpoint in self.endpoints:
                while (hit := client.take_endp(endpoint)) is not None:
                    os.close(hit.descriptor)

    def close(self) -> None:
        """Let go of everything."""
        self._stack.close()


@pytest.fixture(scope="module", params=["memory", "file"])
def daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """Run a daemon for all tests of the module: on memory, then on a file."""
    directory = tmp_path_factory.mktemp("exchanges")
    database = directory / "cache.db" if request.param == "file" else ":memory:"
    with Daemon(directory / "socket", "--max-idle", "0", database=database) as running:
        yield running


@pytest.fixture(scope="module")
def baseline(daemon: Daemon) -> int:
    """Count the descriptors that the daemon holds for itself."""
    with closing(Bench(daemon)) as bench:
        bench.park(bench.client(), bench.label())  # whatever is opened once is open now
        bench.empty()
    eventually(lambda: client_count(daemon) == 0)
    return len(descriptors_of(daemon.pid))


@pytest.fixture
def bench(daemon: Daemon, baseline: int) -> Iterator[Bench]:
    """Serve a test, after which the daemon holds no descriptor but its own."""
    with closing(Bench(daemon)) as bench:
        yield bench
        bench.close()
        bench.empty()
    eventually(lambda: len(descriptors_of(daemon.pid)) == baseline)


def leads_to(hit: Hit | None, peer: socket.socket) -> bool:
    """Return whether what was found is the other end of this connection; close it."""
    assert hit is not None
    with socket.socket(fileno=hit.descriptor) as found:
        found.sendall(b"?")
        peer.setblocking(False)
        try:
            return peer.recv(2) == b"?"
        except BlockingIOError:
            return False
        finally:
            peer.settimeout(DEADLINE)


def expect_closed(peer: socket.socket) -> None:
    """Wait until nobody has the other end any more."""
    assert peer.recv(1) == b""


# What is cached


def test_oldest_first(bench: Bench) -> None:
    """A find takes the oldest connection of the endpoint out of the cache."""
    client, endpoint = bench.client(), bench.label()
    peers = [bench.park(client, endpoint, b"%d" % n) for n in range(3)]
    for number, peer in enumerate(peers):
        hit = client.take_endp(endpoint)
        assert leads_to(hit, peer)
        assert hit is not None
        assert hit.properties == (b"%d" % number,)
        expect_closed(peer)
    assert client.take_endp(endpoint) is None


def test_nothing_is_merged(bench: Bench) -> None:
    """Two connections with the same label and properties are two."""
    client, endpoint = bench.client(), bench.label()
    first, second = (bench.park(client, endpoint, b"same") for _ in range(2))
    assert leads_to(client.take_endp(endpoint), first)
    assert leads_to(client.take_endp(endpoint), second)


def test_endpoints_are_apart(bench: Bench) -> None:
    """A connection is found under its own endpoint only, and that is not a destination."""
    client, endpoint = bench.client(), bench.label()
    peer = bench.park(client, endpoint)
    for other in (b"", endpoint[:-1], endpoint + b" ", endpoint.upper()):
        assert client.take_endp(other) is None
    assert client.take_dest(endpoint) is None
    assert leads_to(client.take_endp(endpoint), peer)


def test_bindings_in_order(bench: Bench) -> None:
    """A destination takes the oldest connection of its first endpoint that has one."""
    client, destination = bench.client(), bench.label(b"destination")
    empty, first, second = (bench.label() for _ in range(3))
    late = bench.park(client, second, b"late")
    for number, endpoint in enumerate([empty, first, second]):
        assert client.bind(destination, endpoint, b"binding %d" % number) is Status.OK
    older, newer = (bench.park(client, first, b"early") for _ in range(2))
    for peer, properties in [
        (older, (b"binding 1", b"early")),
        (newer, (b"binding 1", b"early")),
        (late, (b"binding 2", b"late")),
    ]:
        hit = client.take_dest(destination)
        assert leads_to(hit, peer)
        assert hit is not None
        assert hit.properties == properties
    assert client.take_dest(destination) is None


@pytest.mark.slow
def test_bindings_and_connections_are_independent(bench: Bench) -> None:
    """A binding may precede its endpoint's connections, and outlives them."""
    client, destination, endpoint = bench.client(), bench.label(b"destination"), bench.label()
    assert client.bind(destination, endpoint) is Status.OK
    assert client.take_dest(destination) is None
    for find, label in ((client.take_dest, destination), (client.take_endp, endpoint)):
        peer = bench.park(client, endpoint)
        assert leads_to(find(label), peer)
    expect_closed(bench.park(client, endpoint, ttl=1))
    peer = bench.park(client, endpoint)
    assert leads_to(client.take_dest(destination), peer)


def test_refresh_keeps_its_place(bench: Bench) -> None:
    """A binding that is saved again stays where it was among the others."""
    client, destination = bench.client(), bench.label(b"destination")
    first, second = bench.label(), bench.label()
    for endpoint in (first, second, first, second, first):
        assert client.bind(destination, endpoint, b"properties") is Status.OK
    late, early = bench.park(client, second), bench.park(client, first)
    assert leads_to(client.take_dest(destination), early)
    assert leads_to(client.take_dest(destination), late)


@pytest.mark.slow
def test_refresh_may_shorten(bench: Bench) -> None:
    """A binding that is saved again has the new ttl, and one with other properties is another."""
    client, destination, endpoint = bench.client(), bench.label(b"destination"), bench.label()
    for properties, ttl in ((b"first", 60), (b"second", 60), (b"first", 3)):
        assert client.bind(destination, endpoint, properties, ttl) is Status.OK
    found = []
    for _ in range(2):
        bench.park(client, endpoint, b"connection")
        hit = client.take_dest(destination)
        assert hit is not None
        os.close(hit.descriptor)
        found.append(hit.properties)
        expect_closed(bench.park(client, bench.label(), ttl=3))  # by then three seconds are over
    assert found == [(b"first", b"connection"), (b"second", b"connection")]


@pytest.mark.slow
def test_ttl_limit(path: Path) -> None:
    """A ttl above the limit is lowered to it, and the answer is status 0."""
    with Daemon(path, "--ttl-limit", "1") as daemon, closing(Bench(daemon)) as bench:
        client = bench.client()
        assert client.bind(b"destination", b"endpoint", ttl=2**31 - 1) is Status.OK
        expect_closed(bench.park(client, b"endpoint", ttl=2**31 - 1))
        bench.park(client, b"endpoint")
        assert client.take_dest(b"destination") is None


# The wire


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (FindEndp(b"nothing"), MISS_ENDP),
        (FindDest(b"nothing"), MISS_DEST),
        (SaveDest(1, b"of test_replies", b"", b"nothing"), OK),
    ],
)
def test_replies(bench: Bench, request_: FindEndp | FindDest | SaveDest, reply: bytes) -> None:
    """A reply has its attributes and no other; those of a miss are empty."""
    client = bench.client()
    client.send(encode_request(request_))
    client.expect(reply)


def test_no_announcement(path: Path) -> None:
    """With --no-announce the daemon says nothing before it is asked."""
    with (
        Daemon(path, "--no-announce") as daemon,
        Dialogue(daemon.path, announced=False) as client,
    ):
        client.send(encode_request(FindEndp(b"")))
        client.expect(MISS_ENDP)


@pytest.mark.parametrize(
    "label", [b"", b"\n", b"line\nline\n", bytes(range(1, 256)), b"\xff\xfe", b"x" * 3000]
)
def test_any_bytes(bench: Bench, label: bytes) -> None:
    """Labels and properties are any bytes but NUL, empty ones included, and come back exact."""
    client = bench.client()
    assert client.bind(label, label, label) is Status.OK
    peer = bench.park(client, label, label)
    hit = client.take_dest(label)
    assert hit is not None
    assert hit.properties == (label, label)
    assert leads_to(hit, peer)


def save(label: bytes) -> bytes:
    """Return a request to save a connection."""
    return encode_request(SaveEndp(60, label, b""))


SaveWay = Callable[[Dialogue, bytes, list[int]], None]


def on_its_byte(client: Dialogue, label: bytes, descriptors: list[int]) -> None:
    """Send the descriptors where they belong."""
    client.send(save(label))
    client.expect(DUMMY)
    client.send(DESCRIPTOR_BYTE, descriptors)


def on_the_message(client: Dialogue, label: bytes, descriptors: list[int]) -> None:
    """Send the descriptors with the request, and no byte for them."""
    client.send(save(label), descriptors)
    client.expect(DUMMY)


def on_the_message_with_a_byte(client: Dialogue, label: bytes, descriptors: list[int]) -> None:
    """Send the descriptors with the request, and then the byte that should have carried them."""
    on_the_message(client, label, descriptors)
    client.send(DESCRIPTOR_BYTE)


def glued(client: Dialogue, label: bytes, descriptors: list[int]) -> None:
    """Send the request and the byte in one."""
    client.send(save(label) + DESCRIPTOR_BYTE, descriptors)
    client.expect(DUMMY)


def ahead(client: Dialogue, label: bytes, descriptors: list[int]) -> None:
    """Send the request, and the byte right behind it."""
    client.send(save(label))
    client.send(DESCRIPTOR_BYTE, descriptors)
    client.expect(DUMMY)


def on_another_byte(client: Dialogue, label: bytes, descriptors: list[int]) -> None:
    """Send the descriptors with a byte that is no NUL."""
    client.send(save(label))
    client.expect(DUMMY)
    client.send(b"x", descriptors)


def byte_by_byte(client: Dialogue, label: bytes, descriptors: list[int]) -> None:
    """Send each byte on its own."""
    for byte in save(label):
        client.send(bytes([byte]))
    client.expect(DUMMY)
    client.send(DESCRIPTOR_BYTE, descriptors)


SAVE_WAYS = [
    on_its_byte,
    on_the_message,
    on_the_message_with_a_byte,
    glued,
    ahead,
    on_another_byte,
    byte_by_byte,
]


@pytest.mark.parametrize("count", [1, 2, 3, 253])
@pytest.mark.parametrize("way", SAVE_WAYS)
def test_descriptor_of_a_save(bench: Bench, way: SaveWay, count: int) -> None:
    """The first descriptor is taken, the others are closed, however they come."""
    client, endpoint = bench.client(), bench.label()
    taken, surplus = bench.pair(), bench.pair()
    way(client, endpoint, [taken[1].fileno(), *[surplus[1].fileno()] * (count - 1)])
    assert client.status() is Status.OK
    taken[1].close()
    surplus[1].close()
    expect_closed(surplus[0])
    assert leads_to(client.take_endp(endpoint), taken[0])


@pytest.mark.parametrize("way", [on_its_byte, glued, ahead, on_another_byte, byte_by_byte])
def test_missing_descriptor(bench: Bench, way: SaveWay) -> None:
    """A save without a descriptor gets status 2, and the conversation goes on."""
    client, endpoint = bench.client(), bench.label()
    way(client, endpoint, [])
    assert client.status() is Status.FAIL
    assert client.take_endp(endpoint) is None
    peer = bench.park(client, endpoint)
    assert leads_to(client.take_endp(endpoint), peer)


def test_late_descriptor(bench: Bench) -> None:
    """A descriptor that comes after its save was refused is closed, and serves nobody."""
    client, endpoint = bench.client(), bench.label()
    on_its_byte(client, endpoint, [])
    assert client.status() is Status.FAIL
    late = bench.pair()
    client.send(encode_request(FindEndp(endpoint)), [late[1].fileno()])
    late[1].close()
    client.expect(MISS_ENDP)
    expect_closed(late[0])
    on_its_byte(client, endpoint, [])
    assert client.status() is Status.FAIL


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_descriptor_that_nobody_asked_for(bench: Bench, count: int) -> None:
    """A descriptor that comes with other requests is closed while its client stays."""
    client, endpoint = bench.client(), bench.label()
    surplus = bench.pair()
    client.send(encode_request(FindEndp(endpoint)) * count, [surplus[1].fileno()])
    surplus[1].close()
    client.expect(MISS_ENDP * count)
    expect_closed(surplus[0])


def test_find_a_byte_at_a_time(bench: Bench) -> None:
    """A find that hits is served when each of its bytes comes alone."""
    client, endpoint = bench.client(), bench.label()
    peer = bench.park(client, endpoint, b"properties")
    for byte in encode_request(FindEndp(endpoint)):
        client.send(bytes([byte]))
    client.expect(encode_reply(Status.OK, b"properties"))
    for byte in DUMMY:
        client.send(bytes([byte]))
    descriptor = client.receive_descriptor()
    for byte in DUMMY:
        client.send(bytes([byte]))
    assert leads_to(Hit((), descriptor), peer)
    assert client.take_endp(endpoint) is None


def test_glued_dummy(bench: Bench) -> None:
    """The last dummy may come glued to the next request, which is served."""
    client, endpoint = bench.client(), bench.label()
    peer = bench.park(client, endpoint)
    client.send(encode_request(FindEndp(endpoint)))
    client.expect(encode_reply(Status.OK, b""))
    client.send(DUMMY)
    descriptor = client.receive_descriptor()
    client.send(DUMMY + encode_request(FindEndp(endpoint)))
    client.expect(MISS_ENDP)
    assert leads_to(Hit((), descriptor), peer)
    expect_closed(peer)


def test_pipelined_requests(bench: Bench) -> None:
    """Requests sent without waiting for replies are all served, in order."""
    client, endpoint, destination = bench.client(), bench.label(), bench.label(b"destination")
    peers = [bench.pair() for _ in range(3)]
    bind = encode_request(SaveDest(60, destination, b"binding", endpoint))
    client.send(bind + save(endpoint) * 3 + bind, [theirs.fileno() for _, theirs in peers])
    client.expect(OK + (DUMMY + OK) * 3 + OK)
    requests: list[FindEndp | FindDest] = [FindDest(destination), *[FindEndp(endpoint)] * 3]
    client.send(b"".join(map(encode_request, requests)))
    for request, (ours, theirs) in zip(requests, peers, strict=False):
        theirs.close()
        assert leads_to(client.go_on(request), ours)
    assert client.go_on(requests[-1]) is None


def test_pipelined_hits_with_their_dummies(bench: Bench) -> None:
    """The dummies of hits may be sent ahead too."""
    client, endpoint = bench.client(), bench.label()
    peers = [bench.park(client, endpoint) for _ in range(3)]
    client.send((encode_request(FindEndp(endpoint)) + DUMMY + DUMMY) * 3)
    for peer in peers:
        client.expect(encode_reply(Status.OK, b""))
        assert leads_to(Hit((), client.receive_descriptor()), peer)


def test_many_pipelined_requests(bench: Bench) -> None:
    """A thousand requests sent ahead get a thousand replies."""
    client, endpoint = bench.client(), bench.label()
    client.send(encode_request(FindEndp(endpoint)) * 1000)
    client.expect(MISS_ENDP * 1000)


SAVE_ENDP_REST = b"label\0e\0property\0p\0\0"
SAVE_DEST_REST = b"label\0d\0property\0p\0label\0e\0\0"
BAD_FIND_ENDP = encode_reply(Status.BAD, b"")
BAD_FIND_DEST = encode_reply(Status.BAD, b"", b"")


@pytest.mark.parametrize(
    ("message", "reply"),
    [
        *(
            (b"request\0save_endp\0ttl\0" + ttl + b"\0" + SAVE_ENDP_REST, BAD)
            for ttl in (b"0", b"-5", b"abc", b"")
        ),
        *(
            (b"request\0save_dest\0ttl\0" + ttl + b"\0" + SAVE_DEST_REST, BAD)
            for ttl in (b"0", b"-5", b"abc", b"")
        ),
        (b"request\0save_endp\0\0", BAD),
        (b"request\0save_endp\0" + SAVE_ENDP_REST, BAD),
        (b"request\0save_dest\0ttl\0005\0label\0d\0\0", BAD),
        (b"request\0find_endp\0\0", BAD_FIND_ENDP),
        (b"request\0find_endp\0property\0e\0\0", BAD_FIND_ENDP),
        (b"request\0find_dest\0\0", BAD_FIND_DEST),
        (b"request\0find_dest\0property\0d\0\0", BAD_FIND_DEST),
        (b"request\0nonsense\0label\0e\0\0", BAD),
        (b"request\0\0\0", BAD),
        (b"name\0value\0\0", b""),
        (b"label\0e\0ttl\0005\0\0", b""),
        (b"\0", b""),
        (DUMMY, b""),
        (encode_request(FindEndp(b"x" * 65536)), BAD_FIND_ENDP),
        (encode_request(FindDest(b"x" * 200_000)), BAD_FIND_DEST),
        (encode_request(SaveEndp(60, b"e", b"x" * 65536)), BAD),
        (b"x" * 200_000 + b"\0", b""),
    ],
)
@pytest.mark.parametrize("descriptors", [0, 2])
def test_malformed(bench: Bench, message: bytes, reply: bytes, descriptors: int) -> None:
    """A malformed request gets its reply, or none, and the conversation goes on."""
    client, endpoint = bench.client(), bench.label()
    surplus = bench.pair()
    client.send(message, [surplus[1].fileno()] * descriptors)
    surplus[1].close()
    client.expect(reply)
    assert client.take_endp(endpoint) is None
    expect_closed(surplus[0])
    peer = bench.park(client, endpoint)
    assert leads_to(client.take_endp(endpoint), peer)


@pytest.mark.parametrize("ttl", [b" 7", b"+7"])
def test_ttl_spelled_otherwise(bench: Bench, ttl: bytes) -> None:
    """A blank or a plus before the ttl is accepted."""
    client = bench.client()
    client.send(b"request\0save_dest\0ttl\0" + ttl + b"\0" + SAVE_DEST_REST)
    client.expect(OK)


def test_largest_message(bench: Bench) -> None:
    """A message of 64 KiB, and not a byte more, is served."""
    client, endpoint = bench.client(), bench.label()
    room = 65536 - len(encode_request(SaveEndp(60, endpoint, b"")))
    peer = bench.park(client, endpoint, b"x" * room)
    client.send(encode_request(SaveEndp(60, endpoint, b"x" * (room + 1))))
    client.expect(BAD)
    hit = client.take_endp(endpoint)
    assert hit is not None
    assert hit.properties == (b"x" * room,)
    assert leads_to(hit, peer)


# Refusals


def test_locked_database(path: Path, tmp_path: Path) -> None:
    """While the database is locked all is answered "no" at once; then all is as it was."""
    database = tmp_path / "cache.db"
    with Daemon(path, database=database) as daemon, closing(Bench(daemon)) as bench:
        client = bench.client()
        peer = bench.park(client, b"endpoint")
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            refused = bench.pair()
            assert client.park(b"endpoint", refused[1].fileno()) is Status.FAIL
            refused[1].close()
            expect_closed(refused[0])
            assert client.bind(b"destination", b"endpoint") is Status.FAIL
            assert client.take_endp(b"endpoint") is None
            assert client.take_dest(b"destination") is None
            other.execute("ROLLBACK")
        eventually(lambda: client.bind(b"destination", b"endpoint") is Status.OK)
        assert leads_to(client.take_dest(b"destination"), peer)
        assert client.take_endp(b"endpoint") is None


def test_out_of_descriptors(path: Path) -> None:
    """At its limit of descriptors the daemon answers status 2, and goes on when it has room."""
    with Daemon(path) as daemon, closing(Bench(daemon)) as bench:
        client = bench.client()
        peer = bench.park(client, b"endpoint")
        soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        highest = max(descriptors_of(daemon.pid))
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (highest + 1, hard))
        refused = bench.pair()
        for _ in range(highest + 1):
            if client.park(b"surplus", refused[1].fileno()) is not Status.OK:
                break
        else:
            pytest.fail("no save was refused")
        assert client.take_dest(b"destination") is None
        held = len(descriptors_of(daemon.pid))
        for way in (on_its_byte, on_the_message_with_a_byte, glued, ahead, byte_by_byte):
            way(client, b"surplus", [refused[1].fileno()] * 3)
            assert client.status() is Status.FAIL
        assert len(descriptors_of(daemon.pid)) == held
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.settimeout(DEADLINE)
            waiting.connect(str(daemon.path))
            assert leads_to(client.take_endp(b"endpoint"), peer)
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (soft, hard))
            assert waiting.recv(len(ANNOUNCEMENT)) == ANNOUNCEMENT
        peer = bench.park(client, b"endpoint")
        assert leads_to(client.take_endp(b"endpoint"), peer)
        daemon.wait_for_log("out of descriptors")


# Descriptors


def test_close_on_exec(bench: Bench) -> None:
    """Every descriptor that the daemon holds is close-on-exec, but for the three of the shell."""
    client = bench.client()
    bench.park(client, bench.label())
    on_its_byte(client, bench.label(), [bench.pair()[1].fileno()] * 2)
    assert client.status() is Status.OK
    for number, what in descriptors_of(bench.daemon.pid).items():
        if number > 2:
            info = Path(f"/proc/{bench.daemon.pid}/fdinfo/{number}").read_text()
            flags = int(info.split("flags:")[1].split()[0], 8)
            assert flags & os.O_CLOEXEC, what


@pytest.mark.parametrize("blocking", [True, False])
def test_mode_is_left_alone(bench: Bench, blocking: bool) -> None:
    """A parked connection stays blocking, or non-blocking, as its last user left it."""
    client, endpoint = bench.client(), bench.label()
    _, theirs = bench.pair()
    theirs.setblocking(blocking)
    assert client.park(endpoint, theirs.fileno()) is Status.OK
    assert os.get_blocking(theirs.fileno()) is blocking
    hit = client.take_endp(endpoint)
    assert hit is not None
    assert os.get_blocking(bench.own(hit.descriptor)) is blocking


def tcp_connection() -> tuple[int, int]:
    """Return the ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        end = socket.create_connection(server.getsockname())
        return end.detach(), server.accept()[0].detach()


def unix_pair() -> tuple[int, int]:
    """Return the ends of a UNIX connection."""
    one, other = socket.socketpair()
    return one.detach(), other.detach()


def udp_pair() -> tuple[int, int]:
    """Return the ends of a UNIX datagram connection."""
    one, other = socket.socketpair(type=socket.SOCK_DGRAM)
    return one.detach(), other.detach()


def file_twice() -> tuple[int, int]:
    """Return a file, twice over."""
    descriptor = os.memfd_create("parked")
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY), descriptor


@pytest.mark.parametrize("kind", [tcp_connection, unix_pair, udp_pair, os.pipe, file_twice])
def test_any_descriptor(bench: Bench, kind: Callable[[], tuple[int, int]]) -> None:
    """Sockets of all families, pipes and files can be parked, and come back as they were."""
    client, endpoint = bench.client(), bench.label()
    ours, theirs = kind()
    bench.own(ours)
    before = os.fstat(theirs)
    assert client.park(endpoint, theirs) is Status.OK
    os.close(theirs)
    hit = client.take_endp(endpoint)
    assert hit is not None
    bench.own(hit.descriptor)
    after = os.fstat(hit.descriptor)
    assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)
    os.write(hit.descriptor, b"still there")
    assert os.read(ours, 100) == b"still there"


# Clients that vanish


def vanish(bench: Bench, stop: Stop, request: bytes) -> None:
    """Let a client make this request, stop half-way and hang up; wait until the daemon knows."""
    clients = client_count(bench.daemon)
    with Dialogue(bench.daemon.path) as client:
        stop(client, request)
    eventually(lambda: client_count(bench.daemon) == clients)


@pytest.fixture(params=[FindEndp, FindDest])
def find(bench: Bench, request: pytest.FixtureRequest) -> FindEndp | FindDest:
    """Make a find of either kind, for an endpoint of its own."""
    endpoint, destination = bench.label(), bench.label(b"destination")
    if request.param is FindEndp:
        return FindEndp(endpoint)
    assert bench.client().bind(destination, endpoint) is Status.OK
    return FindDest(destination)


@pytest.mark.parametrize("stop", FIND_BEFORE_DESCRIPTOR)
def test_gone_before_the_descriptor(bench: Bench, find: FindEndp | FindDest, stop: Stop) -> None:
    """A connection that was found and never sent goes back to its place."""
    client, endpoint = bench.client(), bench.endpoints[0]
    peers = [bench.park(client, endpoint) for _ in range(2)]
    vanish(bench, stop, encode_request(find))
    for peer in peers:
        assert leads_to(client.take(find), peer)


@pytest.mark.parametrize("stop", FIND_AFTER_DESCRIPTOR)
def test_gone_after_the_descriptor(bench: Bench, find: FindEndp | FindDest, stop: Stop) -> None:
    """A connection that was sent is the client's, and goes with it."""
    client, endpoint = bench.client(), bench.endpoints[0]
    sent, kept = (bench.park(client, endpoint) for _ in range(2))
    vanish(bench, stop, encode_request(find))
    expect_closed(sent)
    assert leads_to(client.take(find), kept)
    assert client.take(find) is None


def test_gone_with_several_hits_ahead(bench: Bench) -> None:
    """Finds that were sent ahead and never answered take nothing out of the cache."""
    client, endpoint = bench.client(), bench.label()
    peers = [bench.park(client, endpoint) for _ in range(3)]
    vanish(bench, with_reply_unread, encode_request(FindEndp(endpoint)) * 3)
    for peer in peers:
        assert leads_to(client.take_endp(endpoint), peer)


@pytest.mark.slow
def test_remaining_ttl(bench: Bench) -> None:
    """A connection that goes back has the time that it had left, and no more."""
    client, endpoint = bench.client(), bench.label()
    peer = bench.park(client, endpoint, ttl=8)
    expect_closed(bench.park(client, endpoint, ttl=1))
    vanish(bench, after_reply, encode_request(FindEndp(endpoint)))
    with Client(bench.daemon.path) as looking:
        of_it = f"WHERE endpoint = '{endpoint.decode()}'"
        put_back = f"SELECT count(*) FROM event {of_it} AND kind = 'put_back'"
        assert snapshot(looking, put_back) == [(1,)]
        lifetime = f"SELECT expires_at - saved_at FROM connection {of_it}"
        assert snapshot(looking, lifetime) == [(pytest.approx(8),)]
    expect_closed(peer)


@pytest.mark.parametrize("size", [1, 20, -1])
def test_gone_in_a_save_with_its_descriptor(bench: Bench, size: int) -> None:
    """The descriptor of a save that was never whole is closed."""
    endpoint = bench.label()
    ours, theirs = bench.pair()
    vanish(bench, lambda client, data: client.send(data[:size], [theirs.fileno()]), save(endpoint))
    theirs.close()
    expect_closed(ours)
    assert bench.client().take_endp(endpoint) is None


@pytest.mark.parametrize("stop", SAVE_STOPS)
def test_gone_before_the_descriptor_of_a_save(bench: Bench, stop: Stop) -> None:
    """A save whose client never sent the descriptor comes to nothing."""
    endpoint = bench.label()
    vanish(bench, stop, save(endpoint))
    assert bench.client().take_endp(endpoint) is None


@pytest.mark.parametrize("way", SAVE_WAYS)
def test_gone_before_the_status_of_a_save(bench: Bench, way: SaveWay) -> None:
    """A save whose client sent all and read no status is done."""
    endpoint = bench.label()
    ours, theirs = bench.pair()
    vanish(bench, lambda client, _: way(client, endpoint, [theirs.fileno()]), b"")
    theirs.close()
    assert leads_to(bench.client().take_endp(endpoint), ours)


@pytest.mark.parametrize(
    ("stop", "bound"),
    [(after_half, False), (after_request, True), (with_reply_unread, True), (after_reply, True)],
)
def test_gone_in_a_save_dest(bench: Bench, stop: Stop, bound: bool) -> None:
    """A binding is saved if its request was whole, whether or not the reply was read."""
    client, endpoint, destination = bench.client(), bench.label(), bench.label(b"destination")
    vanish(bench, stop, encode_request(SaveDest(60, destination, b"", endpoint)))
    peer = bench.park(client, endpoint)
    if bound:
        assert leads_to(client.take_dest(destination), peer)
    else:
        assert client.take_dest(destination) is None
