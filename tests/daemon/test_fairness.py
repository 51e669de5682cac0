"""A client with many requests or descriptors does not harm other clients."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

from scache import Client
from tests.support.daemon import Daemon, stopped
from tests.support.dialogue import eventually
from tests.support.hostile import HELLO
from tests.support.snapshots import snapshot
from tests.support.wire import Wire, encode

BINDINGS = 64
"""Bindings that one request purges at most (protocol)."""

SAVE = encode([(b"request", b"save_endp"), (b"ttl", b"60"), (b"label", b"e"), (b"property", b"")])


def inline(stack: ExitStack, path: Path) -> Wire:
    """Connect a client that has said hello."""
    client = stack.enter_context(Wire(path))
    client.announcement()
    client.send(HELLO)
    assert client.receive_message()[0] == (b"status", b"0")
    return client


def test_shortage_disconnects_the_client_that_holds_most_descriptors(path: Path) -> None:
    """Other clients keep their descriptors, and go on."""
    options = ("--descriptor-reserve", "4", "--exchange-timeout", "3600")
    with ExitStack() as stack, Daemon(path, *options, open_files=100) as daemon:
        # The daemon closes UDP sockets at once; files it leaves to a thread.
        some = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).fileno()
        ] * 253
        modest, greedy, cause = (inline(stack, path) for _ in range(3))
        half = len(SAVE) // 2
        modest.send(SAVE[:half], some[:1])
        greedy.send(SAVE[:half], some[:20])
        eventually(lambda: modest.all_read() and greedy.all_read())
        cause.send(HELLO, some)
        assert greedy.receive_raw()[0] == b""
        assert cause.receive_message()[0] == (b"status", b"0")
        modest.send(SAVE[half:])
        assert modest.receive_message() == [(b"status", b"0")]
        daemon.wait_for_log("out of descriptors")
        with Client(path) as client:
            shortages = "SELECT value FROM counter WHERE name = 'limit_open_files'"
            assert snapshot(client, shortages) == [(1,)]


def test_purge_counts_each_purged_binding_as_a_step(path: Path) -> None:
    """A client with a pipeline of purges is interrupted after a few, so that others are served."""
    purges = 14
    purge = encode([(b"request", b"purge_dest"), (b"label", b"d")])
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(path, "--max-bindings-per-destination", "0"))
        client = stack.enter_context(Client(path))
        client.save_dest_many([(60, "d", "", f"{n}") for n in range(BINDINGS * purges)])
        # In this order, because epoll first reports the descriptor that it reported last.
        other, administrator = inline(stack, path), inline(stack, path)
        with stopped(daemon.pid):
            administrator.send(purge * purges)
            other.send(encode([(b"request", b"find_endp"), (b"label", b"e")]))
        for _ in range(purges):
            assert administrator.receive_message()[0] == (b"status", b"0")
        other.receive_message()
        requests = "SELECT kind FROM event WHERE kind IN ('purge_dest', 'find_endp') ORDER BY at"
        kinds = [kind for (kind,) in snapshot(client, requests)]
    assert sorted(kinds) == ["find_endp", *["purge_dest"] * purges]
    assert kinds.index("find_endp") < purges / 2
