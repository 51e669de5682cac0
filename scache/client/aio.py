"""The async client, for asyncio and trio by way of anyio."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import anyio
from anyio.lowlevel import current_token

from scache.client import arguments, exchanges
from scache.client.arguments import HasFileno, Text
from scache.client.base import CONNECT_PAUSE, DEFAULT_TIMEOUT, BaseClient, this_process
from scache.client.connection import Connection, send_courtesy
from scache.client.exchanges import (
    Begin,
    Exchange,
    Finds,
    HangupError,
    LateError,
    Purged,
    Room,
)
from scache.client.found import Found
from scache.errors import ClientInUse
from scache.protocol.client import Send
from scache.protocol.observation import Stats

T = TypeVar("T")


class AsyncClient(BaseClient):
    """A client for async programs, on asyncio and trio.

    Its requests have the same results, and raise the same exceptions, as those of `Client`. Tasks
    of one event loop may share a client; their requests run one after the other, and the time that
    a request waits counts towards its timeout. A request from another event loop raises
    `ClientInUse`, unless that loop is of the same library and the first loop has ended. A cancelled
    request closes the connection if it has begun; the next request opens another.
    """

    def __init__(
        self, path: str | Path, *, timeout: float = DEFAULT_TIMEOUT, inline: bool = True
    ) -> None:
        """Use the daemon's socket at this path; the arguments are those of `Client`."""
        super().__init__(path, timeout=timeout, inline=inline)
        self._lock = anyio.Lock()
        self._loops: dict[str, object] = {}
        """The event loop of the first request, under the key ``loop``."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection to the daemon. A later request connects again.

        Saved connections stay in the cache. A request of another task that is in progress raises
        `Unavailable`.
        """
        if self._process != this_process() or not self._lock.locked():
            self._hang_up()
        elif self._connection is not None:
            self._connection.shut_down()

    async def save_endp(
        self, ttl: int, endpoint: Text, properties: Text, connection: HasFileno | int
    ) -> bool:
        """Park a connection under an endpoint for ``ttl`` seconds; see `Client.save_endp`."""
        return await self._run(exchanges.save_endp(ttl, endpoint, properties, connection))

    async def find_endp(self, endpoint: Text) -> Found | None:
        """Take the oldest connection of an endpoint; see `Client.find_endp`."""
        return (await self._find([arguments.find_endp(endpoint)]))[0]

    async def save_dest(
        self, ttl: int, destination: Text, properties: Text, endpoint: Text
    ) -> bool:
        """Bind a destination to an endpoint for ``ttl`` seconds; see `Client.save_dest`."""
        return await self._run(exchanges.save_dest(ttl, destination, properties, endpoint))

    async def find_dest(self, destination: Text) -> Found | None:
        """Take a connection to a destination; see `Client.find_dest`."""
        return (await self._find([arguments.find_dest(destination)]))[0]

    async def save_many(
        self, items: Iterable[tuple[int, Text, Text, HasFileno | int]]
    ) -> list[bool]:
        """Call `save_endp` with each of these tuples; see `Client.save_many`."""
        return await self._run(exchanges.save_many(items))

    async def find_many(self, endpoints: Iterable[Text]) -> list[Found | None]:
        """Call `find_endp` for each of these endpoints; see `Client.find_many`."""
        return await self._find(arguments.find_endps(endpoints))

    async def save_dest_many(self, items: Iterable[tuple[int, Text, Text, Text]]) -> list[bool]:
        """Call `save_dest` with each of these tuples; see `Client.save_dest_many`."""
        return await self._run(exchanges.save_dest_many(items))

    async def find_dest_many(self, destinations: Iterable[Text]) -> list[Found | None]:
        """Call `find_dest` for each of these destinations; see `Client.find_dest_many`."""
        return await self._find(arguments.find_dests(destinations))

    async def snapshot(self) -> int:
        """Return the descriptor of a snapshot; see `Client.snapshot`."""
        return (await self._run(exchanges.snapshot())).detach()

    async def stats(self) -> Stats:
        """Return the figures of the daemon; see `Client.stats`."""
        return await self._run(exchanges.stats())

    async def ping(self) -> None:
        """Check that the daemon answers; see `Client.ping`."""
        await self._run(exchanges.ping())

    async def purge(
        self,
        endpoints: Iterable[Text] = (),
        destinations: Iterable[Text] = (),
        ids: Iterable[int] = (),
    ) -> Purged:
        """Close connections and remove bindings; see `Client.purge`."""
        return await self._run(exchanges.purge(endpoints, destinations, ids))

    async def _find(self, requests: Finds) -> list[Found | None]:
        found: list[Found | None] = []
        try:
            await self._run(exchanges.find(requests, found))
            return exchanges.hand_out(found)
        except BaseException as error:
            exchanges.hand_over(found, error)
            raise

    async def _run(self, begin: Begin[T]) -> T:
        """Carry out an exchange after those that were requested before."""
        self._enter_loop()
        lock = self._lock
        try:
            with anyio.move_on_after(self._timeout):
                async with lock:
                    return await self._request(begin)
            raise LateError
        except HangupError:
            raise self._hung_up() from None
        except LateError:
            raise self._late() from None
        except BaseException:
            with suppress(RuntimeError):  # another task holds the lock, or it is released already
                lock.release()
            raise

    def _enter_loop(self) -> None:
        """Bind the client to this event loop; raise ClientInUse if another loop has it."""
        loop = current_token()
        if self._forked():
            self._lock = anyio.Lock()  # the old one may be held by a task of the parent
            self._loops = {}
        bound = self._loops.setdefault("loop", loop)  # atomic, so one of two threads is the first
        if bound == loop:
            return
        if type(_native(loop)) is not type(_native(bound)) or not _has_ended(bound):
            raise ClientInUse("this client belongs to another event loop; create one for each loop")
        self._loops, self._lock = {"loop": loop}, anyio.Lock()

    async def _request(self, begin: Begin[T]) -> T:
        """Carry out an exchange; connect again if the daemon has closed the old connection."""
        connection = self._rested()
        if connection is not None:
            try:
                return await self._drive(connection, begin(connection.conversation))
            except HangupError:
                # Never repeat a request that the daemon may have carried out.
                if connection.may_have_acted:
                    raise
        connection = await self._connect()
        return await self._drive(connection, begin(connection.conversation))

    async def _connect(self) -> Connection:
        self._connection = connection = Connection()
        try:
            while not connection.connect(self._path):  # noqa: ASYNC110 - no event tells of room
                await anyio.sleep(CONNECT_PAUSE)
        except BaseException:
            self._hang_up()
            raise
        if self._inline:
            await self._drive(connection, connection.conversation.hello())
        return connection

    async def _drive(self, connection: Connection, exchange: Exchange[T]) -> T:
        """Run an exchange to its end; close the connection if the exchange fails."""
        connection.at_rest = False
        room: int | None = None
        try:
            while True:
                try:
                    step = exchange.send(room)
                except StopIteration as end:
                    connection.rest()
                    result: T = end.value
                    return result
                if isinstance(step, Send):
                    await self._send(connection, step)
                elif isinstance(step, Room):
                    room = connection.make_room(step.descriptors)
                else:
                    await self._receive(connection)
        except BaseException:
            exchange.close()  # it may own a descriptor
            if not connection.at_rest:
                self._hang_up()
            raise

    async def _send(self, connection: Connection, step: Send) -> None:
        if step.best_effort:
            send_courtesy(connection.socket, step.data)
            return
        data, descriptors = step.data, step.descriptors
        while data:
            try:
                data, descriptors = connection.send(data, descriptors), ()
            except BlockingIOError:
                await anyio.wait_writable(connection.socket)

    async def _receive(self, connection: Connection) -> None:
        await anyio.wait_readable(connection.socket)
        connection.receive(self._buffer)  # the exchange asks again if data is missing


def _native(loop: object) -> object:
    """Return the event loop object of asyncio or trio, which later versions of anyio wrap."""
    return getattr(loop, "native_token", loop)


def _has_ended(loop: object) -> bool:
    """Return True if an event loop is closed (asyncio) or its run has ended (trio)."""
    native: Any = _native(loop)
    if hasattr(native, "is_closed"):
        return bool(native.is_closed())
    try:
        native.run_sync_soon(bool)
    except RuntimeError:  # trio.RunFinishedError
        return True
    return False
