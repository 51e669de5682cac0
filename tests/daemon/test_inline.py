"""Inline mode on the wire: descriptors go with the messages, and requests are pipelined."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from random import Random
from threading import Event

import pytest

from scache import Client, __version__
from scache.protocol.client import ClientConversation
from scache.protocol.codec import NEED_DATA
from scache.unix import fdpass
from tests.support.daemon import Daemon, stopped
from tests.support.dialogue import eventually
from tests.support.postfix_scache import PostfixScache
from tests.support.replay import InlinePlayer, Player, Supply
from tests.support.request_sequences import (
    LABELS,
    SENTINEL,
    SHORT,
    TTL_LIMIT,
    Step,
    find_endp,
    random_steps,
)
from tests.support.wire import Wire, encode

SEEDS = range(2)
STEPS = 2_500
"""Steps for each seed and each kind of database; 10,000 in all, in both modes."""

HELLO = encode([(b"request", b"hello")])
GRANTED = encode(
    [(b"status", b"0"), (b"version", b"1"), (b"server", f"scache {__version__}".encode())]
)
OK = encode([(b"status", b"0")])
BAD = encode([(b"status", b"1")])
FAIL = encode([(b"status", b"2")])
MISS = encode([(b"status", b"2"), (b"property", b"")])


def save(endpoint: bytes, properties: bytes = b"p", ttl: bytes = b"60") -> bytes:
    """Return a ``save_endp``."""
    attributes = [(b"ttl", ttl), (b"label", endpoint), (b"property", properties)]
    return encode([(b"request", b"save_endp"), *attributes])


def find(endpoint: bytes) -> bytes:
    """Return a ``find_endp``."""
    return encode([(b"request", b"find_endp"), (b"label", endpoint)])


def hit(properties: bytes = b"p") -> bytes:
    """Return the reply to a ``find_endp`` that hits."""
    return encode([(b"status", b"0"), (b"property", properties)])


def receive(client: Wire, expected: bytes, descriptors: int = 0) -> list[int]:
    """Receive exactly these bytes and this number of descriptors; return the descriptors."""
    received: bytes = b""
    found: list[int] = []
    while len(received) < len(expected):
        data, more = client.receive_raw()
        received += data
        found += more
    assert received == expected
    assert len(found) == descriptors
    return found


def identity(descriptor: int) -> tuple[int, int]:
    """Return the identity of an open file, and close the descriptor."""
    status = os.fstat(descriptor)
    os.close(descriptor)
    return status.st_dev, status.st_ino


@contextmanager
def in_inline_mode(path: Path) -> Iterator[Wire]:
    """Yield a client in inline mode."""
    with Wire(path) as client:
        client.announcement()
        client.send(HELLO)
        receive(client, GRANTED)
        yield client


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Wire]:
    """Return a client in inline mode."""
    with in_inline_mode(daemon.path) as client:
        yield client


@pytest.fixture
def pipes() -> Iterator[list[int]]:
    """Return descriptors of a hundred different pipes."""
    ends = [end for _ in range(100) for end in os.pipe()]
    yield ends
    for end in ends:
        os.close(end)


def test_descriptor_goes_with_the_request_and_with_the_reply(
    client: Wire, pipes: list[int]
) -> None:
    """Inline mode has no dummies."""
    client.send(save(b"e"), [pipes[0]])
    receive(client, OK)
    client.send(find(b"e"))
    (found,) = receive(client, hit(), 1)
    assert identity(found) == identity(os.dup(pipes[0]))


def test_pipelined_requests_are_answered_in_order(client: Wire, pipes: list[int]) -> None:
    """One message has many requests and all their descriptors."""
    saves = b"".join(save(b"%d" % number) + find(b"none") for number in range(100))
    client.send(saves, pipes[::2])
    receive(client, (OK + MISS) * 100)
    client.send(b"".join(find(b"%d" % number) for number in range(100)))
    found = receive(client, hit() * 100, 100)
    assert [identity(each) for each in found] == [identity(os.dup(each)) for each in pipes[::2]]


def test_failed_requests_do_not_end_the_conversation(client: Wire, pipes: list[int]) -> None:
    """A save without a descriptor fails, a malformed one is bad, a second hello is granted."""
    client.send(save(b"e"))
    receive(client, FAIL)
    client.send(save(b"e", ttl=b"0"), [pipes[0]])
    receive(client, BAD)
    client.send(HELLO + find(b"e"))
    receive(client, GRANTED + MISS)


def test_descriptor_of_a_malformed_save_is_not_used_for_the_next_save(
    client: Wire, pipes: list[int]
) -> None:
    """A descriptor is cached under the label that it was sent with, or not at all."""
    client.send(save(b"bad", ttl=b"0") + save(b"good"), pipes[:4:2])
    receive(client, BAD + OK)
    client.send(find(b"good"))
    (found,) = receive(client, hit(), 1)
    assert identity(found) == identity(os.dup(pipes[2]))


def first_segment(pipes: list[int]) -> int:
    """Return the number of bytes of a long message that arrive with its descriptors."""
    one, other = socket.socketpair()
    with one, other:
        fdpass.send(one, bytes(fdpass.RECEIVE_SIZE), pipes[:1])
        data, descriptors, _ = fdpass.receive(other)
        fdpass.close(descriptors)
    return len(data)


def test_request_may_end_where_the_kernel_splits_a_message(client: Wire, pipes: list[int]) -> None:
    """All descriptors of a sendmsg(2) arrive with its first segment, even those of later ones."""
    size = first_segment(pipes)
    first = save(b"e", b"p" * (size - len(save(b"e", b""))))
    client.send(first + save(b"e"), pipes[:4:2])
    receive(client, OK + OK)


def test_connections_of_unsent_replies_are_put_back(
    daemon: Daemon, client: Wire, pipes: list[int]
) -> None:
    """Another client finds the connections of replies that did not fit into the socket."""
    count, properties = 60, b"p" * 30_000
    for number in range(count):
        client.send(save(b"e", b"%d" % number + properties), [pipes[number]])
        receive(client, OK)
    with in_inline_mode(daemon.path) as leaver:
        leaver.send(find(b"e") * count)
        data, descriptors = leaver.receive_raw()
        assert len(data) < count * len(properties)
        for descriptor in descriptors:
            os.close(descriptor)
    with Client(daemon.path) as other:

        def found() -> bool:
            connection = other.find_endp(b"e")
            if connection is not None:
                connection.close()
            return connection is not None

        eventually(found)


@pytest.mark.postfix
def test_postfix_scache_stays_in_the_base_protocol() -> None:
    """Postfix's scache(8) replies to ``hello`` as to a malformed request, and goes on."""
    with PostfixScache() as postfix, Wire(postfix.path) as client:
        client.announcement()
        client.send(HELLO)
        receive(client, BAD)
        assert client.find_endp(b"e") == (MISS, None)


# The same requests in both modes


def runs(random: Random, steps: Iterable[Step]) -> Iterator[list[Step]]:
    """Split steps into runs that are pipelined.

    Only the last step of a run may be malformed or without a descriptor, so that each descriptor
    belongs to a known step.
    """
    run: list[Step] = []
    for step in steps:
        if run and (step is SENTINEL or not run[-1].with_descriptor or random.random() < 0.15):
            yield run
            run = []
        run.append(step)
    yield run


class Modes:
    """Two daemons with the same requests: one in the base protocol, one in inline mode."""

    def __init__(self, base: Player, inline: InlinePlayer) -> None:
        self._base = base
        self._inline = inline
        self._supply = Supply()

    def close(self) -> None:
        """Close the descriptors that were not found."""
        self._supply.close()

    def check(self, run: list[Step]) -> int:
        """Compare the replies to a run sent one by one and pipelined; return the number of hits."""
        with ExitStack() as stack:
            offers = [stack.enter_context(self._supply.for_step(step)) for step in run]
            expected = [self._base.play(*each) for each in zip(run, offers, strict=True)]
            if len(run) == 1:
                outcome = self._inline.play(run[0], offers[0])
            else:
                outcome = self._inline.play_ahead(run, [each for each in offers if each])
        assert outcome.replies == [reply for each in expected for reply in each.replies], run
        assert outcome.found == tuple(found for each in expected for found in each.found), run
        self._supply.found(outcome.found)
        return len(outcome.found)

    def check_the_rest(self) -> None:
        """Compare the remaining connections and their order."""
        for label in sorted({*LABELS, *SHORT}):
            while self.check([Step((encode(find_endp(label)),))]):
                pass


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed{seed}")
def test_inline_and_base_protocol_give_the_same_replies(
    seed: int, path: Path, database: str
) -> None:
    """Statuses, properties and descriptors are the same for random requests, good and bad."""
    options = ("--ttl-limit", str(TTL_LIMIT))
    another = database if database == ":memory:" else f"{database}.another"
    with (
        Daemon(path, *options, database=database),
        Daemon(path.with_suffix(".another"), *options, database=another) as other,
        Player(path) as base,
        InlinePlayer(other.path) as inline,
        closing(Modes(base, inline)) as modes,
    ):
        random = Random(seed)
        hits = sum(modes.check(run) for run in runs(random, random_steps(random, STEPS)))
        assert hits > STEPS / 10
        modes.check_the_rest()


# Pipelines and other clients


def test_single_request_waits_for_few_pipelined_requests_of_another_client(
    daemon: Daemon, client: Wire, pipes: list[int]
) -> None:
    """A save after thousands of pipelined finds is served before most of them."""
    count = 4_000
    with in_inline_mode(daemon.path) as other:
        with stopped(daemon.pid):
            client.send(find(b"e") * count)
            other.send(save(b"e", b""), [pipes[0]])
        replies: bytes = b""
        while len(replies) < len(MISS) * count:
            data, descriptors = client.receive_raw()
            replies += data
            fdpass.close(descriptors)
        receive(other, OK)
    answered_before = replies.find(hit(b"")) // len(MISS)
    assert 0 <= answered_before < count / 10


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "base"])
def test_requests_are_answered_while_another_client_pipelines_without_pause(
    inline: bool, daemon: Daemon, client: Wire, pipes: list[int]
) -> None:
    """Single saves are served between endless finds, which find the connections in order."""
    saved = Event()
    last = encode([(b"request", b"find_dest"), (b"label", b"e")])
    reply_to_last = encode([(b"status", b"2"), (b"property", b""), (b"property", b"")])

    def send() -> None:
        while not saved.is_set():
            client.send(find(b"e") * 1_000)
        client.send(find(b"e") + last)

    def listen() -> list[tuple[int, int]]:
        end: bytes = b""
        found: list[tuple[int, int]] = []
        while not end.endswith(reply_to_last):
            data, descriptors = client.receive_raw()
            end = (end + data)[-len(reply_to_last) :]
            found += map(identity, descriptors)
        return found

    with ThreadPoolExecutor(2) as threads, Client(daemon.path, inline=inline) as other:
        sending, listening = threads.submit(send), threads.submit(listen)
        try:
            for pipe in pipes[:60:2]:
                assert other.save_endp(60, b"e", b"", pipe)
        finally:
            saved.set()
        sending.result()
        assert listening.result() == [identity(os.dup(pipe)) for pipe in pipes[:60:2]]


OLD_NAMES = [b"status", b"version", b"server"]


def test_hello_without_features_gets_the_reply_of_old_daemons(path: Path) -> None:
    """A client without features accepts a reply with exactly these names."""
    with Daemon(path), Wire(path) as client:
        client.announcement()
        client.send(HELLO)
        assert [name for name, _ in client.receive_message()] == OLD_NAMES


@pytest.mark.parametrize("words", [b"", b"later", b"later  later other", b" x "])
def test_hello_with_features_gets_a_list_of_features(path: Path, words: bytes) -> None:
    """The words of the client do not matter; inline mode is on after the reply."""
    with Daemon(path), Wire(path) as client:
        client.announcement()
        client.send(encode([(b"request", b"hello"), (b"features", words)]))
        reply = client.receive_message()
        assert [name for name, _ in reply] == [*OLD_NAMES, b"features"]
        client.send(encode([(b"request", b"find_endp"), (b"label", b"e")]))
        assert client.receive_message()[0] == (b"status", b"2")


@pytest.mark.parametrize(
    ("more", "features"),
    [
        ([], set()),
        ([(b"features", b"")], set()),
        ([(b"features", b"b a  a")], {b"a", b"b"}),
        ([(b"later", b"x"), (b"features", b"a")], {b"a"}),
    ],
    ids=["old daemon", "none", "repeated words", "unknown attribute"],
)
def test_client_accepts_hello_reply_with_further_attributes(
    more: list[tuple[bytes, bytes]], features: set[bytes]
) -> None:
    """A client uses inline mode with old and later daemons, and reads their features."""
    conversation = ClientConversation()
    exchange = conversation.hello()
    next(exchange)
    assert next(exchange) is NEED_DATA
    conversation.receive(encode([(b"status", b"0"), (b"version", b"1"), (b"server", b"s"), *more]))
    with pytest.raises(StopIteration):
        next(exchange)
    assert conversation.inline
    assert conversation.features == features
