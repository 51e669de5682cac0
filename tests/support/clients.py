"""Both clients with one face, so that a test written once is true of all of them."""

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
"""The blocking client, and the async one on each of these."""

Pair = tuple[socket.socket, socket.socket]

_numbers = itertools.count()


class Connect(Protocol):
    """Makes clients, which are closed when the test is over."""

    def __call__(
        self, path: str | Path, *, timeout: float = DEADLINE, inline: bool = True
    ) -> Client:
        """Do what the class of a client does."""


class Face:
    """An `AsyncClient` that can be used like a `Client`: its loop runs in a thread of its own."""

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
    """Give what makes clients: async ones in this loop, or else blocking ones."""
    with ExitStack() as clients:

        def connect(path: str | Path, *, timeout: float = DEADLINE, inline: bool = True) -> Client:
            if portal is None:
                return clients.enter_context(Client(path, timeout=timeout, inline=inline))
            make = partial(AsyncClient, path, timeout=timeout, inline=inline)
            return cast(Client, clients.enter_context(Face(portal, make)))

        yield connect


def label() -> str:
    """Return a label that no other test uses."""
    return f"label {next(_numbers)}"


def expect_other_end(found: Found | None, ours: socket.socket) -> None:
    """Insist on having found the other end of this connection; close it."""
    assert found is not None
    with found.socket() as theirs:
        theirs.sendall(b"hello")
    assert ours.recv(10) == b"hello"
