"""The poller, back-pressure, and the watchdog: one client does not delay the others."""

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
    """Return a function that counts the calls of `call_soon` from now on that are still queued."""
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


def test_poller_queues_one_slice_at_a_time(runner: asyncio.Runner) -> None:
    """The event loop has one call of the poller queued, independent of the number of callbacks."""

    async def flood() -> int:
        loop = asyncio.get_running_loop()
        queued = count_queued(loop)
        poller = Poller(loop)
        reading, writing = socket.socketpair()
        with reading, writing, closing(poller):
            writing.send(b"x")  # never read: ready at every poll, as under sustained load

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


def test_poller_calls_later_even_if_no_descriptor_is_ready(
    runner: asyncio.Runner,
) -> None:
    """`call_later` schedules a slice itself, each time."""

    async def call() -> None:
        poller = Poller(asyncio.get_running_loop())
        with closing(poller):
            for _ in range(3):
                called = asyncio.Event()
                poller.call_later(called.set)
                async with asyncio.timeout(5):
                    await called.wait()

    runner.run(call())


def test_poller_goes_on_after_a_callback_that_fails(
    runner: asyncio.Runner, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception of one callback is logged, and the other callbacks are called."""

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
    """Return the running loop; each reading of its clock advances it by ``step`` seconds."""
    loop = asyncio.get_running_loop()
    ticks = itertools.count()
    loop.time = lambda: 1000 + next(ticks) * step  # type: ignore[method-assign]
    return loop


def add_ready(stack: ExitStack, poller: Poller, count: int, callback: Callable[[], None]) -> None:
    """Add ``count`` sockets that are always ready, because nothing is read from them."""
    for _ in range(count):
        reading, writing = map(stack.enter_context, socket.socketpair())
        writing.send(b"x")
        poller.add(reading.fileno(), callback)


@pytest.mark.parametrize("ready", [7, 8, 16])
def test_poller_serves_heavy_clients_while_light_ones_are_always_ready(
    runner: asyncio.Runner, ready: int
) -> None:
    """Light clients that take longer than a slice do not starve a heavy client."""
    served = asyncio.Event()

    async def wait() -> None:
        loop = ticking_loop(5e-4)
        poller = Poller(loop)

        def look() -> None:
            loop.time()

        with ExitStack() as stack:
            stack.callback(poller.close)
            add_ready(stack, poller, ready, look)
            poller.enqueue(10_000, served.set)
            for _ in range(100):
                await asyncio.sleep(0)

    runner.run(wait())
    assert served.is_set()


def test_pipeline_is_answered_completely_when_its_replies_do_not_fit(path: Path) -> None:
    """The daemon goes on with a pipeline once the client has read the first replies."""
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


def test_paused_poller_serves_no_descriptor(runner: asyncio.Runner) -> None:
    """A descriptor that becomes ready during the pause is served after it."""

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
    """A client of the watchdog."""

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
    """A client that makes steps, or is between two exchanges, is not overdue."""
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
    """The timeout runs from the beginning of the exchange in progress."""
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


def test_watchdog_drops_a_client_that_sends_an_endless_label(path: Path) -> None:
    """The speed of the client and the number of its quanta do not matter."""
    with Daemon(path, "--exchange-timeout", "0.3") as daemon, Wire(path) as client:
        client.announcement()
        client.send(b"request\0find_endp\0label\0")
        with suppress(BrokenPipeError, ConnectionResetError):
            while True:
                client.send(b"x" * 65536)
        daemon.wait_for_log("stopped in the middle of an exchange")


def test_replies_are_whole_when_the_client_does_not_read(path: Path, database: str) -> None:
    """Pipelined exchanges are answered byte for byte after the client begins to read."""
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
