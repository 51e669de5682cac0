"""Nobody waits for anybody else: turns, slices of time, back-pressure, and who is half-way."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from scache.clock import Clock
from scache.daemon.readiness import Readiness
from scache.daemon.watchdog import Watchdog
from tests.support.daemon import Daemon
from tests.support.wire import DESCRIPTOR_BYTE, DUMMY, Wire, encode


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """Run coroutines on one loop."""
    with asyncio.Runner() as runner:
        yield runner


def test_turns_do_not_pile_up(runner: asyncio.Runner) -> None:
    """However much is to be called later, the loop has one turn of it queued at a time."""

    async def flood() -> int:
        loop = asyncio.get_running_loop()
        readiness = Readiness(loop)
        reading, writing = socket.socketpair()
        with reading, writing, closing(readiness):
            writing.send(b"x")  # never read: ready at every turn, as under sustained load

            def again() -> None:
                readiness.call_later(again)

            readiness.add(reading.fileno(), lambda: None)
            for _ in range(10):
                again()
            most = 0
            for _ in range(30):
                await asyncio.sleep(0)
                most = max(most, len(loop._ready))  # type: ignore[attr-defined]
            readiness.remove(reading.fileno())
        return most

    assert runner.run(flood()) < 5


def test_what_is_to_be_called_later_is_called_though_nothing_is_ready(
    runner: asyncio.Runner,
) -> None:
    """A turn comes by itself, once and again."""

    async def call() -> None:
        readiness = Readiness(asyncio.get_running_loop())
        with closing(readiness):
            for _ in range(3):
                called = asyncio.Event()
                readiness.call_later(called.set)
                async with asyncio.timeout(5):
                    await called.wait()

    runner.run(call())


def test_a_callback_that_fails_keeps_nobody_else_from_being_served(
    runner: asyncio.Runner, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception out of one callback is logged, and the others are called."""

    async def call() -> None:
        readiness = Readiness(asyncio.get_running_loop())
        with closing(readiness):
            called = asyncio.Event()
            readiness.call_later(lambda: 1 // 0)  # type: ignore[arg-type]
            readiness.call_later(called.set)
            async with asyncio.timeout(5):
                await called.wait()

    runner.run(call())
    assert "please report it" in caplog.text


def test_nobody_is_served_during_a_pause(runner: asyncio.Runner) -> None:
    """What becomes ready during a pause is served after it."""

    async def pause() -> None:
        readiness = Readiness(asyncio.get_running_loop())
        reading, writing = socket.socketpair()
        with reading, writing, closing(readiness):
            served = asyncio.Event()

            def serve() -> None:
                reading.recv(1)
                served.set()

            readiness.add(reading.fileno(), serve)
            with readiness.paused():
                writing.send(b"x")
                readiness.call_later(lambda: None)
                for _ in range(10):
                    await asyncio.sleep(0)
                assert not served.is_set()
            async with asyncio.timeout(5):
                await served.wait()
            readiness.remove(reading.fileno())

    runner.run(pause())


class SetClock(Clock):
    """A clock that a test sets."""

    time = 0.0

    def now(self) -> float:
        """Return what it was set to."""
        return self.time


class Member:
    """Somebody to be watched."""

    half_done = True
    progress = 0


def test_who_makes_no_step_for_the_whole_timeout_is_overdue() -> None:
    """Being half-way for long is allowed as long as steps are made; being done is no crime."""
    clock = SetClock()
    watchdog: Watchdog[Member] = Watchdog(clock, 5)
    stopped, moving, idle = Member(), Member(), Member()
    idle.half_done = False
    overdue = []
    for clock.time in range(7):
        moving.progress += 1
        overdue += watchdog.look([stopped, moving, idle])
        if overdue:
            break
    assert (overdue, clock.time) == ([stopped], 5)


def test_who_was_done_in_between_begins_anew() -> None:
    """The time runs from the beginning of the exchange that is under way."""
    clock = SetClock()
    watchdog: Watchdog[Member] = Watchdog(clock, 5)
    member = Member()
    for clock.time in range(9):
        member.half_done = clock.time != 4
        assert watchdog.look([member]) == []


def test_replies_are_whole_when_the_client_does_not_read(path: Path, database: str) -> None:
    """Exchanges sent ahead of large replies that nobody reads yet are answered byte for byte."""
    count, properties = 8, b"p" * 60_000
    find = encode([(b"request", b"find_endp"), (b"label", b"e")])
    reply = encode([(b"status", b"0"), (b"property", properties)])
    with Daemon(path, database=database), Wire(path) as client:
        client.announcement()
        for _ in range(count):
            reading, writing = os.pipe()
            with os.fdopen(reading, "rb"), os.fdopen(writing, "wb"):
                client.save_endp(60, b"e", properties, reading)
        client.send((find + DUMMY + DUMMY) * count)
        expected = (reply + DESCRIPTOR_BYTE) * count
        received, descriptors = b"", []
        while len(received) < len(expected):
            data, more = client.receive_raw(5)
            received += data
            descriptors += more
        for descriptor in descriptors:
            os.close(descriptor)
        assert received == expected
        assert len(descriptors) == count
