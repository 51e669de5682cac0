"""The async client keeps the promises of the blocking one, on asyncio and on trio."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from scache import AsyncClient, ProtocolError, Unavailable
from tests.support.daemon import Daemon
from tests.support.genuine import GenuineScache


@pytest.fixture(params=["ours", "genuine"])
def server(request: pytest.FixtureRequest, path: Path, database: str) -> Iterator[Path]:
    """Run a server and name its socket."""
    if request.param == "ours":
        with Daemon(path, database=database):
            yield path
    else:
        with GenuineScache() as genuine:
            yield genuine.path


@pytest.fixture(params=[True, False], ids=["inline", "base"])
async def client(request: pytest.FixtureRequest, server: Path) -> AsyncIterator[AsyncClient]:
    """Connect to it."""
    with_client = AsyncClient(server, inline=request.param)
    yield with_client
    with_client.close()


async def test_what_is_saved_is_found_once(client: AsyncClient) -> None:
    """Bytes come back exact, the descriptor is the one that was saved, and it has one user."""
    here, there = socket.socketpair()
    with there:
        with here:
            assert await client.save_endp(60, b"e\xff", "p\n", here)
        assert await client.save_dest(60, "d", b"\xfe", b"e\xff")
        found = await client.find_dest("d")
        assert found is not None
        assert (found.destination_properties, found.endpoint_properties) == (b"\xfe", b"p\n")
        with found.socket() as connection:
            connection.sendall(b"hello")
        assert there.recv(10) == b"hello"
        assert await client.find_dest("d") is None
        assert await client.find_endp(b"e\xff") is None


async def test_many(client: AsyncClient) -> None:
    """Many are saved and found in one call, each in its place."""
    count = 300
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb"):
        items = [(60, f"e{number}", "p", reading) for number in range(count)]
        assert await client.save_many(items) == [True] * count
    bindings = [(60, f"d{number}", "", f"e{number}") for number in range(count)]
    assert await client.save_dest_many(bindings) == [True] * count
    every_third = [f"d{number}" for number in range(0, count, 3)]
    found = await client.find_dest_many(every_third)
    found += await client.find_many([f"e{number}" for number in range(count)])
    assert [each is None for each in found[: len(every_third)]] == [False] * len(every_third)
    assert [each is None for each in found[len(every_third) :]] == [
        number % 3 == 0 for number in range(count)
    ]
    for each in found:
        if each is not None:
            each.close()


async def test_tasks_may_share_a_client(client: AsyncClient) -> None:
    """Requests of tasks that share a client wait for each other."""
    outcomes = []

    async def save(number: int) -> None:
        outcomes.append(await client.save_dest(60, f"{number}", "", ""))

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(save, number)
    assert outcomes == [True] * 20


async def test_errors(client: AsyncClient) -> None:
    """A malformed request is a ProtocolError, a NUL a ValueError, and the client goes on."""
    with pytest.raises(ProtocolError, match="malformed"):
        await client.save_dest(0, "d", "", "e")
    with pytest.raises(ValueError, match="NUL"):
        await client.find_endp("a\0b")
    assert await client.find_endp("e") is None


async def test_a_cancelled_request_leaves_a_client_that_works(client: AsyncClient) -> None:
    """After a request was cancelled half-way the next one uses another connection."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await client.find_endp("e")
    assert scope.cancelled_caught
    assert await client.find_endp("e") is None


async def test_one_restart_is_survived(path: Path, database: str) -> None:
    """A client connects anew after the daemon was restarted, and says so when there is none."""
    client = AsyncClient(path)
    for _ in range(2):
        with Daemon(path, database=database):
            assert await client.save_dest(60, "d", "", "e")
    with pytest.raises(Unavailable, match="no daemon answers"):
        await client.find_dest("d")
    client.close()


async def test_a_server_that_hangs_is_unavailable(path: Path) -> None:
    """Nothing waits longer than the timeout."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        client = AsyncClient(path, timeout=0.2)
        with pytest.raises(Unavailable, match=r"did not answer within 0\.2 seconds"):
            await client.find_endp("e")
        client.close()
