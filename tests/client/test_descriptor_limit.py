"""A client whose process has reached its limit on open files: no cached connection is lost.

Tests that run with every server and kind of client are in test_contract.py.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from scache import Client, DescriptorLimit, Found
from scache.client.connection import Connection
from scache.unix import fdpass
from tests.support.clients import Connect, Pair
from tests.support.daemon import Daemon
from tests.support.descriptors import descriptors_left
from tests.support.dialogue import DEADLINE

COUNT = 300
"""Cached connections: more than a client requests in one batch."""


def save(client: Client, theirs: socket.socket, count: int = COUNT) -> list[str]:
    """Save ``count`` duplicates of a socket, each under its own label; return the labels."""
    labels = [str(number) for number in range(count)]
    assert all(client.save_many((60, label, label, theirs) for label in labels))
    return labels


def close(found: list[Found | None]) -> list[str | None]:
    """Close the found connections; return their properties."""
    properties = []
    for each in found:
        properties.append(each.endpoint_properties.decode() if each else None)
        if each is not None:
            each.close()
    return properties


@pytest.mark.parametrize("room", [1, 7, 8, 40, 129, 299])
def test_find_many_at_the_limit_returns_the_connections_that_fit(
    path: Path, inline: bool, pair: Pair, room: int
) -> None:
    """They are in the error; the remaining ones can be found when there is room again."""
    with Daemon(path), Client(path, inline=inline, timeout=DEADLINE) as client:
        labels = save(client, pair[1])
        with descriptors_left(room), pytest.raises(DescriptorLimit) as caught:
            client.find_many(labels)
        assert close(list(caught.value.found)) == labels[:room]
        assert close(client.find_many(labels)) == [None] * room + labels[room:]


def test_find_many_with_just_enough_room_returns_all(path: Path, inline: bool, pair: Pair) -> None:
    """The placeholders that reserve room take none from the connections."""
    with Daemon(path), Client(path, inline=inline, timeout=DEADLINE) as client:
        labels = save(client, pair[1])
        with descriptors_left(COUNT):
            found = client.find_many(labels)
        assert close(found) == labels


@pytest.mark.parametrize("room", [0, 4])
def test_find_many_returns_what_arrived_when_the_reserved_room_is_taken(
    path: Path,
    inline: bool,
    pair: Pair,
    room: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another thread may open files between the request and the reply."""
    monkeypatch.setattr(Connection, "reserve", lambda _, count: count)
    with Daemon(path), Client(path, inline=inline, timeout=DEADLINE) as client:
        labels = save(client, pair[1], 10)
        with descriptors_left(room), pytest.raises(DescriptorLimit, match="are lost") as caught:
            client.find_many(labels)
        assert close(list(caught.value.found)) == labels[:room]
        monkeypatch.undo()
        lost = 10 if inline else room + 1
        assert close(client.find_many(labels)) == [None] * lost + labels[lost:]


def test_room_stays_reserved_between_two_parts_of_a_reply(path: Path) -> None:
    """Another thread cannot open a file in between."""
    with socket.socket(socket.AF_UNIX) as listener, closing(Connection()) as connection:
        listener.bind(str(path))
        listener.listen()
        assert connection.connect(str(path))
        server, _ = listener.accept()
        with server, descriptors_left(3):
            assert connection.reserve(3) == connection.reserve(4) == 3
            connection.conversation.due = 3
            for arrived in (1, 2, 3):
                fdpass.send(server, b"x", [server.fileno()])
                connection.receive(fdpass.new_buffer())
                assert len(connection.conversation.descriptors) == arrived
                with pytest.raises(OSError) as caught:  # noqa: PT011 - EMFILE
                    os.dup(0)
                assert caught.value.errno == errno.EMFILE


def test_connect_at_the_descriptor_limit_raises_descriptor_limit(
    path: Path, connect: Connect
) -> None:
    """It is an OSError that names the limit. The next request connects."""
    with Daemon(path):
        client = connect(path, timeout=DEADLINE)
        with descriptors_left(0), pytest.raises(DescriptorLimit, match="limit on open") as caught:
            client.find_endp("e")
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == errno.EMFILE
        assert client.find_endp("e") is None


def test_snapshot_at_the_descriptor_limit_is_not_requested(path: Path, connect: Connect) -> None:
    """The client stays connected."""
    with Daemon(path):
        client = connect(path, timeout=DEADLINE)
        assert client.find_endp("e") is None
        with descriptors_left(0), pytest.raises(DescriptorLimit):
            client.snapshot()
        assert " connected" in repr(client)
        with descriptors_left(1):
            os.close(client.snapshot())


def test_save_at_the_descriptor_limit_needs_no_room(path: Path, inline: bool, pair: Pair) -> None:
    """Only requests that receive descriptors reserve room."""
    with Daemon(path), Client(path, inline=inline, timeout=DEADLINE) as client:
        assert client.find_endp("e") is None
        with descriptors_left(0):
            assert client.save_endp(60, "e", "", pair[1])
            assert client.save_dest(60, "d", "", "e")
