"""`ping` of both clients: with this daemon, earlier ones, Postfix's scache(8) and others."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from scache import Client, DescriptorLimit, NotNow, ProtocolError, Refused, TimedOut, Unavailable
from scache.protocol import client as client_protocol
from scache.protocol.messages import ANNOUNCEMENT, HELLO_REPLY_WITH_FEATURES, Hello, encode_request
from scache.unix import fdpass
from tests.support.clients import Connect
from tests.support.daemon import Daemon, stopped
from tests.support.descriptors import descriptors_left, descriptors_of
from tests.support.dialogue import eventually
from tests.support.postfix_scache import PostfixScache
from tests.support.scripted import Script, hang, hear, saying, serving, then
from tests.support.snapshots import snapshot
from tests.support.wire import encode

OK = encode([(b"status", b"0")])
GREETING = (ANNOUNCEMENT, HELLO_REPLY_WITH_FEATURES)


def test_ping_succeeds_again_and_again(connect: Connect, daemon: Daemon) -> None:
    """The client also goes on after a restart of the daemon."""
    client = connect(daemon.path)
    for _ in range(3):
        client.ping()
    assert client.find_endp("e") is None
    client.ping()


def test_ping_connects_again_after_a_restart(connect: Connect, path: Path) -> None:
    """Every other request does that as well."""
    with Daemon(path):
        client = connect(path)
        client.ping()
    with pytest.raises(Unavailable):
        client.ping()
    with Daemon(path):
        client.ping()


def test_ping_of_a_daemon_without_it_adds_no_event(
    connect: Connect, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second hello is the round trip."""
    monkeypatch.setattr(client_protocol, "HELLO", encode_request(Hello()))
    client = connect(daemon.path)
    client.ping()
    client.ping()
    sql = "SELECT count(*) FROM event WHERE kind <> 'snapshot'"
    with Client(daemon.path) as other:
        assert snapshot(other, sql) == [(0,)]


def test_ping_in_the_base_protocol_is_a_find(connect: Connect, daemon: Daemon) -> None:
    """No client can have saved the label."""
    client = connect(daemon.path, inline=False)
    with socket.socket() as something:
        client.save_endp(60, "e", "", something)
    client.ping()
    with Client(daemon.path) as other:
        assert snapshot(other, "SELECT kind, status FROM event WHERE kind = 'find_endp'") == [
            ("find_endp", 2)
        ]
        assert snapshot(other, "SELECT count(*) FROM connection") == [(1,)]


@pytest.mark.postfix
def test_ping_of_postfix_scache_logs_only_the_hello(connect: Connect) -> None:
    """It is a plain round trip."""
    with PostfixScache() as postfix:
        client = connect(postfix.path)
        client.ping()
        client.ping()
        client.close()
        assert postfix.stop() == 0
        (warning,) = (line for line in postfix.log() if "warning" in line)
        assert "hello" in warning


def echo(client: socket.socket) -> None:
    """Answer a ping with the descriptor that came, twice."""
    _, descriptors, _ = fdpass.receive(client)
    fdpass.send(client, OK, list(descriptors) * 2)
    fdpass.close(descriptors)


def leave(client: socket.socket) -> None:
    """Hang up after a request."""
    hear(client)


REFUSAL = [(b"status", b"2"), (b"reason", b"why\xff")]


@pytest.mark.parametrize(
    ("script", "error", "text"),
    [
        (saying(*GREETING, (OK, 1)), ProtocolError, "another descriptor than it got"),
        (saying(*GREETING, (OK, 2)), ProtocolError, "more than one descriptor"),
        (then(saying(*GREETING), echo), ProtocolError, "more than one descriptor"),
        (saying(*GREETING, OK), ProtocolError, "no descriptor with a reply that needs one"),
        (saying(*GREETING, encode([(b"status", b"1")])), ProtocolError, "unexpected reply"),
        (saying(*GREETING, encode(REFUSAL)), Refused, r"why\\xff"),
        (saying(*GREETING, encode([*REFUSAL, (b"shortage", b"later")])), NotNow, r"why\\xff"),
        (then(saying(*GREETING), leave), Unavailable, "hung up before its reply"),
        (saying(ANNOUNCEMENT, encode(REFUSAL)), Refused, r"why\\xff"),
        (then(saying(b"220 mail.example.org ESMTP\r\n"), hang), ProtocolError, "begins no reply"),
    ],
    ids=[
        "another", "two", "twice", "none", "malformed", "refused", "not now", "hangs up",
        "refused hello", "other service",
    ],
)  # fmt: skip
def test_ping_of_a_server_that_fails_leaves_no_descriptor(
    connect: Connect, path: Path, script: Script, error: type[Exception], text: str
) -> None:
    """The descriptors on both ways are closed while the error is still referenced."""
    with serving(path, script):
        client = connect(path)
        before = descriptors_of(os.getpid())
        with pytest.raises(error, match=text) as caught:
            client.ping()
        client.close()
        eventually(lambda: len(descriptors_of(os.getpid())) <= len(before))
        assert type(caught.value) is error


def test_ping_of_a_silent_server_times_out(connect: Connect, path: Path) -> None:
    """The error is an `Unavailable` of its own kind."""
    with serving(path, hang):
        client = connect(path, timeout=0.1)
        before = descriptors_of(os.getpid())
        with pytest.raises(TimedOut, match="did not answer within") as caught:
            client.ping()
        eventually(lambda: len(descriptors_of(os.getpid())) <= len(before))
        assert isinstance(caught.value, Unavailable)


def test_ping_of_a_stopped_daemon_times_out(connect: Connect, daemon: Daemon) -> None:
    """The daemon closes the descriptor when it goes on."""
    before = descriptors_of(daemon.pid)
    client = connect(daemon.path, timeout=0.5)
    client.ping()
    with stopped(daemon.pid), pytest.raises(TimedOut):
        client.ping()
    eventually(lambda: descriptors_of(daemon.pid) == before)


@pytest.mark.parametrize("room", [0, 1])
def test_ping_at_the_descriptor_limit_sends_nothing(path: Path, room: int) -> None:
    """The client needs room for the descriptor that it sends and for its return."""
    with Daemon(path), Client(path) as client:
        client.ping()
        with descriptors_left(room), pytest.raises(DescriptorLimit) as caught:
            client.ping()
        client.ping()
        del caught
        with descriptors_left(2):
            client.ping()


def test_ping_of_a_server_with_a_full_backlog_times_out(path: Path) -> None:
    """The client tries to connect until its time is over."""
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(str(path))
        server.listen(0)
        first.connect(str(path))
        with Client(path, timeout=0.1) as client, pytest.raises(TimedOut):
            client.ping()
