"""The blocking and the async client behind one interface, so that one test covers both."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, cast

from anyio.from_thread import BlockingPortal

from scache import AsyncClient, Client, Found
from tests.support.wire import DEADLINE

KINDS = ("blocking", "asyncio", "trio")
"""The blocking client, and the async client on asyncio and on trio."""

Pair = tuple[socket.socket, socket.socket]

_numbers = itertools.count()


class Connect(Protocol):
    """A factory of clients, which are closed at the end of the test."""

    def __call__(
        self, path: str | Path, *, timeout: float = DEADLINE, inline: bool = True
    ) -> Client:
        """Create a client with the arguments of `Client`."""


class BlockingFacade:
    """An `AsyncClient` with the methods of `Client`. Its event loop runs in another thread."""

    def __init__(self, portal: BlockingPortal, make: Callable[[], AsyncClient]) -> None:
        self._portal = portal
        self._client = portal.call(make)

    def __enter__(self) -> Self:
        self._portal.call(self._client.__aenter__)
        return self

    def __exit__(self, *_: object) -> None:
        self._portal.call(self._client.__aexit__, None, None, None)

    def __repr__(self) -> str:
        return repr(self._client)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - the method's own
            return self._portal.call(partial(getattr(self._client, method), *arguments, **named))

        return call


@contextmanager
def connecting(portal: BlockingPortal | None) -> Iterator[Connect]:
    """Yield a factory of async clients on this event loop, or of blocking ones without a loop."""
    with ExitStack() as clients:

        def connect(path: str | Path, *, timeout: float = DEADLINE, inline: bool = True) -> Client:
            if portal is None:
                return clients.enter_context(Client(path, timeout=timeout, inline=inline))
            make = partial(AsyncClient, path, timeout=timeout, inline=inline)
            return cast(Client, clients.enter_context(BlockingFacade(portal, make)))

        yield connect


def label() -> str:
    """Return a label that no other test uses."""
    return f"label {next(_numbers)}"


def expect_other_end(found: Found | None, ours: socket.socket) -> None:
    """Check that the other end of this connection was found; close it."""
    assert found is not None
    with found.socket() as theirs:
        theirs.sendall(b"hello")
    assert ours.recv(10) == b"hello"
