"""The genuine scache(8) and ours, side by side: whatever is asked, the answers are the same."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from random import Random

import pytest

from tests.support.daemon import Daemon
from tests.support.postfix_scache import PostfixScache
from tests.support.postfix_setup import private_directory
from tests.support.replay import OK, Outcome, Player, Supply
from tests.support.request_sequences import (
    BAD_TTLS,
    LABELS,
    NEVER,
    NO_REQUESTS,
    ODD_TTLS,
    SENTINEL,
    SHORT,
    TTL_LIMIT,
    TTLS,
    Step,
    find_dest,
    find_endp,
    random_steps,
    save_dest,
    save_endp,
    spoil,
)
from tests.support.wire import DESCRIPTOR_BYTE, DUMMY, Wire, encode

pytestmark = pytest.mark.postfix

SEEDS = range(5)
STEPS = 1_000
"""For each seed and each kind of database: 10,000 in all."""

BAD, FAILED = (encode([(b"status", status)]) for status in (b"1", b"2"))
MISS_OF_ENDPOINT = encode([(b"status", b"2"), (b"property", b"")])
MISS_OF_DESTINATION = encode([(b"status", b"2"), (b"property", b""), (b"property", b"")])


class Pair:
    """The genuine server and ours, asked the same things."""

    def __init__(self, genuine: Player, ours: Player) -> None:
        assert ours.greetings == genuine.greetings
        self._genuine = genuine
        self._ours = ours
        self._supply = Supply()

    def close(self) -> None:
        """Let go of what nobody found."""
        self._supply.close()

    def check(self, step: Step) -> Outcome:
        """Do a step with both and compare; return what both made of it.

        Both are handed the same descriptor, if they ask for one.
        """
        with self._supply.for_step(step) as descriptor:
            expected = self._genuine.play(step, descriptor)
            outcome = self._ours.play(step, descriptor)
        assert outcome == expected, f"{step}: {expected} became {outcome}"
        self._supply.found(outcome.found)
        return outcome

    def check_what_is_left(self) -> None:
        """Take all that both still have, in the order in which they give it."""
        for label in sorted({*LABELS, *SHORT}):
            while self.check(Step((encode(find_endp(label)),))).found:
                pass


@pytest.fixture
def genuine() -> Iterator[PostfixScache]:
    """Run the original."""
    with PostfixScache({"connection_cache_ttl_limit": str(TTL_LIMIT)}) as server:
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
def pair(genuine: PostfixScache, ours: Daemon) -> Iterator[Pair]:
    """Connect to both."""
    with Player(genuine.path) as one, Player(ours.path) as other, closing(Pair(one, other)) as both:
        yield both


in_memory = pytest.mark.parametrize("ours", ["memory"], indirect=True)


def statistics(log: list[str]) -> list[str]:
    """Return what was logged of the statistics, without the time at which they began."""
    lines = [line[line.index("statistics: ") :] for line in log if "statistics: " in line]
    assert re.fullmatch(r"statistics: start interval \w{3} [ \d]\d \d\d:\d\d:\d\d", lines[0])
    return lines[1:]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed{seed}")
def test_random_requests(genuine: PostfixScache, ours: Daemon, pair: Pair, seed: int) -> None:
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
def connected(server: PostfixScache | Daemon) -> Iterator[Wire]:
    """Connect to one of them, and hear its greeting."""
    with Wire(server.path) as client:
        client.announcement()
        yield client


@in_memory
def test_differs_in_early_descriptors(genuine: PostfixScache, ours: Daemon) -> None:
    """A descriptor that comes together with its save_endp is lost by the original, not by us."""

    def reply_of(server: PostfixScache | Daemon) -> bytes:
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
def test_differs_in_requests_sent_ahead(genuine: PostfixScache, ours: Daemon) -> None:
    """Of requests sent without waiting the original answers the first, we answer all in order."""
    requests = (find_endp(NEVER), save_dest(b"d", b"", b"e"), find_dest(NEVER))

    def replies_of(server: PostfixScache | Daemon) -> bytes:
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
def test_differs_in_long_messages(genuine: PostfixScache, ours: Daemon) -> None:
    """A message above 64 KiB is served by the original, and malformed to us."""

    def reply_of(server: PostfixScache | Daemon) -> bytes:
        with connected(server) as client:
            client.send(encode(find_endp(b"x" * 2**16)))
            reply = client.receive_message_bytes()
            assert client.find_endp(NEVER) == (MISS_OF_ENDPOINT, None)
            return reply

    assert reply_of(genuine) == MISS_OF_ENDPOINT
    assert reply_of(ours) == encode([(b"status", b"1"), (b"property", b"")])


@in_memory
def test_differs_in_hits_that_nobody_takes(genuine: PostfixScache, ours: Daemon) -> None:
    """A connection whose finder does not ask for the descriptor is lost by the original.

    With us it can be found again.
    """

    def found_again(server: PostfixScache | Daemon) -> bool:
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
