"""Expiry in a running daemon, as the peers of cached connections see it."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scache import Client
from tests.support.daemon import Daemon, stopped
from tests.support.dialogue import DEADLINE, eventually
from tests.support.peer import Parked
from tests.support.store_fixture import read


@pytest.fixture
def client(path: Path, database: str) -> Iterator[Client]:
    """Run a daemon; connect a client to it."""
    with Daemon(path, database=database), Client(path) as client:
        yield client


def test_connection_is_closed_at_its_expiry_and_not_before(client: Client) -> None:
    """The peer sees the end when the ttl is over; connections with a longer ttl stay."""
    with (
        Parked(client, 2, "second") as second,
        Parked(client, 1, "first") as first,
        Parked(client, 60, "third") as third,
    ):
        first.wait_for_end()
        second.wait_for_end()
        assert client.find_endp("first") is None
        assert client.find_endp("second") is None
        found = client.find_endp("third")
        assert found is not None
        with found.socket() as connection:
            connection.sendall(b"alive")
        assert third.peer.recv(5) == b"alive"


def test_connection_is_found_until_shortly_before_its_expiry(client: Client) -> None:
    """A find just before the expiry gets the connection, and the daemon no longer closes it."""
    found = None
    while found is None:
        with Parked(client, 1, "e") as parked:
            time.sleep(max(0, parked.earliest - time.monotonic() - 0.1))
            found = client.find_endp("e")
            if found is None:
                # The find came too late to tell anything, as it may on a busy machine.
                assert time.monotonic() > parked.earliest
                continue
            with found.socket():
                parked.peer.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    parked.peer.recv(1)


def test_expired_binding_is_not_found(client: Client) -> None:
    """A find of the destination misses once its binding has expired; the connection stays."""
    with Parked(client, 60, "e"):
        assert client.save_dest(60, "long", "q", "e")
        assert client.save_dest(1, "short", "q", "e")
        time.sleep(1.01)
        assert client.find_dest("short") is None
        found = client.find_dest("long")
        assert found is not None
        found.close()


def test_expired_binding_is_removed_without_a_find(path: Path, tmp_path: Path) -> None:
    """The row is removed when the ttl is over, although no client asks for it."""
    file = tmp_path / "cache.db"
    with Daemon(path, database=file), Client(path) as client:
        assert client.save_dest(1, "d", "q", "e")
        eventually(lambda: read(file, "SELECT id FROM event WHERE kind = 'save_dest'"))
        eventually(lambda: not read(file, "SELECT id FROM binding"))


@pytest.mark.slow
def test_expiry_of_many_connections_does_not_delay_a_find(path: Path, database: str) -> None:
    """2,000 connections that expire at one moment are closed, and a find meanwhile is answered."""
    count = 2000
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(path, database=database))
        client = stack.enter_context(Client(path))
        other = stack.enter_context(Client(path))
        kept = stack.enter_context(Parked(other, 60, "kept"))
        # The reading end comes to its end when every copy of the other one is closed.
        reading, writing = os.pipe()
        stack.callback(os.close, reading)
        os.set_blocking(reading, False)
        try:
            for number in range(count):
                assert client.save_endp(4, f"e{number % 50}", "p", writing)
            all_due = time.monotonic() + 4
        finally:
            os.close(writing)
        # Stop the daemon until all of them are due, so that it finds them all at once.
        with stopped(daemon.pid):
            time.sleep(max(0, all_due - time.monotonic()))
        found = other.find_endp("kept")
        assert found is not None
        found.close()
        assert kept.peer.recv(1) == b""
        assert select.select([reading], [], [], DEADLINE)[0]
        assert os.read(reading, 1) == b""
