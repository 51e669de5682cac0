"""Nobody waits for anybody else: turns, slices of time, back-pressure, and who is half-way."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from asyncio import Handle
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from scache.daemon.poller import Poller
from scache.daemon.watchdog import Watchdog
from tests.support.daemon import Daemon
from tests.support.wire import DESCRIPTOR_BYTE, DUMMY, Wire, encode


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """Run coroutines on one loop."""
    with asyncio.Runner() as runner:
        yield runner


def count_queued(loop: asyncio.AbstractEventLoop) -> Callable[[], int]:
    """Return what tells how many calls of `call_soon` from now on wait to be done."""
    call_soon, queued = loop.call_soon, 0

    def count(callback: Callable[..., object], *arguments: Any, context: Any = None) -> Handle:  # noqa: ANN401 - the loop's
        nonlocal queued
        queued += 1

        def call() -> None:
            nonlocal queued
            queued -= 1
            callback(*arguments)

        return call_soon(call, context=context)

    loop.call_soon = count  # type: ignore[method-assign,assignment]
    return lambda: queued


def test_turns_do_not_pile_up(runner: asyncio.Runner) -> None:
    """However much is to be called later, the loop has one turn of it queued at a time."""

    async def flood() -> int:
        loop = asyncio.get_running_loop()
        queued = count_queued(loop)
        poller = Poller(loop)
        reading, writing = socket.socketpair()
        with reading, writing, closing(poller):
            writing.send(b"x")  # never read: ready at every turn, as under sustained load

            def again() -> None:
                poller.call_later(again)

            poller.add(reading.fileno(), lambda: None)
            for _ in range(10):
                again()
            most = 0
            for _ in range(30):
                await asyncio.sleep(0)
                most = max(most, queued())
            poller.remove(reading.fileno())
        return most

    assert runner.run(flood()) < 5


def test_what_is_to_be_called_later_is_called_though_nothing_is_ready(
    runner: asyncio.Runner,
) -> None:
    """A turn comes by itself, once and again."""

    async def call() -> None:
        poller = Poller(asyncio.get_running_loop())
        with closing(poller):
            for _ in range(3):
                called = asyncio.Event()
                poller.call_later(called.set)
                async with asyncio.timeout(5):
                    await called.wait()

    runner.run(call())


def test_a_callback_that_fails_keeps_nobody_else_from_being_served(
    runner: asyncio.Runner, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception out of one callback is logged, and the others are called."""

    async def call() -> None:
        poller = Poller(asyncio.get_running_loop())
        with closing(poller):
            called = asyncio.Event()
            poller.call_later(lambda: 1 // 0)  # type: ignore[arg-type]
            poller.call_later(called.set)
            async with asyncio.timeout(5):
                await called.wait()

    runner.run(call())
    assert "please report it" in caplog.text


def ticking_loop(step: float) -> asyncio.AbstractEventLoop:
    """Return the running loop, whose clock from now on goes on by so much at each look at it."""
    loop = asyncio.get_running_loop()
    ticks = itertools.count()
    loop.time = lambda: 1000 + next(ticks) * step  # type: ignore[method-assign]
    return loop


def add_ready(stack: ExitStack, poller: Poller, count: int, callback: Callable[[], None]) -> None:
    """Let so many sockets be ready for ever: what they have to read never is."""
    for _ in range(count):
        reading, writing = map(stack.enter_context, socket.socketpair())
        writing.send(b"x")
        poller.add(reading.fileno(), callback)


@pytest.mark.parametrize("ready", [7, 8, 16])
def test_heavy_clients_are_served_however_many_are_ready(
    runner: asyncio.Runner, ready: int
) -> None:
    """Light clients that are always ready, and take longer than a slice, starve no heavy client."""
    turned = asyncio.Event()

    async def wait() -> None:
        loop = ticking_loop(5e-4)
        poller = Poller(loop)

        def look() -> None:
            loop.time()

        with ExitStack() as stack:
            stack.callback(poller.close)
            add_ready(stack, poller, ready, look)
            poller.enqueue(10_000, turned.set)
            for _ in range(100):
                await asyncio.sleep(0)

    runner.run(wait())
    assert turned.is_set()


def test_a_client_goes_on_when_its_replies_have_been_taken(path: Path) -> None:
    """Much that is sent at once, and whose replies do not fit, is answered to its end."""
    hit = encode([(b"request", b"find_endp"), (b"label", b"e")])
    miss = encode([(b"request", b"find_endp"), (b"label", b"n" * 30)])
    with Daemon(path) as daemon, ExitStack() as stack:
        other = stack.enter_context(Wire(path))
        other.announcement()
        for _ in range(20):
            with Wire(path) as client, Path(os.devnull).open("rb") as something:
                client.announcement()
                for _ in range(8):
                    client.save_endp(60, b"e", b"p" * 60_000, something.fileno())
                client.send(encode([(b"request", b"hello")]))
                client.receive_message()
                client.send(hit * 8 + miss * 120)
                for _ in range(128):
                    other.send(miss)
                    other.receive_message()
                    client.receive_message()
        assert not [line for line in daemon.log() if "stopped" in line]


def test_nobody_is_served_during_a_pause(runner: asyncio.Runner) -> None:
    """What becomes ready during a pause is served after it."""

    async def pause() -> None:
        poller = Poller(asyncio.get_running_loop())
        reading, writing = socket.socketpair()
        with reading, writing, closing(poller):
            served = asyncio.Event()

            def serve() -> None:
                reading.recv(1)
                served.set()

            poller.add(reading.fileno(), serve)
            with poller.paused():
                writing.send(b"x")
                poller.call_later(lambda: None)
                for _ in range(10):
                    await asyncio.sleep(0)
                assert not served.is_set()
            async with asyncio.timeout(5):
                await served.wait()
            poller.remove(reading.fileno())

    runner.run(pause())


class Member:
    """A client to be watched."""

    half_done = True
    progress = 0
    awaited_quantum: int | None = None

    def overdue(self) -> None:
        """Do nothing; these tests only look."""


@pytest.mark.parametrize(
    ("timeout", "interval"), [(5, 0.5), (0.5, 0.05), (60, 0.5), (5.6, 5.6 / 12), (3600, 0.5)]
)
def test_watchdog_finds_a_client_one_interval_after_its_timeout(
    timeout: float, interval: float
) -> None:
    """A client that makes steps, or owes nothing, is not overdue."""
    watchdog: Watchdog[Member] = Watchdog(timeout)
    assert watchdog.interval == pytest.approx(interval)
    stopped, moving, idle = Member(), Member(), Member()
    idle.half_done = False
    looks = 0
    while not (overdue := watchdog.look([stopped, moving, idle])):
        moving.progress += 1
        looks += 1
    assert overdue == [stopped]
    assert looks * watchdog.interval == pytest.approx(timeout + watchdog.interval)


def test_watchdog_starts_over_with_each_exchange() -> None:
    """The time runs from the beginning of the exchange that is under way."""
    watchdog: Watchdog[Member] = Watchdog(5)
    member = Member()
    for look in range(20):
        member.half_done = look != 10
        assert watchdog.look([member]) == []


def test_watchdog_allows_for_the_wait_for_a_quantum() -> None:
    """A client that waits for its quantum is not overdue; one that has quanta and no step is."""
    watchdog: Watchdog[Member] = Watchdog(5)
    waiting, endless = Member(), Member()
    waiting.awaited_quantum, endless.awaited_quantum = 3, 0
    overdue: list[Member] = []
    while not overdue:
        endless.awaited_quantum += 1
        overdue = watchdog.look([waiting, endless])
    assert overdue == [endless]
    waiting.awaited_quantum = None
    looks = 0
    while not watchdog.look([waiting]):
        looks += 1
    assert looks == 10


def test_a_label_without_end_is_ended(path: Path) -> None:
    """However fast it comes, and however many quanta it has."""
    with Daemon(path, "--exchange-timeout", "0.3") as daemon, Wire(path) as client:
        client.announcement()
        client.send(b"request\0find_endp\0label\0")
        with suppress(BrokenPipeError, ConnectionResetError):
            while True:
                client.send(b"x" * 65536)
        daemon.wait_for_log("stopped in the middle of an exchange")


def test_replies_are_whole_when_the_client_does_not_read(path: Path, database: str) -> None:
    """Exchanges sent ahead of large replies that nobody reads yet are answered byte for byte."""
    count, properties = 8, b"p" * 60_000
    find = encode([(b"request", b"find_endp"), (b"label", b"e")])
    reply = encode([(b"status", b"0"), (b"property", properties)])
    reading, writing = os.pipe()
    with (
        os.fdopen(reading, "rb"),
        os.fdopen(writing, "wb"),
        Daemon(path, database=database),
        Wire(path) as client,
    ):
        client.announcement()
        for _ in range(count):
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
