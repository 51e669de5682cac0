"""Nobody waits for anybody else: turns, slices of time, back-pressure, and who is half-way."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
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


def turns_and_services(runner: asyncio.Runner, *, waiting: int, company: bool) -> tuple[int, int]:
    """Let so many ask for turn after turn, and perhaps one for little, again and again.

    Return how many turns there were and how often that one was served in a tenth of a second
    of a clock that goes on by 0.05 ms whenever somebody looks at it.
    """
    counts = Counter[str]()
    ticks = itertools.count()

    async def count() -> None:
        loop = asyncio.get_running_loop()
        loop.time = lambda: 1000 + next(ticks) * 5e-5  # type: ignore[method-assign]
        readiness = Readiness(loop)
        reading, writing = socket.socketpair()
        writing.send(b"x")  # never read, so there is always something to serve

        def turn(descriptor: int) -> None:
            counts["turns"] += 1
            readiness.take_turn(descriptor, partial(turn, descriptor))

        with reading, writing, closing(readiness):
            if company:
                readiness.add(reading.fileno(), lambda: counts.update(["services"]))
            for descriptor in range(10_000, 10_000 + waiting):
                readiness.take_turn(descriptor, partial(turn, descriptor))
            while loop.time() < 1000.1:  # noqa: ASYNC110 - turns of the loop are what is wanted
                await asyncio.sleep(0)
            readiness.remove(reading.fileno())

    runner.run(count())
    return counts["turns"], counts["services"]


@pytest.mark.parametrize("waiting", [1, 64])
def test_who_asks_for_much_leaves_time_to_others(runner: asyncio.Runner, waiting: int) -> None:
    """A turn comes every few milliseconds while others are served: more of them if many wait."""
    turns, services = turns_and_services(runner, waiting=waiting, company=True)
    batches = turns / (1 + waiting // 8)
    assert 20 <= batches <= 50
    assert services >= 5 * batches


def test_who_asks_for_much_has_all_the_time_that_nobody_else_wants(
    runner: asyncio.Runner,
) -> None:
    """Turn follows turn when there is nobody else to be served."""
    turns, _ = turns_and_services(runner, waiting=1, company=False)
    assert turns >= 300


def test_who_asked_for_much_lately_is_no_company(runner: asyncio.Runner) -> None:
    """Those who send much in pieces, small ones among them, do not slow each other down."""
    counts = Counter[str]()

    async def count() -> None:
        loop = asyncio.get_running_loop()
        readiness = Readiness(loop)
        reading, writing = socket.socketpair()
        descriptor = reading.fileno()
        writing.send(b"x")

        def turn() -> None:
            counts["turns"] += 1
            readiness.take_turn(descriptor, turn)

        with reading, writing, closing(readiness):
            readiness.add(descriptor, lambda: counts.update(["services"]))
            readiness.take_turn(descriptor, turn)
            while counts["services"] < 1000:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
            readiness.remove(descriptor)

    runner.run(count())
    assert counts["turns"] >= 900


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
