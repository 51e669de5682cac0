"""A daemon that was stopped (SIGSTOP) does not count its pause against its clients."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest

from scache.daemon.auto_reset_event import AutoResetEvent
from scache.daemon.idle import IdleTimer
from scache.daemon.maintenance import drop_overdue
from scache.daemon.session import Session
from scache.daemon.watchdog import Watchdog
from scache.model import Status
from scache.protocol.messages import ANNOUNCEMENT, DESCRIPTOR_BYTE, DUMMY, SaveEndp, encode_request
from scache.store.database import MEMORY
from tests.support.daemon import Daemon, stopped
from tests.support.dialogue import Dialogue, eventually, until
from tests.support.slow_session import slow_session
from tests.support.store_fixture import Opened

CLIENTS = 300
"""More clients than the daemon serves between two polls of the watchdog."""


class BegunSaves(NamedTuple):
    """Saves of many clients, which the daemon has asked for their descriptors."""

    daemon: Daemon
    clients: list[Dialogue]

    def send_descriptors(self) -> None:
        """Send the last message of each client."""
        with open(os.devnull, "rb") as file:  # noqa: PTH123
            for client in self.clients:
                client.send(DESCRIPTOR_BYTE, [file.fileno()])

    def statuses(self) -> list[Status]:
        """Receive the replies."""
        return [client.status() for client in self.clients]


@pytest.fixture
def saves(path: Path) -> Iterator[BegunSaves]:
    """Begin the saves."""
    with Daemon(path) as daemon, ExitStack() as stack:
        clients = [stack.enter_context(Dialogue(daemon.path)) for _ in range(CLIENTS)]
        for client in clients:
            client.send(encode_request(SaveEndp(60, b"e", b"")))
        for client in clients:
            client.expect(DUMMY)
        yield BegunSaves(daemon, clients)


@pytest.mark.slow
def test_stopped_daemon_does_not_drop_clients_that_went_on(saves: BegunSaves) -> None:
    """A client that sends the rest of its exchange during the pause gets its reply."""
    time.sleep(0.6)  # the daemon looks at its clients every 0.5 s
    with stopped(saves.daemon.pid):
        time.sleep(5.5)  # the exchange timeout is 5 s
        saves.send_descriptors()
    assert saves.statuses() == [Status.OK] * CLIENTS
    assert not [line for line in saves.daemon.log() if "stopped in the middle" in line]


@pytest.mark.slow
def test_stopped_daemon_completes_exchanges_before_it_exits(saves: BegunSaves) -> None:
    """The time for which the daemon is stopped does not count against the stop time-out."""
    os.kill(saves.daemon.pid, signal.SIGTERM)
    saves.daemon.wait_for_log("stopping")
    with stopped(saves.daemon.pid):
        time.sleep(1.5)  # the stop time-out is 1 s
        saves.send_descriptors()
    assert saves.statuses() == [Status.OK] * CLIENTS
    assert saves.daemon.wait() == 0


class Paused(Watchdog[Session]):
    """A watchdog that blocks the event loop for longer than its timeout after one poll."""

    def __init__(self, pause_after: int) -> None:
        """Pause after this number of polls."""
        super().__init__(0.3)
        self._looks_before = pause_after
        self.resumed = anyio.Event()

    def look(self, clients: Iterable[Session]) -> list[Session]:
        """Poll, and pause if that is due."""
        overdue = super().look(clients)
        self._looks_before -= 1
        if self._looks_before == 0:
            time.sleep(0.4)
        elif self._looks_before < 0:
            self.resumed.set()
        return overdue


@pytest.mark.parametrize("looks", [1, 10], ids=["at the beginning", "at the end"])
def test_client_is_not_disconnected_by_the_poll_after_a_pause(looks: int) -> None:
    """The data that it sent during the pause is read before the next poll."""

    async def pause() -> None:
        watchdog = Paused(looks)
        with slow_session(opened) as slow:
            slow.client.sendall(b"request\0")
            await until(lambda: slow.session.half_done)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(drop_overdue, watchdog, [slow.session], AutoResetEvent())
                await watchdog.resumed.wait()
                assert not opened.database.batch.counts["limit_exchange_timeout"]
                tasks.cancel_scope.cancel()

    with Opened(MEMORY) as opened:
        opened.run(pause())


def test_idle_exit_waits_for_a_client_that_is_not_accepted_yet() -> None:
    """The daemon may have been stopped since before the client connected."""

    async def wait() -> None:
        timer, answers = IdleTimer(0.01), [True, False, False]
        with anyio.fail_after(5):
            await timer.wait(answers.pop)
        assert not answers

    asyncio.run(wait())


def test_idle_exit_leaves_no_client_in_the_backlog(tmp_path: Path) -> None:
    """The daemon waits for a client that it cannot accept because descriptors have run out."""
    with Daemon(tmp_path / "socket", "--max-idle", "0.4") as daemon:
        limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        with Dialogue(daemon.path, announced=False) as client:
            eventually(lambda: len(daemon.log()) > 6)  # it tries again every 0.1 s
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
            client.expect(ANNOUNCEMENT)
            assert client.take_endp(b"nothing") is None
        assert daemon.wait() == 0
