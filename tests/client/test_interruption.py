"""An exception from a signal handler, at any bytecode of a request.

A trace function replaces the signal: it raises before the n-th bytecode that scache executes.
"""

from __future__ import annotations

import dis
import itertools
import os
import socket
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import pytest

import scache
from scache import AsyncClient, Client, Found
from tests.support.clients import Pair
from tests.support.daemon import Daemon
from tests.support.dialogue import DEADLINE

CODE = str(Path(scache.__file__).parent)

pytestmark = [  # the exception drops objects that are still open
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


AWAITING = frozenset(
    dis.opmap[name] for name in ("SEND", "YIELD_VALUE", "RESUME", "JUMP_BACKWARD_NO_INTERRUPT")
)
"""Parts of an ``await``, at which Python runs no signal handler."""

bytecodes = cache(attrgetter("co_code"))


class Interruption:
    """Raises an error before the n-th bytecode in the block, and suppresses it at its end.

    Bytecodes in ``left_out`` do not count.
    """

    def __init__(self, number: int, left_out: frozenset[int] = frozenset()) -> None:
        self.came = False
        """False if the block has no more bytecodes."""
        self._left_out = left_out
        self._countdown = itertools.count(number, -1)
        # The last two are also raised by system calls of the client, which must tell them apart.
        self._error = (KeyboardInterrupt, TimeoutError, BrokenPipeError)[number % 3]

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        sys.settrace(None)
        return isinstance(error, self._error)

    def _trace(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(CODE):
            return None
        frame.f_trace_opcodes = True
        counts = event == "opcode" and bytecodes(frame.f_code)[frame.f_lasti] not in self._left_out
        if counts and next(self._countdown) == 0:
            self.came = True
            raise self._error
        return self._trace


def descriptors() -> int:
    """Return the number of open descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def properties(found: Found | None) -> bytes | None:
    """Return the endpoint's properties of a found connection, and close it."""
    if found is None:
        return None
    found.close()
    return found.endpoint_properties


def saving(saver: Client, theirs: socket.socket) -> Iterator[tuple[int, str, str]]:
    """Yield numbers, each with two labels; save a socket twice under the first label, then once."""
    for number in itertools.count():
        if number % 100 == 0:
            numbers = range(number, number + 100)
            labels = [label for each in numbers for label in (f"{each}", f"{each}", f"new {each}")]
            assert all(saver.save_many([(60, label, label, theirs) for label in labels]))
        yield number, f"{number}", f"new {number}"


Ask = Callable[[Client, str, socket.socket], object]
REQUESTS: dict[str, Ask] = {
    "find_endp": lambda client, label, _: client.find_endp(label),
    "find_many": lambda client, label, _: client.find_many([label, "nothing", label]),
    "save_endp": lambda client, _, theirs: client.save_endp(1, "other", "", theirs),
    "purge": lambda client, *_: client.purge(["other"]),
    "close": lambda client, *_: client.close(),
}


CONNECTED = pytest.mark.parametrize(
    "connected",
    [True, pytest.param(False, marks=pytest.mark.long)],
    ids=["connected", "connecting"],
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "inline"),
    [
        pytest.param(
            name,
            inline,
            marks=[pytest.mark.long] * (name == "find_many"),
            id=f"{name}-{'inline' if inline else 'base'}",
        )
        for name in REQUESTS
        for inline in (True, False)
        if inline or name != "purge"  # the base protocol has no purge
    ],
)
@CONNECTED
def test_client_survives_exception_at_any_bytecode(
    path: Path, pair: Pair, inline: bool, name: str, connected: bool
) -> None:
    """No descriptor is left open, and later requests get the right connections."""
    with (
        Daemon(path),
        Client(path, timeout=DEADLINE) as saver,
        Client(path, timeout=DEADLINE, inline=inline) as client,
    ):
        assert saver.find_endp("nothing") is client.find_endp("nothing") is None
        before = descriptors()
        for number, label, fresh in saving(saver, pair[1]):
            if not connected:
                client.close()
            interruption, results = Interruption(number), []
            with interruption:
                results.append(REQUESTS[name](client, label, pair[1]))
            for result in results:
                for each in result if isinstance(result, list) else [result]:
                    if isinstance(each, Found):
                        each.close()
            assert properties(client.find_endp(fresh)) == fresh.encode()
            assert descriptors() == before
            if not interruption.came:
                break
        assert number > 10


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@CONNECTED
def test_async_client_survives_exception_at_any_bytecode(
    path: Path, pair: Pair, inline: bool, backend: str, connected: bool
) -> None:
    """No descriptor is left open, and later requests get the right connections."""

    async def interrupt(saver: Client) -> None:
        client = AsyncClient(path, timeout=DEADLINE, inline=inline)
        assert saver.find_endp("nothing") is await client.find_endp("nothing") is None
        before = descriptors()
        for number, label, fresh in saving(saver, pair[1]):
            if not connected:
                client.close()
            interruption, found = Interruption(number, AWAITING), None
            with interruption:
                found = await client.find_endp(label)
            properties(found)
            assert properties(await client.find_endp(fresh)) == fresh.encode()
            assert descriptors() == before
            if not interruption.came:
                break
        client.close()

    with Daemon(path), Client(path, timeout=DEADLINE) as saver:
        anyio.run(partial(interrupt, saver), backend=backend)


OWNERS: dict[str, Callable[[list[Any]], object]] = {
    "close": lambda owners: owners[0].close(),
    "with": lambda owners: owners[0].__exit__(None, None, None),
    "socket": lambda owners: owners.append(owners[0].socket()),
    "drop": lambda owners: owners.clear(),
}


@pytest.mark.parametrize("name", OWNERS)
def test_found_closes_its_descriptor_after_exception_at_any_bytecode(
    pair: Pair, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor is left open when the object and its socket object are dropped."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # exceptions in __del__ end there
    before = descriptors()
    for number in itertools.count():
        owners: list[Any] = [Found(os.dup(pair[1].fileno()), b"")]
        interruption = Interruption(number)
        with interruption:
            OWNERS[name](owners)
        owners.clear()
        assert descriptors() == before
        if not interruption.came:
            break
    assert number > 5
