"""Nobody waits for anybody else: turns, slices of time, back-pressure, and who is half-way."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import select
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path

import pytest

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


def ticking_loop(step: float) -> asyncio.AbstractEventLoop:
    """Return the running loop, whose clock from now on goes on by so much at each look at it."""
    loop = asyncio.get_running_loop()
    ticks = itertools.count()
    loop.time = lambda: 1000 + next(ticks) * step  # type: ignore[method-assign]
    return loop


def add_ready(
    stack: ExitStack, readiness: Readiness, count: int, callback: Callable[[], None]
) -> None:
    """Let so many sockets be ready for ever: what they have to read never is."""
    for _ in range(count):
        reading, writing = map(stack.enter_context, socket.socketpair())
        writing.send(b"x")
        readiness.add(reading.fileno(), callback)


def served(
    runner: asyncio.Runner, *, waiting: int, company: bool = True, soon: int | None = None
) -> str:
    """Let so many ask for turn after turn, and perhaps one for little, again and again.

    Return, for a tenth of a second of a clock that goes on by 0.05 ms whenever somebody looks at
    it, a T for each turn, t for those of the one who asks for it ``soon``, and s for the others.
    """
    record: list[str] = []

    async def serve() -> None:
        loop = ticking_loop(5e-5)
        readiness = Readiness(loop)
        reading, writing = socket.socketpair()
        writing.send(b"x")  # never read, so there is always something to serve

        def turn(number: int) -> None:
            record.append("t" if number == soon else "T")
            ask(number)

        def ask(number: int) -> None:
            readiness.take_turn(10_000 + number, partial(turn, number), soon=number == soon)

        with reading, writing, closing(readiness):
            if company:
                readiness.add(reading.fileno(), lambda: record.append("s"))
            for number in range(waiting):
                ask(number)
            while loop.time() < 1000.1:  # noqa: ASYNC110 - turns of the loop are what is wanted
                await asyncio.sleep(0)
            readiness.remove(reading.fileno())

    runner.run(serve())
    return "".join(record)


def windows(record: str) -> tuple[list[str], list[str]]:
    """Return the windows of turns, and what others had between two of these."""
    return re.findall("(?:Ts)+", record), re.findall("ss+", record)[1:-1]


def test_who_asks_for_much_leaves_time_to_others(runner: asyncio.Runner) -> None:
    """While others are served, milliseconds of theirs come after each few turns."""
    turns, others = windows(served(runner, waiting=1))
    assert 10 <= len(turns) <= 20
    assert 3 <= max(len(each) // 2 for each in turns) <= 12
    assert min(map(len, others)) >= 15


def test_if_many_ask_for_much_they_have_more_of_the_time(runner: asyncio.Runner) -> None:
    """They have more turns before the others have their time, which they have all the same."""
    turns, others = windows(served(runner, waiting=64))
    assert len(turns) >= 8
    assert 15 <= max(len(each) // 2 for each in turns) <= 40
    assert min(map(len, others)) >= 8


def test_who_asks_for_little_waits_for_one_turn_at_the_most(runner: asyncio.Runner) -> None:
    """However many wait, and whosever time it is, who is ready is served between two turns."""
    assert not re.search("TT", served(runner, waiting=64))


@pytest.mark.parametrize(("ready", "at_least"), [(1, 0.25), (16, 0.25), (64, 0.14), (250, 0.11)])
def test_who_asks_for_much_has_a_share_however_busy_the_others_are(
    runner: asyncio.Runner, ready: int, at_least: float
) -> None:
    """With 64 of the ones, and as many others as there are, all of them without a pause."""
    now, turns = 1000.0, 0.0

    def serve() -> None:
        nonlocal now
        now += 4e-5

    def turn() -> None:
        nonlocal now, turns
        now += 5e-4
        turns += 5e-4
        readiness.take_turn(10_000, turn)

    async def work() -> None:
        with ExitStack() as stack:
            stack.callback(readiness.close)
            add_ready(stack, readiness, ready, serve)
            for _ in range(64):
                readiness.take_turn(10_000, turn)
            while now < 1001:  # noqa: ASYNC110 - turns of the loop are what is wanted
                await asyncio.sleep(0)

    loop = runner.get_loop()
    loop.time = lambda: now  # type: ignore[method-assign]
    readiness = Readiness(loop)
    runner.run(work())
    assert at_least <= turns / (now - 1000) <= 0.35


def test_who_asks_for_a_turn_soon_waits_for_one_other(runner: asyncio.Runner) -> None:
    """However many are waiting, every second turn is there for new clients."""
    turns = served(runner, waiting=10, soon=9).replace("s", "")
    assert "Tt" * 20 in turns
    assert "tt" not in turns


def test_who_asks_for_much_has_all_the_time_that_nobody_else_wants(
    runner: asyncio.Runner,
) -> None:
    """Turn follows turn when there is nobody else to be served."""
    assert len(served(runner, waiting=1, company=False)) >= 200


def test_who_asked_for_much_lately_is_no_company(runner: asyncio.Runner) -> None:
    """Those who send much in pieces, small ones among them, do not slow each other down."""
    counts = Counter[str]()

    async def count() -> None:
        loop = ticking_loop(5e-5)
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


class Looks:
    """An epoll that says for how long somebody was ready to sleep in it."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self.timeouts: list[float] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._epoll, name)

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """Look, and do not sleep."""
        self.timeouts.append(timeout)
        return self._epoll.poll(0)


@pytest.mark.parametrize("stay_awake", [True, False])
@pytest.mark.parametrize("waiting", [True, False])
def test_who_stays_awake_sleeps_only_if_nobody_waits_for_a_turn(
    runner: asyncio.Runner, *, stay_awake: bool, waiting: bool
) -> None:
    """So that it burns no processor when there is nothing to be done."""

    async def look() -> float:
        loop = ticking_loop(5e-5)
        readiness = Readiness(loop, stay_awake=stay_awake)
        reading, writing = socket.socketpair()

        def turn() -> None:
            readiness.take_turn(10_000, turn)

        def serve() -> None:
            reading.recv(1)

        with reading, writing, closing(readiness):
            if waiting:
                turn()
            readiness.add(reading.fileno(), serve)
            readiness._epoll = looks = Looks(readiness._epoll)  # type: ignore[assignment]
            for _ in range(20):
                writing.send(b"x")
                for _ in range(20):
                    await asyncio.sleep(0)
            readiness.remove(reading.fileno())
        return max(looks.timeouts)

    assert (runner.run(look()) == 0) == (stay_awake and waiting)


@pytest.mark.parametrize("ready", [7, 8, 16])
def test_turns_come_however_many_are_ready(runner: asyncio.Runner, ready: int) -> None:
    """Those who are always ready, and take longer than a slice, keep nobody from his turn."""
    turned = asyncio.Event()

    async def wait() -> None:
        loop = ticking_loop(5e-4)
        readiness = Readiness(loop)

        def look() -> None:
            loop.time()

        with ExitStack() as stack:
            stack.callback(readiness.close)
            add_ready(stack, readiness, ready, look)
            readiness.take_turn(10_000, turned.set)
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


class SetClock:
    """A clock that a test sets."""

    time = 0.0

    def now(self) -> float:
        """Return what it was set to."""
        return self.time


class Member:
    """Somebody to be watched."""

    half_done = True
    progress = 0
    awaited_turn: int | None = None


def test_who_makes_no_step_for_the_whole_timeout_is_overdue() -> None:
    """Being half-way for long is allowed as long as steps are made; being done is no crime."""
    clock = SetClock()
    watchdog: Watchdog[Member] = Watchdog(clock.now, 5)
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
    watchdog: Watchdog[Member] = Watchdog(clock.now, 5)
    member = Member()
    for clock.time in range(9):
        member.half_done = clock.time != 4
        assert watchdog.look([member]) == []


def test_who_waits_for_a_turn_has_time() -> None:
    """We hang up on nobody who could not go on, but turns without a step are no excuse."""
    clock = SetClock()
    watchdog: Watchdog[Member] = Watchdog(clock.now, 5)
    waiting, endless = Member(), Member()
    waiting.awaited_turn = 3
    overdue = []
    for clock.time in range(20):
        endless.awaited_turn = int(clock.time)
        overdue += watchdog.look([waiting, endless])
        if overdue:
            break
    assert (overdue, clock.time) == ([endless], 5)
    waiting.awaited_turn = None
    assert watchdog.look([waiting]) == []
    clock.time += 5
    assert watchdog.look([waiting]) == [waiting]


def test_a_label_without_end_is_ended(path: Path) -> None:
    """However fast it comes, and however many turns it has."""
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
