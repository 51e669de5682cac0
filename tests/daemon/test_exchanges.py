"""The exchanges of the base protocol, byte by byte."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from scache.model import Status
from scache.protocol.messages import (
    DUMMY,
    FindDest,
    FindEndp,
    SaveDest,
    SaveEndp,
    encode_reply,
    encode_request,
)
from tests.support.daemon import Daemon
from tests.support.dialogue import (
    MISS_DEST,
    MISS_ENDP,
    Dialogue,
    Hit,
    eventually,
)
from tests.support.save_ways import (
    save,
)
from tests.support.workbench import Workbench, expect_closed, leads_to

OK, BAD, FAIL = map(encode_reply, Status)


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (FindEndp(b"nothing"), MISS_ENDP),
        (FindDest(b"nothing"), MISS_DEST),
        (SaveDest(1, b"of test_reply_has_its_attributes_and_no_other", b"", b"nothing"), OK),
    ],
)
def test_replies(bench: Workbench, request_: FindEndp | FindDest | SaveDest, reply: bytes) -> None:
    """The properties in the reply to a miss are empty."""
    client = bench.client()
    client.send(encode_request(request_))
    client.expect(reply)


def test_no_announce_sends_nothing_before_a_request(path: Path) -> None:
    """With --no-announce the client speaks first."""
    with (
        Daemon(path, "--no-announce") as daemon,
        Dialogue(daemon.path, announced=False) as client,
    ):
        client.send(encode_request(FindEndp(b"")))
        client.expect(MISS_ENDP)


def test_find_is_served_when_each_byte_comes_alone(bench: Workbench) -> None:
    """Neither the request nor the dummies must come in one piece."""
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


def test_last_dummy_may_come_with_the_next_request(bench: Workbench) -> None:
    """The last dummy of a find and the next request may be one message."""
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


def test_pipelined_requests_are_served_in_order(bench: Workbench) -> None:
    """A client may send requests without waiting for replies."""
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


def test_dummies_of_hits_may_be_pipelined(bench: Workbench) -> None:
    """A client may send both dummies with the request."""
    client, endpoint = bench.client(), bench.label()
    peers = [bench.park(client, endpoint) for _ in range(3)]
    client.send((encode_request(FindEndp(endpoint)) + DUMMY + DUMMY) * 3)
    for peer in peers:
        client.expect(encode_reply(Status.OK, b""))
        assert leads_to(Hit((), client.receive_descriptor()), peer)


def test_a_thousand_pipelined_requests_get_a_thousand_replies(bench: Workbench) -> None:
    """No reply of a long pipeline is lost."""
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
def test_malformed_request_does_not_end_the_conversation(
    bench: Workbench, message: bytes, reply: bytes, descriptors: int
) -> None:
    """A malformed request gets its reply, or none, and the next request is served."""
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
def test_ttl_may_begin_with_a_blank_or_a_plus(bench: Workbench, ttl: bytes) -> None:
    """A ttl is parsed as in Postfix's scache(8)."""
    client = bench.client()
    client.send(b"request\0save_dest\0ttl\0" + ttl + b"\0" + SAVE_DEST_REST)
    client.expect(OK)


def test_message_of_64_kib_is_served(bench: Workbench) -> None:
    """A message of 64 KiB is served; one more byte is malformed."""
    client, endpoint = bench.client(), bench.label()
    room = 65536 - len(encode_request(SaveEndp(60, endpoint, b"")))
    peer = bench.park(client, endpoint, b"x" * room)
    client.send(encode_request(SaveEndp(60, endpoint, b"x" * (room + 1))))
    client.expect(BAD)
    hit = client.take_endp(endpoint)
    assert hit is not None
    assert hit.properties == (b"x" * room,)
    assert leads_to(hit, peer)


def test_locked_database_refuses_requests_at_once(path: Path, tmp_path: Path) -> None:
    """All requests fail or miss while the database is locked, and are served again after that."""
    database = tmp_path / "cache.db"
    with Daemon(path, database=database) as daemon, closing(Workbench(daemon)) as bench:
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
