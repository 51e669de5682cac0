"""Compatibility with versions that have no list of features: earlier ones, and Postfix's scache(8).

The dialogues were recorded between the client and the daemon of commit 1f505d6, the last version
without a list of features. All four pairs of old and new programs exchanged the same bytes.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NamedTuple

import pytest

from scache import Client, Found, TooOld, __version__
from scache.client.exchanges import Purged
from scache.unix import fdpass
from tests.support.clients import Connect
from tests.support.daemon import Daemon
from tests.support.postfix_scache import PostfixScache
from tests.support.scripted import Script, serving
from tests.support.wire import Wire, encode

ANNOUNCEMENT = b"protocol\0connection_cache_protocol\0\0"
DUMMY = b"dummy\0\0\0"
OK = b"status\x000\0\0"
COUNT_1 = b"status\x000\0count\x001\0\0"
MISS = b"status\x002\0property\0\0\0"
MISS_DEST = b"status\x002\0property\0\0property\0\0\0"
FIND_NOTHING = b"request\0find_endp\0label\0nothing\0\0"
FIND_E = b"request\0find_endp\0label\0e\0\0"
FIND_D = b"request\0find_dest\0label\0d\0\0"
SAVE_P = b"request\0save_endp\0ttl\x0060\0label\0e\0property\0p\0\0"
SAVE_1 = b"request\0save_endp\0ttl\x0060\0label\0e\0property\x001\0\0"
SAVE_2 = b"request\0save_endp\0ttl\x0060\0label\0e\0property\x002\0\0"
BIND = b"request\0save_dest\0ttl\x0060\0label\0d\0property\0q\0label\0e\0\0"
HIT_D = b"status\x000\0property\0q\0property\0p\0\0"
HIT_1 = b"status\x000\0property\x001\0\0"
HIT_2 = b"status\x000\0property\x002\0\0"

HELLO = b"request\0hello\0\0"
HELLO_WITH_FEATURES = b"request\0hello\0features\0follow ping purge_id shortage stats\0\0"
HELLO_REPLY = b"status\x000\0version\x001\0server\0scache %b\0\0" % __version__.encode()
"""The old client accepts exactly these attributes."""


class Turn(NamedTuple):
    """The bytes and the number of descriptors that the client sends, and that it receives."""

    request: bytes
    reply: bytes
    sent: int = 0
    received: int = 0


INLINE = [
    Turn(b"", ANNOUNCEMENT),
    Turn(HELLO, HELLO_REPLY),
    Turn(FIND_NOTHING, MISS),
    Turn(SAVE_P, OK, sent=1),
    Turn(BIND, OK),
    Turn(FIND_D, HIT_D, received=1),
    Turn(SAVE_1 + SAVE_2, OK + OK, sent=2),
    Turn(FIND_E + FIND_E + FIND_NOTHING, HIT_1 + HIT_2 + MISS, received=2),
    Turn(FIND_D, MISS_DEST),
    Turn(SAVE_P, OK, sent=1),
    Turn(b"request\0purge_endp\0label\0e\0\0", COUNT_1),
    Turn(b"request\0purge_dest\0label\0d\0\0", COUNT_1),
    Turn(b"request\0snapshot\0\0", OK, received=1),
]
BASE = [
    Turn(b"", ANNOUNCEMENT),
    Turn(FIND_NOTHING, MISS),
    Turn(SAVE_P, DUMMY),
    Turn(b"\0", OK, sent=1),
    Turn(BIND, OK),
    Turn(FIND_D, HIT_D),
    Turn(DUMMY, b"\0", received=1),
    Turn(DUMMY + SAVE_1, DUMMY),
    Turn(b"\0", OK, sent=1),
    Turn(SAVE_2, DUMMY),
    Turn(b"\0", OK, sent=1),
    Turn(FIND_E, HIT_1),
    Turn(DUMMY, b"\0", received=1),
    Turn(DUMMY + FIND_E, HIT_2),
    Turn(DUMMY, b"\0", received=1),
    Turn(DUMMY + FIND_NOTHING, MISS),
    Turn(FIND_D, MISS_DEST),
]


def receive(sock: socket.socket, size: int) -> tuple[bytes, int]:
    """Receive ``size`` bytes; return them and the number of descriptors that came with them."""
    data, count = b"", 0
    while len(data) < size:
        more, descriptors, _ = fdpass.receive(sock)
        fdpass.close(descriptors)
        data, count = data + more, count + len(descriptors)
        if not more:
            break
    return data, count


@pytest.mark.parametrize("dialogue", [INLINE, BASE], ids=["inline", "base"])
def test_daemon_sends_a_client_without_features_the_bytes_of_the_old_daemon(
    path: Path, database: str, dialogue: list[Turn]
) -> None:
    """Each descriptor comes with the same bytes, too."""
    with (
        Daemon(path, database=database),
        socket.socket(socket.AF_UNIX) as client,
        open(os.devnull) as something,  # noqa: PTH123
    ):
        client.settimeout(20)
        client.connect(str(path))
        for turn in dialogue:
            if turn.request:
                fdpass.send(client, turn.request, [something.fileno()] * turn.sent)
            assert receive(client, len(turn.reply)) == (turn.reply, turn.received)


def old_daemon(dialogue: list[Turn], received: list[bytes]) -> Script:
    """Return a server that replies as the old daemon did, and appends what it receives."""

    def script(client: socket.socket) -> None:
        with open(os.devnull) as something:  # noqa: PTH123
            for turn in dialogue:
                if turn.request:
                    size = len(HELLO_WITH_FEATURES) if turn.request == HELLO else len(turn.request)
                    data, count = receive(client, size)
                    received.append(data)
                    assert count == turn.sent
                fdpass.send(client, turn.reply, [something.fileno()] * turn.received)
            received.append(receive(client, 1)[0])

    return script


def use(client: Client, *, inline: bool) -> list[object]:
    """Make the requests of the recorded client; return their results."""
    with open(os.devnull) as something:  # noqa: PTH123
        results: list[object] = [
            client.find_endp("nothing"),
            client.save_endp(60, "e", "p", something),
            client.save_dest(60, "d", "q", "e"),
            client.find_dest("d"),
            *client.save_many([(60, "e", "1", something), (60, "e", "2", something)]),
            *client.find_many(["e", "e", "nothing"]),
            client.find_dest("d"),
        ]
        if inline:
            results += [client.save_endp(60, "e", "p", something), client.purge(["e"], ["d"])]
            os.close(client.snapshot())
    return [_properties(each) if isinstance(each, Found) else each for each in results]


def _properties(found: Found) -> tuple[bytes, bytes]:
    with found:
        return found.endpoint_properties, found.destination_properties


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "base"])
def test_client_sends_a_daemon_without_features_the_bytes_of_the_old_client(
    connect: Connect, path: Path, inline: bool
) -> None:
    """The only difference is the list of features in hello, which that daemon ignores."""
    dialogue = INLINE if inline else BASE
    received: list[bytes] = []
    with serving(path, old_daemon(dialogue, received)):
        client = connect(path, inline=inline)
        assert use(client, inline=inline) == [
            *(None, True, True, (b"p", b"q"), True, True, (b"1", b""), (b"2", b""), None, None),
            *((True, Purged(1, 1)) if inline else ()),
        ]
        if inline:
            with pytest.raises(TooOld):
                client.purge(["e"], ids=[1])
        client.close()
    expected = [HELLO_WITH_FEATURES if turn.request == HELLO else turn.request for turn in dialogue]
    assert received == [*filter(None, expected), b""]


HELLOS = {
    "plain": encode([(b"request", b"hello")]),
    "no word": encode([(b"request", b"hello"), (b"features", b"")]),
    "words": encode([(b"request", b"hello"), (b"features", b"purge_id later")]),
}


def log_of_postfix(hello: bytes) -> list[str]:
    """Return the lines that Postfix's scache(8) logs about a client that sends this hello."""
    with PostfixScache() as postfix:
        with Wire(postfix.path) as client:
            client.announcement()
            client.send(hello)
            assert client.receive_message() == [(b"status", b"1")]
            assert client.find_endp(b"x") == (MISS, None)
            assert client.find_dest(b"x") == (MISS_DEST, None)
        assert postfix.stop() == 0
        return [line for line in postfix.log() if "start interval" not in line]


@pytest.mark.postfix
def test_features_in_hello_add_no_line_to_the_log_of_postfix_scache() -> None:
    """It logs one warning about the unknown request, and ignores the attributes after it."""
    plain, *others = map(log_of_postfix, HELLOS.values())
    assert sum("hello" in line for line in plain) == 1
    assert others == [plain, plain]


@pytest.mark.postfix
def test_client_stays_in_the_base_protocol_with_postfix_scache(connect: Connect) -> None:
    """The reply to hello tells it that the server has no inline mode."""
    with PostfixScache() as postfix:
        client = connect(postfix.path)
        assert use(client, inline=False)[3] == (b"p", b"q")
        client.close()
        assert postfix.stop() == 0
        (warning,) = (line for line in postfix.log() if "warning" in line)
        assert "hello" in warning
