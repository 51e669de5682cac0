"""Inline mode on the raw wire: descriptors on the messages themselves, requests sent ahead."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from scache import Client, __version__
from tests.support.daemon import Daemon
from tests.support.dialogue import eventually
from tests.support.genuine import GenuineScache
from tests.support.wire import Wire, encode

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
    """Return the reply to a ``find_endp`` that hit."""
    return encode([(b"status", b"0"), (b"property", properties)])


def receive(client: Wire, expected: bytes, descriptors: int = 0) -> list[int]:
    """Check that exactly these bytes come, with so many descriptors; return those."""
    received: bytes = b""
    found: list[int] = []
    while len(received) < len(expected):
        data, more = client.receive_raw(5)
        received += data
        found += more
    assert received == expected
    assert len(found) == descriptors
    return found


def identity(descriptor: int) -> tuple[int, int]:
    """Return what tells one open file from another, and close the descriptor."""
    status = os.fstat(descriptor)
    os.close(descriptor)
    return status.st_dev, status.st_ino


@pytest.fixture
def daemon(path: Path, database: str) -> Iterator[Daemon]:
    """Run the daemon."""
    with Daemon(path, database=database) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Wire]:
    """Connect, and be in inline mode."""
    with Wire(daemon.path) as client:
        client.announcement()
        client.send(HELLO)
        receive(client, GRANTED)
        yield client


@pytest.fixture
def pipes() -> Iterator[list[int]]:
    """Make descriptors that can be told from one another."""
    ends = [end for _ in range(100) for end in os.pipe()]
    yield ends
    for end in ends:
        os.close(end)


def test_the_descriptor_is_on_the_message_and_on_the_reply(client: Wire, pipes: list[int]) -> None:
    """There is no dummy in either direction."""
    client.send(save(b"e"), [pipes[0]])
    receive(client, OK)
    client.send(find(b"e"))
    (found,) = receive(client, hit(), 1)
    assert identity(found) == identity(os.dup(pipes[0]))


def test_requests_sent_ahead_are_answered_in_order(client: Wire, pipes: list[int]) -> None:
    """Many in one message, with the descriptors of all that need one, each in its place."""
    saves = b"".join(save(b"%d" % number) + find(b"none") for number in range(100))
    client.send(saves, pipes[::2])
    receive(client, (OK + MISS) * 100)
    client.send(b"".join(find(b"%d" % number) for number in range(100)))
    found = receive(client, hit() * 100, 100)
    assert [identity(each) for each in found] == [identity(os.dup(each)) for each in pipes[::2]]


def test_what_is_wrong_is_answered_and_the_conversation_goes_on(
    client: Wire, pipes: list[int]
) -> None:
    """A save without a descriptor fails, a malformed one is bad, hello again is granted again."""
    client.send(save(b"e"))
    receive(client, FAIL)
    client.send(save(b"e", ttl=b"0"), [pipes[0]])
    receive(client, BAD)
    client.send(HELLO + find(b"e"))
    receive(client, GRANTED + MISS)


def test_what_a_client_that_left_did_not_get_is_found_by_another(
    daemon: Daemon, client: Wire, pipes: list[int]
) -> None:
    """Replies that did not fit before the client left go back, with their connections."""
    count, properties = 60, b"p" * 30_000
    for number in range(count):
        client.send(save(b"e", b"%d" % number + properties), [pipes[number]])
        receive(client, OK)
    with Wire(daemon.path) as leaver:
        leaver.announcement()
        leaver.send(HELLO)
        receive(leaver, GRANTED)
        leaver.send(find(b"e") * count)
        data, descriptors = leaver.receive_raw(5)
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


def test_the_genuine_program_stays_in_the_base_protocol() -> None:
    """It calls ``hello`` malformed, once, and goes on as ever."""
    with GenuineScache() as genuine, Wire(genuine.path) as client:
        client.announcement()
        client.send(HELLO)
        receive(client, BAD)
        assert client.find_endp(b"e") == (MISS, None)


@pytest.mark.parametrize("seed", range(3))
def test_inline_and_base_give_the_same_answers(seed: int, daemon: Daemon, pipes: list[int]) -> None:
    """The same requests, in turn by a client of either mode, have the same outcomes."""
    random = Random(seed)
    labels = [b"", b"\n", b"\xff", b"x" * 3000]
    with Client(daemon.path) as inline, Client(daemon.path, inline=False) as base:
        for _ in range(300):
            label, other, properties = random.choices(labels, k=3)
            ttl, pipe = random.randint(1, 60), random.choice(pipes)
            request = random.choice(["save_endp", "save_dest", "find_endp", "find_dest"])
            outcomes = []
            for client, side in ((inline, b"i"), (base, b"b")):
                if request == "save_endp":
                    outcomes.append([client.save_endp(ttl, side + label, properties, pipe)])
                elif request == "save_dest":
                    outcomes.append([client.save_dest(ttl, side + label, properties, side + other)])
                else:
                    found = getattr(client, request)(side + label)
                    outcomes.append(
                        found
                        and [
                            found.destination_properties,
                            found.endpoint_properties,
                            identity(found.descriptor),
                        ]
                    )
            assert outcomes[0] == outcomes[1]
