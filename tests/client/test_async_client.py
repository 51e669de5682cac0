"""The async client: sharing among tasks, cancellation, and fork within its event loop."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path

import anyio
import pytest

from scache import AsyncClient, Unavailable
from scache.model import Status
from scache.protocol.messages import DESCRIPTOR_BYTE, HELLO_REPLY, STATUS_REPLY
from tests.support.commands import run_python
from tests.support.daemon import Daemon
from tests.support.dialogue import DEADLINE, until
from tests.support.scripted import HIT, MISS, Script, by_turns, hang, saying, serving, then

pytestmark = pytest.mark.anyio


async def test_tasks_may_share_a_client(path: Path, inline: bool) -> None:
    """Their requests run one after the other."""
    outcomes = []

    async def save(number: int) -> None:
        outcomes.append(await client.save_dest(60, f"{number}", "", ""))

    with Daemon(path):
        async with AsyncClient(path, inline=inline) as client, anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(save, number)
    assert outcomes == [True] * 20


async def test_timeout_includes_the_wait_for_other_tasks(path: Path) -> None:
    """A request that waits for those of other tasks gets no extra time."""
    outcomes: list[float] = []

    async def find() -> None:
        with pytest.raises(Unavailable, match=r"within 0\.1 s"):
            await client.find_endp("endpoint")
        outcomes.append(anyio.current_time() - began)

    with serving(path, hang):
        async with AsyncClient(path, timeout=0.1) as client:
            began = anyio.current_time()
            async with anyio.create_task_group() as tasks:
                for _ in range(200):
                    tasks.start_soon(find)
    assert max(outcomes) < 0.1 * len(outcomes) / 2  # one after the other they take twice as long


class Stopped:
    """A script that does nothing, and lets a task wait until the server runs it."""

    def __init__(self) -> None:
        self._reached = threading.Event()

    def __call__(self, _: socket.socket) -> None:
        """Record that the server runs this script."""
        self._reached.set()

    async def wait(self) -> None:
        """Wait until the server runs this script, and 50 ms longer for the client to read."""
        await until(self._reached.is_set)
        await anyio.sleep(0.05)


STOPS = [
    pytest.param(saying(b""), id="hello"),
    pytest.param(saying(b"", HELLO_REPLY), id="request"),
    pytest.param(saying(b"", HELLO_REPLY, (HIT[:-1], 1)), id="half a hit"),
    pytest.param(saying(b"", STATUS_REPLY[Status.BAD], HIT), id="dummy"),
    pytest.param(saying(b"", HELLO_REPLY, (HIT, 1)), id="half of many"),
]


@pytest.mark.parametrize("stop", STOPS)
async def test_cancelled_request_closes_the_connection(path: Path, stop: Script) -> None:
    """No descriptor is left open, and the next request connects again."""
    anew = saying(b"", STATUS_REPLY[Status.BAD], HIT, (DESCRIPTOR_BYTE, 1), b"")
    stopped = Stopped()
    with serving(path, by_turns(then(stop, stopped, hang), then(anew, hang))) as connections:
        async with AsyncClient(path, timeout=DEADLINE) as client:
            async with anyio.create_task_group() as tasks:
                scope = tasks.cancel_scope
                tasks.start_soon(client.find_many, ["endpoint"] * 2)
                await stopped.wait()
                scope.cancel()
            assert scope.cancelled_caught
            assert "not connected" in repr(client)
            found = await client.find_endp("endpoint")
            assert found is not None
            found.close()
            assert len(connections) == 2


async def test_request_cancelled_before_it_begins_keeps_the_connection(path: Path) -> None:
    """Nothing was sent, so the next request uses the same connection."""
    with serving(path, then(saying(b"", STATUS_REPLY[Status.BAD], MISS), hang)) as connections:
        async with AsyncClient(path, timeout=DEADLINE) as client:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await client.find_endp("endpoint")
            assert scope.cancelled_caught
            assert await client.find_endp("endpoint") is None
            assert len(connections) == 1


async def test_client_cancelled_while_connecting_is_not_connected(path: Path) -> None:
    """The backlog of the server is full, so the client waits. No descriptor is left open."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(str(path))
        listener.listen(0)
        other.connect(str(path))
        client = AsyncClient(path, timeout=DEADLINE)
        with anyio.move_on_after(0.05) as scope:
            await client.find_endp("endpoint")
        assert scope.cancelled_caught
        assert "not connected" in repr(client)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_request_may_be_cancelled_by_asyncio(path: Path) -> None:
    """The effect of `Task.cancel` is the same as that of a cancel scope of anyio."""
    stopped = Stopped()
    script = by_turns(
        then(saying(b"", HELLO_REPLY, (HIT[:-1], 1)), stopped, hang),
        saying(b"", STATUS_REPLY[Status.BAD], MISS),
    )
    with serving(path, script):
        async with AsyncClient(path, timeout=DEADLINE) as client:
            task = asyncio.create_task(client.find_endp("endpoint"))
            await stopped.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await client.find_endp("endpoint") is None


async def test_close_by_another_task_ends_the_request(path: Path) -> None:
    """The request raises Unavailable, and the next one connects again."""
    stopped = Stopped()
    script = by_turns(
        then(saying(b"", HELLO_REPLY), stopped, hang), then(saying(b"", HELLO_REPLY, MISS))
    )
    with serving(path, script):
        async with AsyncClient(path, timeout=DEADLINE) as client:

            async def find() -> None:
                with pytest.raises(Unavailable, match="hung up"):
                    await client.find_endp("endpoint")

            with anyio.fail_after(DEADLINE / 2):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(find)
                    await stopped.wait()
                    client.close()
                assert await client.find_endp("endpoint") is None


FORKING = """
import os, signal, sys, threading
import anyio
from scache import AsyncClient
from tests.support.descriptors import is_asking

path, backend, daemon = sys.argv[1], sys.argv[2], int(sys.argv[3])

async def main():
    async with AsyncClient(path, timeout=60) as client:
        assert await client.save_dest(60, "d", "", "e")
        async with anyio.create_task_group() as tasks:
            os.kill(daemon, signal.SIGSTOP)
            tasks.start_soon(client.find_dest, "d")
            while not is_asking():  # until the request waits for its reply
                await anyio.sleep(0)
            child = os.fork()
            os.kill(daemon, signal.SIGCONT)
            if not child:
                end = []
                run = lambda: end.append(anyio.run(in_child, client, backend=backend))
                thread = threading.Thread(target=run)
                thread.start()
                thread.join()
                os._exit(0 if end == ["well"] else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert await client.find_dest("d") is None

async def in_child(client):
    client.close()  # closes the inherited copy of the parent's connection
    found = []
    async def find():
        found.append(await client.find_dest("d"))
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(find)
    assert found == [None] * 3
    client.close()
    return "well"

anyio.run(main, backend=backend)
"""


def test_client_works_in_parent_and_child_after_fork_during_a_request(
    path: Path, anyio_backend_name: str
) -> None:
    """The child opens its own connection, and the parent completes its request."""
    with Daemon(path) as daemon:
        done = run_python(FORKING, path, anyio_backend_name, daemon.pid)
    assert done.stderr == ""
    assert done.returncode == 0
