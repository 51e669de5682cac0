"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextvars import Context, copy_context
from pathlib import Path
from typing import Self, TypeVar

from scache.client import arguments, exchanges
from scache.client.arguments import HasFileno, Text
from scache.client.base import CONNECT_PAUSE, DEFAULT_TIMEOUT, BaseClient
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
from scache.client.raised import is_raised_by_call
from scache.errors import ClientInUse
from scache.protocol.client import Send
from scache.protocol.observation import Stats

T = TypeVar("T")


class Client(BaseClient):
    """A blocking client of the daemon or of Postfix's scache(8).

    It connects at the first request and keeps the connection. It connects again if the daemon was
    restarted, or after a fork, because a child must not use the parent's connection. Only one
    thread at a time may use it. As a context manager it closes itself.

    Labels and properties are bytes, or text that is sent as UTF-8. They may hold any byte but NUL,
    and are returned as the exact bytes.

    Every request may raise these exceptions:

    - `Unavailable` if no daemon answers within the timeout, or if the daemon closes the connection
      after it may have carried out the request. The request is not repeated then.
    - `ProtocolError` if the server violates the protocol, or reports that the request is malformed
      (its `max_message_size` may be lower than 64 KiB).
    - `DescriptorLimit` if this process or the machine has reached its limit on open files.
    - `ClientInUse` if the client has a request in progress, in another thread or in the code that a
      signal interrupted.
    - TypeError for an argument of the wrong type: a ttl that is no integer, a label that is neither
      str nor bytes. A bool is no integer.
    - ValueError for a ttl below 1, a NUL in a label or in properties, text that UTF-8 cannot hold,
      and a request above 64 KiB.

    TypeError and ValueError name the argument, and are raised before anything is sent. If one item
    of a method ``*_many`` is wrong, none of the items is sent.
    """

    def __init__(
        self, path: str | Path, *, timeout: float = DEFAULT_TIMEOUT, inline: bool = True
    ) -> None:
        """Use the daemon's socket at this path; each request may take ``timeout`` seconds.

        ``inline=False`` uses the base protocol with every server. Raises TypeError or ValueError
        for a timeout that is not a number above 0 and at most 1,000,000,000: a client never waits
        for ever.
        """
        super().__init__(path, timeout=timeout, inline=inline)
        # A lock that cannot be left locked: a Context cannot be entered twice, by any thread, and
        # is always left when the request ends, even by an exception from a signal handler.
        self._lock = Context()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save_endp(
        self, ttl: int, endpoint: Text, properties: Text, connection: HasFileno | int
    ) -> bool:
        """Park a connection under an endpoint for ``ttl`` seconds; return True on success.

        ``connection`` is a descriptor, or an object with ``fileno()``. The daemon gets a duplicate
        of the descriptor. Always close your own descriptor afterwards, because the finder must be
        the only user of the connection. The daemon lowers the ttl to its ``ttl_limit``. False means
        that the daemon refused the request, for example at a limit.

        Raises `NotParkable` for a TLS socket of this process, and OSError for a descriptor that is
        not open; nothing is sent then.
        """
        return self._run(exchanges.save_endp(ttl, endpoint, properties, connection))

    def find_endp(self, endpoint: Text) -> Found | None:
        """Take the oldest connection of an endpoint out of the cache; None if there is none.

        The caller owns the descriptor of the `Found` object and must close it.
        """
        return self._find([arguments.find_endp(endpoint)])[0]

    def save_dest(self, ttl: int, destination: Text, properties: Text, endpoint: Text) -> bool:
        """Bind a destination to an endpoint for ``ttl`` seconds; return True on success.

        The endpoint need not have a connection yet. If a binding with the same destination,
        endpoint and properties exists, only its ttl is replaced.
        """
        return self._run(exchanges.save_dest(ttl, destination, properties, endpoint))

    def find_dest(self, destination: Text) -> Found | None:
        """Take the oldest connection of the first endpoint of a destination that has one.

        The endpoints are tried in the order in which they were bound. None means that none of them
        has a connection. The caller owns the descriptor of the `Found` object and must close it.
        """
        return self._find([arguments.find_dest(destination)])[0]

    def save_many(self, items: Iterable[tuple[int, Text, Text, HasFileno | int]]) -> list[bool]:
        """Call `save_endp` with each of these tuples of arguments; return the list of results.

        In inline mode the requests are sent in batches without waiting for each reply. The timeout
        is for all of them together.
        """
        return self._run(exchanges.save_many(items))

    def find_many(self, endpoints: Iterable[Text]) -> list[Found | None]:
        """Call `find_endp` for each of these endpoints; return the list of results.

        In inline mode the requests are sent in batches without waiting for each reply. The timeout
        is for all of them together. At the limit on open files, the first results are in
        `DescriptorLimit.found`.
        """
        return self._find(arguments.find_endps(endpoints))

    def save_dest_many(self, items: Iterable[tuple[int, Text, Text, Text]]) -> list[bool]:
        """Call `save_dest` with each of these tuples of arguments; return the list of results."""
        return self._run(exchanges.save_dest_many(items))

    def find_dest_many(self, destinations: Iterable[Text]) -> list[Found | None]:
        """Call `find_dest` for each of these destinations; return the list of results."""
        return self._find(arguments.find_dests(destinations))

    def snapshot(self) -> int:
        """Return the descriptor of a snapshot of the cache, which the caller must close.

        It is a sealed memfd that holds a SQLite database. `scache help sql` describes the database,
        and ``sqlite3.Connection.deserialize`` opens its contents. Raises `Refused` unless you are
        root, the daemon's user or an administrator, and ProtocolError if the server has no inline
        mode.
        """
        return self._run(exchanges.snapshot()).detach()

    def stats(self) -> Stats:
        """Return the figures of the daemon: counters, gauges, limits, its database and process.

        The daemon knows them without a snapshot, so they cost it next to nothing. A client that
        makes no other request than this and `ping` is an observer, which counts as no client.
        Raises the exceptions of `snapshot`, and `TooOld` if the daemon does not know this request.
        """
        return self._run(exchanges.stats())

    def ping(self) -> None:
        """Check that the daemon answers, and that a descriptor passes to it and back.

        The daemon touches neither its cache nor its audit log. To a server that does not know the
        request (Postfix's scache(8), an older daemon) another request that changes nothing is sent.
        Raises `Refused` if the daemon does not serve this client.
        """
        self._run(exchanges.ping())

    def purge(
        self,
        endpoints: Iterable[Text] = (),
        destinations: Iterable[Text] = (),
        ids: Iterable[int] = (),
    ) -> Purged:
        """Close all connections of these endpoints; remove all bindings of these destinations.

        Also close the connections with these ids of the table ``connection``. A connection that is
        no longer cached is not counted. With ids, the request raises `Unavailable` if the daemon
        was restarted since the last request, because ids start again with a database in memory.
        Raises the exceptions of `snapshot`, and `TooOld`, without purging anything, if the daemon
        does not support ids. The timeout is for all purges together.
        """
        return self._run(exchanges.purge(endpoints, destinations, ids))

    def _find(self, requests: Finds) -> list[Found | None]:
        found: list[Found | None] = []
        try:
            self._run(exchanges.find(requests, found))
            return exchanges.hand_out(found)
        except BaseException as error:
            exchanges.hand_over(found, error)
            raise

    def _run(self, begin: Begin[T]) -> T:
        """Carry out an exchange; raise ClientInUse if another one is in progress."""
        self._forked()
        try:
            return self._lock.run(copy_context().run, self._request, begin)
        except RuntimeError as error:
            if not _is_taken(error):
                raise
        raise ClientInUse(
            "this client has a request in progress, in another thread or in the code that a "
            "signal interrupted; use one client for each thread and each signal handler"
        )

    def _request(self, begin: Begin[T]) -> T:
        """Carry out an exchange; connect again if the daemon has closed the old connection."""
        deadline = time.monotonic() + self._timeout
        try:
            connection = self._rested()
            if connection is not None:
                try:
                    return self._drive(connection, begin(connection.conversation), deadline)
                except HangupError:
                    # The daemon may have been restarted. Do not repeat a request that it may have
                    # read: a connection could be saved or taken twice.
                    if connection.may_have_acted:
                        raise
            connection = self._connect(deadline)
            return self._drive(connection, begin(connection.conversation), deadline)
        except HangupError:
            raise self._hung_up() from None
        except LateError:
            raise self._late() from None

    def close(self) -> None:
        """Close the connection to the daemon. A later request connects again.

        Saved connections stay in the cache. A request in progress, for example in another thread,
        raises `Unavailable`.
        """
        self._forked()
        try:
            self._lock.run(self._hang_up)
        except RuntimeError as error:
            if not _is_taken(error):
                raise
            if (connection := self._connection) is not None:
                connection.shut_down()

    def _forked(self) -> bool:
        if not super()._forked():
            return False
        self._lock = Context()  # a thread of the parent may have entered the old one
        return True

    def _connect(self, deadline: float) -> Connection:
        self._connection = connection = Connection()
        try:
            while not connection.connect(self._path):
                time.sleep(min(CONNECT_PAUSE, _until(deadline)))
        except BaseException:
            self._hang_up()
            raise
        if self._inline:
            self._drive(connection, connection.conversation.hello(), deadline)
        return connection

    def _drive(self, connection: Connection, exchange: Exchange[T], deadline: float) -> T:
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
                    self._send(connection, step, deadline)
                elif isinstance(step, Room):
                    room = connection.make_room(step.descriptors)
                else:
                    self._receive(connection, deadline)
        except BaseException:
            exchange.close()  # it may own a descriptor
            if not connection.at_rest:
                self._hang_up()
            raise

    def _send(self, connection: Connection, step: Send, deadline: float) -> None:
        if step.best_effort:
            send_courtesy(connection.socket, step.data)
            return
        data, descriptors = step.data, step.descriptors
        while data:
            remaining = _until(deadline)
            try:
                data, descriptors = connection.send(data, descriptors), ()
            except BlockingIOError:
                connection.wait_writable(remaining)

    def _receive(self, connection: Connection, deadline: float) -> None:
        if connection.wait_readable(_until(deadline)):
            connection.receive(self._buffer)  # the exchange asks again if data is missing


def _is_taken(error: RuntimeError) -> bool:
    """Return True if the error means that the Context is entered already."""
    return type(error) is RuntimeError and is_raised_by_call(error)


def _until(deadline: float) -> float:
    """Return the seconds until the deadline; raise LateError if it has passed."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise LateError
    return remaining
