"""The engine for machines without atheris: Hypothesis edits recorded inputs at random."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from harness.fuzz.invariants import InvariantError
from harness.fuzz.target import check

HANG = 10.0
"""Seconds after which an input counts as a hang; the slowest takes some milliseconds."""

MAX_INPUT = 4096
"""Bytes; an input of this size is not made longer."""

TOKENS = (
    *(b"request", b"save_endp", b"find_endp", b"save_dest", b"find_dest", b"hello", b"snapshot"),
    *(b"purge_endp", b"purge_dest", b"purge_id", b"ttl", b"label", b"property", b"dummy", b"id"),
    *(b"status", b"version", b"server", b"count", b"reason", b"features", b"protocol", b"h", b"0"),
    *(b"connection_cache_protocol", b"7", b"\0", b"dummy\0\0\0", b"request\0", b"-1"),
    *(b"4294967296", b"\x01" * 12, b"\xff", b"ping", b"shortage", b"request\0ping\0\0"),
    b"request\0find_endp\0label\0h\0\0",
    b"request\0save_endp\0ttl\x007\0label\0e\0property\0p\0\0",
    b"request\0save_dest\0ttl\x007\0label\0d\0property\0p\0label\0e\0\0",
    b"request\0hello\0\0",
    b"status\x000\0property\0p\0\0",
    b"status\x000\0version\x001\0server\0s\0\0",
)
"""Text to insert into inputs: names, values and whole messages of the protocol."""


class Outcome(NamedTuple):
    """The result of fuzzing."""

    inputs: int
    slowest: float
    """Seconds of the slowest input."""
    error: BaseException | None
    """The exception that shows a bug; None if there is none."""
    data: bytes
    """The input that raised it."""


# The controls are at the beginning: edit them as often as all the rest.
_PLACES = st.integers(0, 40) | st.integers(0, MAX_INPUT)
_PUT = st.sampled_from(TOKENS) | st.binary(max_size=2)
_EDITS = st.lists(
    st.tuples(_PLACES, st.integers(0, 12), _PUT, st.sampled_from((1, 1, 1, 2, 8))), max_size=5
)


def edited(
    data: bytes, splice: tuple[bytes, int, int] | None, edits: list[tuple[int, int, bytes, int]]
) -> bytes:
    """Return an input with edits, and with the end of another input if ``splice`` names one."""
    if splice is not None:
        other, to, since = splice
        data = data[: to % (len(data) + 1)] + other[since % (len(other) + 1) :]
    for place, removed, put, times in edits:
        at = place % (len(data) + 1)
        more = put * times if len(data) < MAX_INPUT else put
        data = data[:at] + more + data[at + removed :]
    return data


def fuzz(
    seeds: Sequence[bytes], inputs: int, seed: int, on_input: Callable[[int], object]
) -> Outcome:
    """Try the seeds, then inputs made from them; stop at the first bug and shrink its input."""
    slowest, tried, last = 0.0, 0, b""
    signal.signal(signal.SIGALRM, _hung)

    def attempt(data: bytes) -> None:
        nonlocal slowest, tried, last
        tried, last = tried + 1, data
        since = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, HANG)
        try:
            check(data)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        slowest = max(slowest, time.perf_counter() - since)
        on_input(tried)

    start = st.sampled_from(seeds)
    splice = st.none() | st.tuples(start, _PLACES, _PLACES)
    generated = settings(
        max_examples=max(inputs - len(seeds), 1),
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )(hypothesis.seed(seed)(given(st.builds(edited, start, splice, _EDITS))(attempt)))
    try:
        for data in seeds[:inputs]:
            attempt(data)
        if inputs > len(seeds):
            generated()
    except Exception as error:  # noqa: BLE001 - any exception is a bug
        return Outcome(tried, slowest, error, last)  # Hypothesis tries the smallest input last
    return Outcome(tried, slowest, None, b"")


def _hung(*_: object) -> None:
    raise InvariantError(f"an input takes more than {HANG:.0f} seconds")
