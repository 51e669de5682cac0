"""The async client: plain anyio, for asyncio and trio."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
from anyio.lowlevel import current_token

from scache.client import exchanges
from scache.client.base import CONNECT_PAUSE, DEFAULT_TIMEOUT, BaseClient, send_courtesy
from scache.client.exchanges import Begin, Exchange, HangupError, HasFileno, Purged, Text
from scache.client.found import Found
from scache.errors import ClientInUse
from scache.protocol.client import Send

T = TypeVar("T")


class AsyncClient(BaseClient):
    """`Client` for async programs; its promises are the same.

    Tasks of one event loop may share one: their requests wait for each other. Another event loop
    gets `ClientInUse`, unless it is of the same kind and the first has ended. A request that is
    cancelled half-way closes the connection, and the next one opens another.
    """

    def __init__(
        self, path: str | Path, *, timeout: float = DEFAULT_TIMEOUT, inline: bool = True
    ) -> None:
        """Do what `Client` does."""
        super().__init__(path, timeout=timeout, inline=inline)
        self._turn = anyio.Lock()
        self._loop: object = None
        """The event loop of the first request."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Do what `Client.close` does; a request that is under way raises `Unavailable`."""
        if self._process_id != os.getpid() or not self._turn.locked():
            self._hang_up()
        elif self._socket is not None:
            # Its task waits for this socket, which must not be closed under it; this wakes it.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

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

    async def snapshot(self) -> int:
        """Do what `Client.snapshot` does."""
        return await self._run(exchanges.snapshot())

    async def purge(
        self,
        endpoints: Iterable[Text] = (),
        destinations: Iterable[Text] = (),
        ids: Iterable[int] = (),
    ) -> Purged:
        """Do what `Client.purge` does."""
        return await self._run(exchanges.purge(endpoints, destinations, ids))

    async def _run(self, begin: Begin[T]) -> T:
        """Carry out an exchange, on a new connection if the one that we had is gone."""
        if self._forked():
            self._turn = anyio.Lock()  # the old one may be held by a task of the parent
            self._loop = None
        loop = current_token()
        if self._loop is None:
            self._loop = loop
        elif self._loop != loop:
            if type(_native(loop)) is not type(_native(self._loop)) or not _has_ended(self._loop):
                raise ClientInUse(
                    "this client belongs to another event loop: make one for each loop"
                )
            self._loop, self._turn = loop, anyio.Lock()
        try:
            with anyio.fail_after(self._timeout):
                async with self._turn:
                    return await self._run_in_turn(begin)
        except HangupError:
            raise self._hung_up() from None
        except TimeoutError:
            raise self._late() from None

    async def _run_in_turn(self, begin: Begin[T]) -> T:
        self._begin_request()
        if self._socket is not None:
            try:
                return await self._drive(self._socket, begin(self._conversation))
            except HangupError:
                # As in the blocking client.
                if self._told:
                    raise
        sock = await self._connect()
        return await self._drive(sock, begin(self._conversation))

    async def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._begin_connection(sock)
        try:
            while not self._connected(sock):  # noqa: ASYNC110 - no event tells of room
                await anyio.sleep(CONNECT_PAUSE)
        except BaseException:
            self._hang_up()
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
                    await self._send(sock, step)
                else:
                    await self._receive(sock)
        except StopIteration as end:
            result: T = end.value
            return result
        except ConnectionError as error:
            self._give_up(exchange)
            raise HangupError from error
        except BaseException:
            self._give_up(exchange)
            raise

    async def _send(self, sock: socket.socket, step: Send) -> None:
        if step.best_effort:
            send_courtesy(sock, step.data)
            return
        data, descriptors = step.data, step.descriptors
        while data:
            try:
                data, descriptors = self._send_some(sock, data, descriptors)
            except BlockingIOError:
                await anyio.wait_writable(sock)

    async def _receive(self, sock: socket.socket) -> None:
        await anyio.wait_readable(sock)
        with suppress(BlockingIOError):  # the exchange asks again for what did not come
            self._receive_some(sock)

    def _give_up(self, exchange: Exchange[T]) -> None:
        exchange.close()
        self._hang_up()


def _native(loop: object) -> object:
    """Return asyncio's or trio's own object for an event loop (later versions of anyio wrap it)."""
    return getattr(loop, "native_token", loop)


def _has_ended(loop: object) -> bool:
    """Return whether an event loop is closed (asyncio) or its run is over (trio)."""
    native: Any = _native(loop)
    if hasattr(native, "is_closed"):
        return bool(native.is_closed())
    try:
        native.run_sync_soon(bool)
    except RuntimeError:  # trio.RunFinishedError
        return True
    return False
