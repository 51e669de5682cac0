"""A client whose process can open no more files: nothing that the cache holds is lost by it.

What is the same with every server and kind of client is in test_client_contract.py.
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
"""Connections that are cached: more than are asked for at once."""


def save(client: Client, theirs: socket.socket, count: int = COUNT) -> list[str]:
    """Save a socket under a label for each copy; return the labels."""
    labels = [str(number) for number in range(count)]
    assert all(client.save_many((60, label, label, theirs) for label in labels))
    return labels


def close(found: list[Found | None]) -> list[str | None]:
    """Close what was found; return its properties."""
    properties = []
    for each in found:
        properties.append(each.endpoint_properties.decode() if each else None)
        if each is not None:
            each.close()
    return properties


@pytest.mark.parametrize("room", [1, 7, 8, 40, 129, 299])
def test_find_many_hands_over_what_there_is_room_for(
    path: Path, inline: bool, pair: Pair, room: int
) -> None:
    """The error has the first ones; the others are found when there is room again."""
    with Daemon(path), Client(path, inline=inline, timeout=DEADLINE) as client:
        labels = save(client, pair[1])
        with descriptors_left(room), pytest.raises(DescriptorLimit) as caught:
            client.find_many(labels)
        assert close(list(caught.value.found)) == labels[:room]
        assert close(client.find_many(labels)) == [None] * room + labels[room:]


def test_find_many_with_just_enough_room_returns_all(path: Path, inline: bool, pair: Pair) -> None:
    """No descriptor of the client's own is left over from making sure."""
    with Daemon(path), Client(path, inline=inline, timeout=DEADLINE) as client:
        labels = save(client, pair[1])
        with descriptors_left(COUNT):
            found = client.find_many(labels)
        assert close(found) == labels


@pytest.mark.parametrize("room", [0, 4])
def test_find_many_hands_over_what_arrived_when_others_took_the_room(
    path: Path,
    inline: bool,
    pair: Pair,
    room: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as another thread, between the request and the reply."""
    monkeypatch.setattr(Connection, "reserve", lambda _, count: count)
    with Daemon(path), Client(path, inline=inline, timeout=DEADLINE) as client:
        labels = save(client, pair[1], 10)
        with descriptors_left(room), pytest.raises(DescriptorLimit, match="are lost") as caught:
            client.find_many(labels)
        assert close(list(caught.value.found)) == labels[:room]
        monkeypatch.undo()
        lost = 10 if inline else room + 1
        assert close(client.find_many(labels)) == [None] * lost + labels[lost:]


def test_room_is_kept_while_replies_come_in_pieces(path: Path) -> None:
    """Another thread cannot take it between two of them."""
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


def test_connecting_at_the_descriptor_limit_says_so(path: Path, connect: Connect) -> None:
    """It is an OSError that names the limit, and the next request connects."""
    with Daemon(path):
        client = connect(path, timeout=DEADLINE)
        with descriptors_left(0), pytest.raises(DescriptorLimit, match="limit on open") as caught:
            client.find_endp("e")
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == errno.EMFILE
        assert client.find_endp("e") is None


def test_snapshot_at_the_descriptor_limit_says_so(path: Path, connect: Connect) -> None:
    """It is not asked for, and the client stays connected."""
    with Daemon(path):
        client = connect(path, timeout=DEADLINE)
        assert client.find_endp("e") is None
        with descriptors_left(0), pytest.raises(DescriptorLimit):
            client.snapshot()
        assert " connected" in repr(client)
        with descriptors_left(1):
            os.close(client.snapshot())


def test_save_at_the_descriptor_limit_needs_no_room(path: Path, inline: bool, pair: Pair) -> None:
    """Only what receives descriptors asks for room."""
    with Daemon(path), Client(path, inline=inline, timeout=DEADLINE) as client:
        assert client.find_endp("e") is None
        with descriptors_left(0):
            assert client.save_endp(60, "e", "", pair[1])
            assert client.save_dest(60, "d", "", "e")
