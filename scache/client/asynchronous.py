"""The async client: plain anyio, for asyncio and trio."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import anyio

from scache import fdpass
from scache.client import exchanges
from scache.client.base import DEFAULT_TIMEOUT, BaseClient
from scache.client.exchanges import (
    OUT_OF_DESCRIPTORS,
    Begin,
    Exchange,
    HangupError,
    HasFileno,
    Text,
)
from scache.client.found import Found
from scache.errors import ProtocolError, Unavailable
from scache.protocol.client import Send

_CONNECT_PAUSE = 0.01
"""Seconds until the next attempt while the daemon's backlog is full."""

T = TypeVar("T")


class AsyncClient(BaseClient):
    """`Client` for async programs; its promises are the same.

    Tasks may share one: their requests wait for each other. A request that is
    cancelled half-way closes the connection, and the next one opens another.
    """

    def __init__(
        self, path: str | Path, *, timeout: float = DEFAULT_TIMEOUT, inline: bool = True
    ) -> None:
        """Do what `Client` does."""
        super().__init__(path, timeout=timeout, inline=inline)
        self._turn = anyio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def save_endp(
        self, ttl: int, endpoint: Text, properties: Text, connection: HasFileno | int
    ) -> bool:
        """Do what `Client.save_endp` does."""
        return await self._run(exchanges.save_endp(ttl, endpoint, properties, connection))

    async def find_endp(self, endpoint: Text) -> Found | None:
        """Do what `Client.find_endp` does."""
        return await self._run(exchanges.find_endp(endpoint))

    async def save_dest(
        self, ttl: int, destination: Text, properties: Text, endpoint: Text
    ) -> bool:
        """Do what `Client.save_dest` does."""
        return await self._run(exchanges.save_dest(ttl, destination, properties, endpoint))

    async def find_dest(self, destination: Text) -> Found | None:
        """Do what `Client.find_dest` does."""
        return await self._run(exchanges.find_dest(destination))

    async def save_many(
        self, items: Iterable[tuple[int, Text, Text, HasFileno | int]]
    ) -> list[bool]:
        """Do what `Client.save_many` does."""
        return await self._run(exchanges.save_many(items))

    async def find_many(self, endpoints: Iterable[Text]) -> list[Found | None]:
        """Do what `Client.find_many` does."""
        return await self._run(exchanges.find_many(endpoints))

    async def save_dest_many(self, items: Iterable[tuple[int, Text, Text, Text]]) -> list[bool]:
        """Do what `Client.save_dest_many` does."""
        return await self._run(exchanges.save_dest_many(items))

    async def find_dest_many(self, destinations: Iterable[Text]) -> list[Found | None]:
        """Do what `Client.find_dest_many` does."""
        return await self._run(exchanges.find_dest_many(destinations))

    async def _run(self, begin: Begin[T]) -> T:
        """Carry out an exchange, on a new connection if the one that we had is gone."""
        try:
            with anyio.fail_after(self._timeout):
                async with self._turn:
                    return await self._run_in_turn(begin)
        except TimeoutError:
            raise Unavailable(
                f"the daemon at {self._path} did not answer within {self._timeout:g} seconds"
            ) from None

    async def _run_in_turn(self, begin: Begin[T]) -> T:
        if self._process_id != os.getpid():
            self.close()
        self._heard = False
        if self._socket is not None:
            try:
                return await self._drive(self._socket, begin(self._conversation))
            except HangupError:
                # The daemon was restarted since the last request, say. If it has answered a part
                # of this one already, asking again might save or take something twice.
                if self._heard:
                    raise Unavailable(f"the daemon at {self._path} hung up") from None
        try:
            sock = await self._connect()
            return await self._drive(sock, begin(self._conversation))
        except HangupError:
            raise Unavailable(f"the daemon at {self._path} hung up") from None

    async def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._begin_connection(sock)
        try:
            while not _connected(sock, self._path):  # noqa: ASYNC110 - no event tells of room
                await anyio.sleep(_CONNECT_PAUSE)
        except OSError as error:
            self.close()
            reason = error.strerror or error
            raise Unavailable(f"no daemon answers at {self._path}: {reason}") from error
        except BaseException:
            self.close()
            raise
        if self._inline:
            await self._drive(sock, self._conversation.hello())
        return sock

    async def _drive(self, sock: socket.socket, exchange: Exchange[T]) -> T:
        """Do what the exchange says until it ends; hang up if it does not end well."""
        try:
            while True:
                step = next(exchange)
                if isinstance(step, Send):
                    await _send_all(sock, step)
                else:
                    await self._receive(sock)
        except StopIteration as end:
            result: T = end.value
            return result
        except OSError as error:
            self._give_up(exchange)
            raise HangupError from error
        except BaseException:
            self._give_up(exchange)
            raise

    async def _receive(self, sock: socket.socket) -> None:
        while True:
            await anyio.wait_readable(sock)
            try:
                data, descriptors, truncated = fdpass.receive(sock)
            except BlockingIOError:
                continue
            self._heard = self._heard or bool(data)
            self._conversation.receive(data, descriptors)
            if truncated:
                raise ProtocolError(OUT_OF_DESCRIPTORS)
            if not data:
                raise HangupError
            return

    def _give_up(self, exchange: Exchange[T]) -> None:
        exchange.close()
        self.close()


def _connected(sock: socket.socket, path: str) -> bool:
    """Connect; return False while the daemon's backlog is full."""
    try:
        sock.connect(path)
    except BlockingIOError:
        return False
    return True


async def _send_all(sock: socket.socket, step: Send) -> None:
    data, descriptors = step.data, step.descriptors
    while data:
        try:
            sent = fdpass.send(sock, data, descriptors)
        except BlockingIOError:
            await anyio.wait_writable(sock)
        except OSError:
            if step.best_effort:
                return
            raise
        else:
            data, descriptors = data[sent:], ()
