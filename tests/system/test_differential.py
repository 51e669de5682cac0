"""This daemon compared with Postfix's scache(8): the same requests get the same replies."""

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
"""Requests for each seed and each kind of database."""

BAD, FAILED = (encode([(b"status", status)]) for status in (b"1", b"2"))
MISS_OF_ENDPOINT = encode([(b"status", b"2"), (b"property", b"")])
MISS_OF_DESTINATION = encode([(b"status", b"2"), (b"property", b""), (b"property", b"")])


class Pair:
    """Postfix's scache(8) and this daemon, which get the same requests."""

    def __init__(self, postfix: Player, daemon: Player) -> None:
        assert daemon.greetings == postfix.greetings
        self._postfix = postfix
        self._daemon = daemon
        self._supply = Supply()

    def close(self) -> None:
        """Close the descriptors that were not found."""
        self._supply.close()

    def check(self, step: Step) -> Outcome:
        """Send a step to both, compare the outcomes, and return them.

        Both get the same descriptor if they ask for one.
        """
        with self._supply.for_step(step) as descriptor:
            expected = self._postfix.play(step, descriptor)
            outcome = self._daemon.play(step, descriptor)
        assert outcome == expected, f"{step}: {expected} became {outcome}"
        self._supply.found(outcome.found)
        return outcome

    def check_what_is_left(self) -> None:
        """Find everything that is left in both, and compare the order."""
        for label in sorted({*LABELS, *SHORT}):
            while self.check(Step((encode(find_endp(label)),))).found:
                pass


@pytest.fixture
def postfix() -> Iterator[PostfixScache]:
    """Run Postfix's scache(8)."""
    with PostfixScache({"connection_cache_ttl_limit": str(TTL_LIMIT)}) as server:
        yield server


@pytest.fixture(params=["memory", "file"])
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """Run this daemon, on each kind of database."""
    with private_directory() as directory:
        database = ":memory:" if request.param == "memory" else directory / "database"
        options = ("--ttl-limit", str(TTL_LIMIT))
        with Daemon(directory / "socket", *options, database=database) as daemon:
            yield daemon


@pytest.fixture
def pair(postfix: PostfixScache, daemon: Daemon) -> Iterator[Pair]:
    """Connect to both."""
    with (
        Player(postfix.path) as one,
        Player(daemon.path) as other,
        closing(Pair(one, other)) as both,
    ):
        yield both


in_memory = pytest.mark.parametrize("daemon", ["memory"], indirect=True)


def statistics(log: list[str]) -> list[str]:
    """Return the lines of statistics in a log, without the start of the interval."""
    lines = [line[line.index("statistics: ") :] for line in log if "statistics: " in line]
    assert re.fullmatch(r"statistics: start interval \w{3} [ \d]\d \d\d:\d\d:\d\d", lines[0])
    return lines[1:]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed{seed}")
def test_random_requests_get_the_same_replies(
    postfix: PostfixScache, daemon: Daemon, pair: Pair, seed: int
) -> None:
    """Replies to good and bad requests are the same to the byte.

    So are the descriptors that are found, and the statistics at the end.
    """
    hits = 0
    for step in random_steps(Random(seed), STEPS):
        hits += len(pair.check(step).found)
    assert hits > STEPS / 10
    pair.check_what_is_left()
    assert daemon.terminate() == postfix.stop() == 0
    assert statistics(daemon.log()) == statistics(postfix.log())


@in_memory
def test_malformed_requests_get_the_same_replies(pair: Pair) -> None:
    """A request with one error gets the same reply, and the next request is not affected."""
    for request in (
        *(save_endp(b"endpoint", b""), save_endp(b"request", b"request")),
        *(save_dest(b"", b"", b""), save_dest(b"request", b"request", b"request")),
        *(find_endp(NEVER), find_dest(NEVER)),
    ):
        for message in (*spoil(request), *NO_REQUESTS):
            pair.check(Step((message,)))
            pair.check(SENTINEL)


@in_memory
def test_times_to_live_are_parsed_alike(pair: Pair) -> None:
    """Both accept the same times to live, modulo 2**32."""
    for ttl in (*TTLS, *ODD_TTLS, *BAD_TTLS):
        accepted = ttl not in BAD_TTLS
        for request in (save_endp(b"", b"", ttl), save_dest(b"", b"", b"", ttl)):
            said = pair.check(Step((encode(request),))).said
            assert said.endswith(OK if accepted else BAD), ttl


@in_memory
@pytest.mark.parametrize("glued", [False, True], ids=["alone", "glued"])
def test_requests_in_single_bytes_get_the_same_replies(pair: Pair, glued: bool) -> None:
    """Requests may arrive byte by byte, alone or together with the final dummy."""
    saves = (save_endp(b"e", b"1"), save_endp(b"e", b"2"), save_dest(b"d", b"", b"e"))
    finds = (find_dest(b"d"), find_endp(b"e"), find_dest(b"d"))
    found = 0
    for request in (*saves, *finds):
        pieces = tuple(bytes([byte]) for byte in encode(request))
        found += len(pair.check(Step(pieces, glued=glued)).found)
    assert found == 2


@contextmanager
def connected(server: PostfixScache | Daemon) -> Iterator[Wire]:
    """Connect to one of them, and read the announcement."""
    with Wire(server.path) as client:
        client.announcement()
        yield client


@in_memory
def test_postfix_loses_descriptors_sent_with_a_save(postfix: PostfixScache, daemon: Daemon) -> None:
    """Postfix's scache(8) loses a descriptor that comes together with its save_endp."""

    def reply_of(server: PostfixScache | Daemon) -> bytes:
        descriptor = os.memfd_create("early")
        with connected(server) as client:
            client.send(encode(save_endp(b"e", b"")), [descriptor])
            os.close(descriptor)
            assert client.receive_message_bytes() == DUMMY
            client.send(DESCRIPTOR_BYTE)
            return client.receive_message_bytes()

    assert reply_of(postfix) == FAILED
    assert reply_of(daemon) == OK


@in_memory
def test_postfix_drops_requests_sent_ahead(postfix: PostfixScache, daemon: Daemon) -> None:
    """Of several requests sent at once, Postfix's scache(8) serves only the first."""
    requests = (find_endp(NEVER), save_dest(b"d", b"", b"e"), find_dest(NEVER))

    def replies_of(server: PostfixScache | Daemon) -> bytes:
        with connected(server) as client:
            client.send(b"".join(map(encode, requests)))
            replies = client.receive_message_bytes()
            client.send(encode([(b"request", b"unknown")]))
            while not replies.endswith(BAD):
                replies += client.receive_message_bytes()
            return replies.removesuffix(BAD)

    assert replies_of(postfix) == MISS_OF_ENDPOINT
    assert replies_of(daemon) == MISS_OF_ENDPOINT + OK + MISS_OF_DESTINATION


@in_memory
def test_postfix_serves_messages_above_64_kib(postfix: PostfixScache, daemon: Daemon) -> None:
    """To this daemon, a message above 64 KiB is malformed."""

    def reply_of(server: PostfixScache | Daemon) -> bytes:
        with connected(server) as client:
            client.send(encode(find_endp(b"x" * 2**16)))
            reply = client.receive_message_bytes()
            assert client.find_endp(NEVER) == (MISS_OF_ENDPOINT, None)
            return reply

    assert reply_of(postfix) == MISS_OF_ENDPOINT
    assert reply_of(daemon) == encode([(b"status", b"1"), (b"property", b"")])


@in_memory
def test_postfix_loses_a_hit_that_the_client_does_not_fetch(
    postfix: PostfixScache, daemon: Daemon
) -> None:
    """Here, a connection whose finder does not ask for the descriptor can be found again."""

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

    assert not found_again(postfix)
    assert found_again(daemon)
