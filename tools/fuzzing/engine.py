"""A fuzzer that needs nothing but Python: it mutates inputs, and keeps those that reach new code.

What is reached is the set of steps from one line to another in `scache.protocol`. Python 3.12 and
later tell the lines to sys.monitoring, which forgets those that are known, and which costs next to
nothing; before, sys.settrace sees a part of the inputs.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import CodeType, FrameType
from typing import Any, NamedTuple

import scache.protocol
from fuzzing.target import Broken, check

HANG = 10.0
"""Seconds after which an input is said to hang: the slowest takes some milliseconds."""

TRACED = 8
"""One input in so many is traced, where that is slow."""

PROTOCOL = str(Path(scache.protocol.__file__).parent)

TOKENS = (
    *(b"request", b"save_endp", b"find_endp", b"save_dest", b"find_dest", b"hello", b"snapshot"),
    *(b"purge_endp", b"purge_dest", b"ttl", b"label", b"property", b"dummy", b"status", b"version"),
    *(b"server", b"count", b"reason", b"protocol", b"connection_cache_protocol", b"h", b"0", b"7"),
    *(b"purge_id", b"id", b"features", b"9223372036854775807", b"9223372036854775808"),
    *(b"", b"\0", b"dummy\0\0\0", b"request\0", b"-1", b"4294967296", b"\x01" * 12, b"\xff"),
    b"request\0find_endp\0label\0h\0\0",
    b"request\0save_endp\0ttl\x007\0label\0e\0property\0p\0\0",
    b"request\0save_dest\0ttl\x007\0label\0d\0property\0p\0label\0e\0\0",
    b"request\0hello\0\0",
    b"request\0hello\0features\0purge_id\0\0",
    b"request\0purge_id\0id\x007\0\0",
    b"status\x000\0property\0p\0\0",
    b"status\x000\0version\x001\0server\0s\0\0",
    b"status\x000\0version\x001\0server\0s\0features\0purge_id\0\0",
)


Trace = Callable[[FrameType, str, object], Any]
"""What sys.settrace takes."""


class Failure(NamedTuple):
    """An input that a bug showed itself with."""

    data: bytes
    error: BaseException


class Outcome(NamedTuple):
    """What fuzzing came to."""

    inputs: int
    seconds: float
    corpus: int
    """Inputs that each reached something new."""
    reached: int
    """Lines, or steps from one to another, that were reached."""
    slowest: float
    """Seconds."""
    failure: Failure | None


class Coverage:
    """What has been reached in the protocol."""

    def __init__(self) -> None:
        self.seen: set[Any] = set()
        self._at: Any = None
        self._codes: dict[CodeType, bool] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what runs meanwhile."""
        sys.settrace(self._on_call)
        try:
            yield
        finally:
            sys.settrace(None)

    def _on_call(self, frame: FrameType, event: str, _: object) -> Trace | None:
        del event
        code = frame.f_code
        ours = self._codes.get(code)
        if ours is None:
            ours = self._codes[code] = code.co_filename.startswith(PROTOCOL)
        return self._on_line if ours else None

    def _on_line(self, frame: FrameType, event: str, _: object) -> Trace:
        if event == "line":
            here = (frame.f_code, frame.f_lineno)
            self.seen.add((self._at, here))
            self._at = here
        return self._on_line


class Monitored(Coverage):
    """The same by sys.monitoring: lines alone, each of which is reported once."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what runs meanwhile."""
        monitoring = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
        tool = monitoring.COVERAGE_ID
        if monitoring.get_tool(tool) is None:
            monitoring.use_tool_id(tool, "scache fuzzing")
            monitoring.register_callback(tool, monitoring.events.LINE, self._on_new_line)
            monitoring.set_events(tool, monitoring.events.LINE)
        yield

    def _on_new_line(self, code: CodeType, line: int) -> object:
        if code.co_filename.startswith(PROTOCOL):
            self.seen.add((code, line))
        return sys.monitoring.DISABLE  # type: ignore[attr-defined,unused-ignore]


def fuzz(
    seeds: Sequence[bytes], inputs: int, seed: int, say: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Try so many inputs, the seeds first; stop at the first that shows a bug."""
    random = Random(seed)
    cheap = sys.version_info >= (3, 12)
    coverage = Monitored() if cheap else Coverage()
    corpus: list[bytes] = []
    began = told = time.monotonic()
    slowest = 0.0
    tried = 0
    failure = None
    signal.signal(signal.SIGALRM, _hung)
    while tried < inputs and failure is None:
        data = seeds[tried] if tried < len(seeds) else mutate(random, corpus or list(seeds))
        traced = cheap or tried < len(seeds) or tried % TRACED == 0
        tried += 1
        before, since = len(coverage.seen), time.perf_counter()
        failure = _try(data, coverage if traced else None)
        slowest = max(slowest, time.perf_counter() - since)
        if len(coverage.seen) > before or tried <= len(seeds):
            corpus.append(data)
        if time.monotonic() > told + 10:
            told = time.monotonic()
            say(f"{tried} inputs, {len(corpus)} kept, {len(coverage.seen)} reached")
    elapsed = time.monotonic() - began
    return Outcome(tried, elapsed, len(corpus), len(coverage.seen), slowest, failure)


def _try(data: bytes, coverage: Coverage | None) -> Failure | None:
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        if coverage is None:
            check(data)
        else:
            with coverage.watching():
                check(data)
    except Exception as error:  # noqa: BLE001 - whichever it is, it is what we look for
        return Failure(data, error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def _hung(*_: object) -> None:
    raise Broken(f"it hangs: {HANG:.0f} seconds were not enough")


def mutate(random: Random, corpus: Sequence[bytes]) -> bytes:
    """Return an input that is another one with some things done to it."""
    data = bytearray(random.choice(corpus))
    for _ in range(random.choice((1, 1, 2, 3, 5))):
        at = random.randrange(len(data) + 1)
        random.choice(_MUTATIONS)(random, data, at, corpus)
    return bytes(data)


Mutation = Callable[[Random, bytearray, int, Sequence[bytes]], None]


def _flip(random: Random, data: bytearray, at: int, _: Sequence[bytes]) -> None:
    data[at : at + 1] = bytes((random.randrange(256),))


def _flip_control(random: Random, data: bytearray, at: int, _: Sequence[bytes]) -> None:
    """Change the flags, or the size of a piece or what comes with it."""
    at %= min(len(data), 2 + 2 * (data[1] if len(data) > 1 else 0)) or 1
    data[at : at + 1] = bytes((random.randrange(256),))


def _put_token(random: Random, data: bytearray, at: int, _: Sequence[bytes]) -> None:
    token = random.choice(TOKENS)
    data[at : at + random.choice((0, 0, len(token), 1))] = token + b"\0" * random.randrange(3)


def _remove(random: Random, data: bytearray, at: int, _: Sequence[bytes]) -> None:
    del data[at : at + random.choice((1, 1, 2, 8, 40))]


def _repeat(random: Random, data: bytearray, at: int, _: Sequence[bytes]) -> None:
    if len(data) < MAX_INPUT:
        data[at:at] = data[at : at + random.choice((1, 4, 30, 100))] * random.choice((1, 2, 8))


def _splice(random: Random, data: bytearray, at: int, corpus: Sequence[bytes]) -> None:
    other = random.choice(corpus)
    start = random.randrange(len(other) + 1)
    data[at:] = other[start : start + MAX_INPUT]


MAX_INPUT = 4096
"""Bytes of an input from which on it is not made longer."""

_MUTATIONS: tuple[Mutation, ...] = (
    *(_flip, _flip_control, _flip_control, _put_token, _put_token, _remove, _repeat, _splice),
)
