"""The blocking client."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeVar

from scache.client import exchanges
from scache.client.base import CONNECT_PAUSE, BaseClient, send_courtesy
from scache.client.exchanges import Begin, Exchange, HangupError, HasFileno, Purged, Text
from scache.client.found import Found
from scache.errors import ClientInUse
from scache.protocol.client import Send

T = TypeVar("T")


class Client(BaseClient):
    """A blocking client of the daemon, or of the genuine scache(8).

    It connects at the first request, keeps the connection, and connects once
    more by itself when the daemon was restarted meanwhile, or when it finds
    itself in a forked child, which must not share the parent's conversation.
    One thread at a time may use it: a second one, or a signal handler during a request, gets
    `ClientInUse`. As a context manager it closes itself.

    Labels and properties are bytes, or text that is sent as UTF-8; they may
    hold anything but a NUL, and come back as exact bytes.

    Every request raises `Unavailable` if no daemon answers within the timeout,
    or if it hung up when it may have carried the request out, which is never
    repeated then; OSError for a descriptor that is not open; `ProtocolError` if
    what answers breaks the protocol or says that the request is malformed (a
    ttl below 1, a label above 64 KiB); and ValueError for a NUL in a label or
    in properties.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def save_endp(
        self, ttl: int, endpoint: Text, properties: Text, connection: HasFileno | int
    ) -> bool:
        """Park a connection under an endpoint for ``ttl`` seconds; return whether it was taken.

        The daemon gets a duplicate. Your own descriptor stays yours: close it
        afterwards, in every case, because whoever finds the connection is to be
        its only user. False means that the daemon said no, at a limit say.
        """
        return self._run(exchanges.save_endp(ttl, endpoint, properties, connection))

    def find_endp(self, endpoint: Text) -> Found | None:
        """Take the oldest connection of an endpoint; None if there is none."""
        return self._run(exchanges.find_endp(endpoint))

    def save_dest(self, ttl: int, destination: Text, properties: Text, endpoint: Text) -> bool:
        """Bind a destination to an endpoint for ``ttl`` seconds; return whether it was taken.

        The endpoint need not have a connection yet. The same destination,
        endpoint and properties again only set a new ttl.
        """
        return self._run(exchanges.save_dest(ttl, destination, properties, endpoint))

    def find_dest(self, destination: Text) -> Found | None:
        """Take the oldest connection of the first endpoint of a destination that has one."""
        return self._run(exchanges.find_dest(destination))

    def save_many(self, items: Iterable[tuple[int, Text, Text, HasFileno | int]]) -> list[bool]:
        """Do `save_endp` for each of these tuples of its arguments; return what each returns.

        Our daemon gets them all without a pause for replies. The timeout is
        for all of them together.
        """
        return self._run(exchanges.save_many(items))

    def find_many(self, endpoints: Iterable[Text]) -> list[Found | None]:
        """Do `find_endp` for each of these endpoints; return what each returns."""
        return self._run(exchanges.find_many(endpoints))

    def save_dest_many(self, items: Iterable[tuple[int, Text, Text, Text]]) -> list[bool]:
        """Do `save_dest` for each of these tuples of its arguments; return what each returns."""
        return self._run(exchanges.save_dest_many(items))

    def find_dest_many(self, destinations: Iterable[Text]) -> list[Found | None]:
        """Do `find_dest` for each of these destinations; return what each returns."""
        return self._run(exchanges.find_dest_many(destinations))

    def snapshot(self) -> int:
        """Return a descriptor, yours to close, of an image of all that is cached.

        It is a sealed memfd that holds a SQLite database. Raises `Refused`
        unless you are root, the daemon's user, or one of its administrators;
        ProtocolError from a server that has no inline mode.
        """
        return self._run(exchanges.snapshot())

    def purge(
        self,
        endpoints: Iterable[Text] = (),
        destinations: Iterable[Text] = (),
        ids: Iterable[int] = (),
    ) -> Purged:
        """Close all connections of these endpoints; remove all bindings of these destinations.

        Close also the connections with these ids, as the table ``connection`` has them; one that is
        not cached any more counts as none. With ids, a daemon that was restarted since the last
        request is `Unavailable`: if its database is in memory, its ids have begun anew. Raises what
        `snapshot` does, and `TooOld`, having purged nothing, if the daemon does not know ids. The
        timeout is for all of them together.
        """
        return self._run(exchanges.purge(endpoints, destinations, ids))

    def _run(self, begin: Begin[T]) -> T:
        """Carry out an exchange, on a new connection if the one that we had is gone."""
        deadline = time.monotonic() + self._timeout
        self._forked()
        token = object()
        users = self._user
        try:
            # Atomic, and within the try: an exception from a signal handler leaves no mark behind.
            if users.setdefault("token", token) is not token:
                raise ClientInUse(
                    "this client has a request under way, in another thread or in the code that a "
                    "signal interrupted: use one client for each thread and each signal handler"
                )
            self._begin_request()
            if self._socket is not None:
                try:
                    return self._drive(self._socket, begin(self._conversation), deadline)
                except HangupError:
                    # The daemon was restarted since the last request, say. If it has read this
                    # one already, asking again might save or take something twice.
                    if self._told:
                        raise
            sock = self._connect(deadline)
            return self._drive(sock, begin(self._conversation), deadline)
        except HangupError:
            raise self._hung_up() from None
        except TimeoutError:
            raise self._late() from None
        finally:
            if users.get("token") is token:
                del users["token"]

    def close(self) -> None:
        """Hang up; what was saved stays in the cache. A later request connects again.

        A request that is under way, in another thread say, raises `Unavailable`.
        """
        if self._process_id == os.getpid() and self._user and self._socket is not None:
            # It waits for this socket, which must not be closed under it; this wakes it.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        else:
            self._hang_up()

    def _connect(self, deadline: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._begin_connection(sock)
        try:
            sock.setblocking(False)
            while not self._connected(sock):
                time.sleep(min(CONNECT_PAUSE, _until(deadline)))
        except BaseException:
            self._hang_up()
            raise
        if self._inline:
            self._drive(sock, self._conversation.hello(), deadline)
        return sock

    def _drive(self, sock: socket.socket, exchange: Exchange[T], deadline: float) -> T:
        """Do what the exchange says until it ends; hang up if it does not end well."""
        try:
            while True:
                step = next(exchange)
                if isinstance(step, Send):
                    self._send(sock, step, deadline)
                else:
                    sock.settimeout(_until(deadline))
                    self._receive_some(sock)
        except StopIteration as end:
            result: T = end.value
            return result
        except ConnectionError as error:
            self._give_up(exchange)
            raise HangupError from error
        except BaseException:
            self._give_up(exchange)
            raise

    def _send(self, sock: socket.socket, step: Send, deadline: float) -> None:
        if step.best_effort:
            sock.setblocking(False)
            send_courtesy(sock, step.data)
            return
        data, descriptors = step.data, step.descriptors
        while data:
            sock.settimeout(_until(deadline))
            data, descriptors = self._send_some(sock, data, descriptors)

    def _give_up(self, exchange: Exchange[T]) -> None:
        exchange.close()
        self._hang_up()


def _until(deadline: float) -> float:
    """Return the seconds that remain, more than 0; TimeoutError if none do."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining
