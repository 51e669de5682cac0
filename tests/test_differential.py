"""The genuine scache(8) and ours, side by side: whatever is asked, the answers are the same."""

from __future__ import annotations

import fcntl
import os
import re
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import cycle
from pathlib import Path
from random import Random
from typing import NamedTuple, Self

import pytest

from tests.support.daemon import Daemon
from tests.support.genuine import GenuineScache, private_directory
from tests.support.wire import DESCRIPTOR_BYTE, DUMMY, Wire, encode, message_length

SEEDS = range(5)
STEPS = 1_000
"""For each seed and each kind of database: 10,000 in all."""

TTL_LIMIT = 100_000
"""Seconds: nothing expires while a test runs."""

TTLS = (b"1000", b"2000000", b"2147483647", b" 7000", b"+7000", b"007000", b"4294974296")
"""What both accept; modulo 2**32, as the genuine program has it, the last one is 7,000."""

BAD_TTLS = (
    *(b"", b" ", b"0", b"-5", b"-1", b"abc", b"7 ", b"7\n", b"0x10", b"1.5", b"1_0", b"+-7"),
    *(b"- 7", b"\xa07", b"request", b"2147483648", b"4294967295", b"4294967296"),
    *(b"18446744073709551615", b"18446744073709551616", b"99999999999999999999999"),
)

ODD_TTLS = (
    *(b" 7", b"\t7", b"\n7", b"+7", b"07", b"0" * 3000 + b"7", b"99999999999", b"4294967297"),
    *(b"4294967301", b"-4294967290", b"-18446744073709551615"),
)
"""Accepted too, but some are over in seconds."""

LABELS = (b"", b"plain", b"two\nlines\n", b"\xff\xfe\x80", b"request", b"x" * 3000, b"label")
DESTINATIONS = (b"", b"plain", b"request", b"y" * 3000)
PROPERTIES = (b"", b"plain", b"a\nb\n", b"\xc3\x28", b"request", b"z" * 3000)
SHORT = (b"", b"request", b"label", b"\xff", b"find_endp")
NEVER = b"never saved"

OK, BAD, FAILED = (encode([(b"status", status)]) for status in (b"0", b"1", b"2"))
MISS_OF_ENDPOINT = encode([(b"status", b"2"), (b"property", b"")])
MISS_OF_DESTINATION = encode([(b"status", b"2"), (b"property", b""), (b"property", b"")])

Attributes = tuple[tuple[bytes, bytes], ...]

EXTRAS = (
    (b"extra", b""),
    (b"extra", b"v"),
    (b"extra", b"request"),
    (b"request", b"v"),
    (b"request", b"find_endp"),
    (b"label", b"request"),
)

NO_REQUESTS = (
    b"\0",
    b"\0" * 7,
    DUMMY,
    encode([(b"ttl", b"5"), (b"label", b"x")]),
    encode([(b"Request", b"find_endp"), (b"label", b"x")]),
    encode([(b"a", b"request"), (b"b", b"c")]),
    encode([(b"a" * 5000, b"b" * 5000)]),
)


def save_endp(label: bytes, prop: bytes, ttl: bytes = b"1000") -> Attributes:
    """Return the request that comes before a descriptor."""
    return (b"request", b"save_endp"), (b"ttl", ttl), (b"label", label), (b"property", prop)


def save_dest(label: bytes, prop: bytes, endpoint: bytes, ttl: bytes = b"1000") -> Attributes:
    """Return the request that binds an endpoint to a destination."""
    request = ((b"request", b"save_dest"), (b"ttl", ttl))
    return *request, (b"label", label), (b"property", prop), (b"label", endpoint)


def find_endp(label: bytes) -> Attributes:
    """Return the request for a connection of this endpoint."""
    return (b"request", b"find_endp"), (b"label", label)


def find_dest(label: bytes) -> Attributes:
    """Return the request for a connection to this destination."""
    return (b"request", b"find_dest"), (b"label", label)


class Step(NamedTuple):
    """What a client sends, and how it behaves in the exchange that follows."""

    pieces: tuple[bytes, ...]
    """Sent one after the other."""

    answer: bytes = DESCRIPTOR_BYTE
    """What it sends when it is asked for a descriptor,"""

    with_descriptor: bool = True
    """and whether that carries one."""

    glued: bool = False
    """Whether its last dummy waits for the next request, to go with it."""


SENTINEL = Step((encode(find_endp(NEVER)),))
"""Its reply is known: what comes before that one is the reply to what came before this."""


def spoil(request: Attributes) -> Iterator[bytes]:
    """Return every message that is this request with one thing wrong with it."""
    for at, (name, value) in enumerate(request):
        before, after = request[:at], request[at + 1 :]
        yield encode(before)
        yield encode(before + after)
        yield encode((*before, (name, value), (name, value), *after))
        yield encode((*before, (b"wrong", value), *after))
        yield encode((*before, *after, (name, value)))
        if name == b"ttl":
            for ttl in BAD_TTLS:
                yield encode((*before, (name, ttl), *after))
        if name == b"request":
            for other in (b"", b"unknown", b"request", value.upper(), value + b" "):
                yield encode(((name, other), *after))
    for at in range(len(request) + 1):
        for extra in EXTRAS:
            yield encode((*request[:at], extra, *request[at:]))


def random_steps(random: Random, count: int) -> Iterator[Step]:
    """Return requests, good and bad, that fill a cache and use it.

    What is bad is followed by the sentinel.
    """
    made = 0
    while made < count:
        if random.random() < 0.25:
            yield Step((_random_bad(random),))
            yield SENTINEL
            made += 2
        else:
            yield _random_good(random)
            made += 1


def _random_good(random: Random) -> Step:
    request = random.choices(
        (
            save_endp(*map(random.choice, (LABELS, PROPERTIES, TTLS))),
            save_dest(*map(random.choice, (DESTINATIONS, PROPERTIES, LABELS, TTLS))),
            find_endp(random.choice(LABELS)),
            find_dest(random.choice(DESTINATIONS)),
        ),
        (40, 15, 20, 25),
    )[0]
    pieces: tuple[bytes, ...] = (encode(request),)
    if random.random() < 0.2:
        (whole,) = pieces
        cuts = sorted(random.choices(range(len(whole) + 1), k=random.randrange(1, 30)))
        pieces = tuple(whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True))
    return Step(
        pieces,
        answer=b"x" if random.random() < 0.1 else DESCRIPTOR_BYTE,
        with_descriptor=random.random() < 0.9,
        glued=random.random() < 0.4,
    )


def _random_bad(random: Random) -> bytes:
    one, two, three = random.choices(SHORT, k=3)
    requests = (
        *(save_endp(one, two), save_dest(one, two, three)),
        *(find_endp(NEVER), find_dest(NEVER)),
    )
    return random.choice([*spoil(random.choice(requests)), *NO_REQUESTS])


Identity = tuple[int, int, int]
"""What tells one open file from all others: device, inode, and which end of a pipe it is."""


def identity_of(descriptor: int) -> Identity:
    """Return what stays the same when a descriptor is passed on."""
    status = os.fstat(descriptor)
    access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    return status.st_dev, status.st_ino, access


class Outcome(NamedTuple):
    """What a server made of a step."""

    said: bytes
    found: tuple[Identity, ...]


class Server:
    """One of the two servers, and a client of it.

    A second client tells when the first has been served: its own request, sent
    afterwards, has been answered. Twice, as a server that waits for several
    clients may learn of the two at the same time and begin with the wrong one.
    """

    _ASKED_BY_OTHER = encode(save_dest(b"other", b"", b"other"))

    def __init__(self, path: Path, timeout: float = 10) -> None:
        self._timeout = timeout
        with ExitStack() as cleanup:
            self.client = cleanup.enter_context(Wire(path, timeout))
            self._other = cleanup.enter_context(Wire(path, timeout))
            self.greetings = self.client.announcement(), self._other.announcement()
            self._cleanup = cleanup.pop_all()
        self._owed = b""
        self._other_waits = False
        self._unread = b""
        self._descriptor_due = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def play(self, step: Step, descriptor: int | None) -> Outcome:
        """Do a step, up to the point where the server waits for the next one.

        If it asks for a descriptor, it gets this one.
        """
        owed, self._owed = self._owed, b""
        for piece in (owed + step.pieces[0], *step.pieces[1:]):
            self.client.send(piece)
        said = b""
        found: list[Identity] = []
        served = -1 if self._other_waits else 0
        while (served < 2 or self._ready(0)) and not self._owed:
            if not self._other_waits:
                self._other.send(self._ASKED_BY_OTHER)
                self._other_waits = True
            ready = self._ready(self._timeout)
            assert ready, f"no answer, having said {said!r}"
            if self.client not in ready:
                assert self._other.receive_message_bytes() == OK
                self._other_waits = False
                served += 1
                continue
            data, descriptors = self.client.receive_raw()
            assert data, f"hung up, having said {said!r}"
            said += data
            for each in descriptors:
                found.append(identity_of(each))
                os.close(each)
            if self._respond(data, step, descriptor):
                served = -1
        return Outcome(said, tuple(found))

    def _ready(self, timeout: float) -> list[Wire]:
        return select.select([self.client, self._other], [], [], timeout)[0]

    def _respond(self, data: bytes, step: Step, descriptor: int | None) -> bool:
        """Do the client's part of an exchange; return whether there was one to do."""
        self._unread += data
        responded = False
        while self._unread:
            length = 1 if self._descriptor_due else message_length(self._unread)
            if length is None:
                break
            message, self._unread = self._unread[:length], self._unread[length:]
            if self._descriptor_due:
                self._descriptor_due = False
                if step.glued:
                    self._owed = DUMMY
                else:
                    self.client.send(DUMMY)
            elif message == DUMMY:
                self.client.send(step.answer, [] if descriptor is None else [descriptor])
            elif message.startswith(b"status\x000\0property\0"):
                self.client.send(DUMMY)
                self._descriptor_due = True
            else:
                continue
            responded = True
        return responded


class Pair:
    """The genuine server and ours, asked the same things."""

    def __init__(self, genuine: Server, ours: Server) -> None:
        assert ours.greetings == genuine.greetings
        self._genuine = genuine
        self._ours = ours
        self._kinds = cycle(("file", "socket", "reading", "writing"))
        self._peers: dict[Identity, int] = {}

    def close(self) -> None:
        """Let go of the other ends."""
        for peer in self._peers.values():
            os.close(peer)
        self._peers.clear()

    def check(self, step: Step) -> Outcome:
        """Do a step with both and compare; return what both made of it.

        Both are handed the same descriptor, if they ask for one.
        """
        with self._something_to_save(step) as descriptor:
            expected = self._genuine.play(step, descriptor)
            outcome = self._ours.play(step, descriptor)
        assert outcome == expected, f"{step}: {expected} became {outcome}"
        for identity in outcome.found:
            if identity in self._peers:
                os.close(self._peers.pop(identity))
        return outcome

    def check_what_is_left(self) -> None:
        """Take all that both still have, in the order in which they give it."""
        for label in sorted({*LABELS, *SHORT}):
            while self.check(Step((encode(find_endp(label)),))).found:
                pass

    @contextmanager
    def _something_to_save(self, step: Step) -> Iterator[int | None]:
        """Open something, one end of it; the other end stays open until it is found."""
        if not step.with_descriptor or b"save_endp" not in b"".join(step.pieces):
            yield None
            return
        kind = next(self._kinds)
        if kind == "file":
            descriptor = os.memfd_create("something")
        else:
            if kind == "socket":
                one, other = socket.socketpair()
                descriptor, peer = one.detach(), other.detach()
            else:
                descriptor, peer = os.pipe() if kind == "reading" else reversed(os.pipe())
            self._peers[identity_of(descriptor)] = peer
        try:
            yield descriptor
        finally:
            os.close(descriptor)


@pytest.fixture
def genuine() -> Iterator[GenuineScache]:
    """Run the original."""
    with GenuineScache({"connection_cache_ttl_limit": str(TTL_LIMIT)}) as server:
        yield server


@pytest.fixture(params=["memory", "file"])
def ours(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """Run our daemon, on either kind of database."""
    with private_directory() as directory:
        database = ":memory:" if request.param == "memory" else directory / "database"
        options = ("--ttl-limit", str(TTL_LIMIT))
        with Daemon(directory / "socket", *options, database=database) as daemon:
            yield daemon


@pytest.fixture
def pair(genuine: GenuineScache, ours: Daemon) -> Iterator[Pair]:
    """Connect to both."""
    with Server(genuine.path) as one, Server(ours.path) as other, closing(Pair(one, other)) as both:
        yield both


in_memory = pytest.mark.parametrize("ours", ["memory"], indirect=True)


def statistics(log: list[str]) -> list[str]:
    """Return what was logged of the statistics, without the time at which they began."""
    lines = [line[line.index("statistics: ") :] for line in log if "statistics: " in line]
    assert re.fullmatch(r"statistics: start interval \w{3} [ \d]\d \d\d:\d\d:\d\d", lines[0])
    return lines[1:]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed{seed}")
def test_random_requests(genuine: GenuineScache, ours: Daemon, pair: Pair, seed: int) -> None:
    """To random requests, good and bad, the answers are the same to the byte.

    So are the descriptors that come back, and at the end the statistics.
    """
    hits = 0
    for step in random_steps(Random(seed), STEPS):
        hits += len(pair.check(step).found)
    assert hits > STEPS / 10
    pair.check_what_is_left()
    assert ours.terminate() == genuine.stop() == 0
    assert statistics(ours.log()) == statistics(genuine.log())


@in_memory
def test_every_spoiled_request(pair: Pair) -> None:
    """A request with one thing wrong with it gets the same answer, and the next one its own."""
    for request in (
        *(save_endp(b"endpoint", b""), save_endp(b"request", b"request")),
        *(save_dest(b"", b"", b""), save_dest(b"request", b"request", b"request")),
        *(find_endp(NEVER), find_dest(NEVER)),
    ):
        for message in (*spoil(request), *NO_REQUESTS):
            pair.check(Step((message,)))
            pair.check(SENTINEL)


@in_memory
def test_every_form_of_a_ttl(pair: Pair) -> None:
    """What is a time to live to the one is one to the other, modulo 2**32 as it is."""
    for ttl in (*TTLS, *ODD_TTLS, *BAD_TTLS):
        accepted = ttl not in BAD_TTLS
        for request in (save_endp(b"", b"", ttl), save_dest(b"", b"", b"", ttl)):
            said = pair.check(Step((encode(request),))).said
            assert said.endswith(OK if accepted else BAD), ttl


@in_memory
@pytest.mark.parametrize("glued", [False, True], ids=["alone", "glued"])
def test_byte_by_byte(pair: Pair, glued: bool) -> None:
    """Requests that come in single bytes are answered alike, and the last dummy with them."""
    saves = (save_endp(b"e", b"1"), save_endp(b"e", b"2"), save_dest(b"d", b"", b"e"))
    finds = (find_dest(b"d"), find_endp(b"e"), find_dest(b"d"))
    found = 0
    for request in (*saves, *finds):
        pieces = tuple(bytes([byte]) for byte in encode(request))
        found += len(pair.check(Step(pieces, glued=glued)).found)
    assert found == 2


@contextmanager
def connected(server: GenuineScache | Daemon) -> Iterator[Wire]:
    """Connect to one of them, and hear its greeting."""
    with Wire(server.path) as client:
        client.announcement()
        yield client


@in_memory
def test_differs_in_early_descriptors(genuine: GenuineScache, ours: Daemon) -> None:
    """A descriptor that comes together with its save_endp is lost by the original, not by us."""

    def reply_of(server: GenuineScache | Daemon) -> bytes:
        descriptor = os.memfd_create("early")
        with connected(server) as client:
            client.send(encode(save_endp(b"e", b"")), [descriptor])
            os.close(descriptor)
            assert client.receive_message_bytes() == DUMMY
            client.send(DESCRIPTOR_BYTE)
            return client.receive_message_bytes()

    assert reply_of(genuine) == FAILED
    assert reply_of(ours) == OK


@in_memory
def test_differs_in_requests_sent_ahead(genuine: GenuineScache, ours: Daemon) -> None:
    """Of requests sent without waiting the original answers the first, we answer all in order."""
    requests = (find_endp(NEVER), save_dest(b"d", b"", b"e"), find_dest(NEVER))

    def replies_of(server: GenuineScache | Daemon) -> bytes:
        with connected(server) as client:
            client.send(b"".join(map(encode, requests)))
            replies = client.receive_message_bytes()
            client.send(encode([(b"request", b"unknown")]))
            while not replies.endswith(BAD):
                replies += client.receive_message_bytes()
            return replies.removesuffix(BAD)

    assert replies_of(genuine) == MISS_OF_ENDPOINT
    assert replies_of(ours) == MISS_OF_ENDPOINT + OK + MISS_OF_DESTINATION


@in_memory
def test_differs_in_long_messages(genuine: GenuineScache, ours: Daemon) -> None:
    """A message above 64 KiB is served by the original, and malformed to us."""

    def reply_of(server: GenuineScache | Daemon) -> bytes:
        with connected(server) as client:
            client.send(encode(find_endp(b"x" * 2**16)))
            reply = client.receive_message_bytes()
            assert client.find_endp(NEVER) == (MISS_OF_ENDPOINT, None)
            return reply

    assert reply_of(genuine) == MISS_OF_ENDPOINT
    assert reply_of(ours) == encode([(b"status", b"1"), (b"property", b"")])


@in_memory
def test_differs_in_hits_that_nobody_takes(genuine: GenuineScache, ours: Daemon) -> None:
    """A connection whose finder does not ask for the descriptor is lost by the original.

    With us it can be found again.
    """

    def found_again(server: GenuineScache | Daemon) -> bool:
        descriptor = os.memfd_create("hit")
        with connected(server) as client:
            assert client.save_endp(1000, b"e", b"", descriptor) == OK
            os.close(descriptor)
            client.send(encode(find_endp(b"e")))
            assert client.receive_message_bytes() == encode([(b"status", b"0"), (b"property", b"")])
            client.send(encode([(b"no", b"dummy")]))
            _, descriptor_again = client.find_endp(b"e")
        if descriptor_again is None:
            return False
        os.close(descriptor_again)
        return True

    assert not found_again(genuine)
    assert found_again(ours)
