"""The base class of the blocking and the async client."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from scache.client.arguments import seconds, socket_path
from scache.client.connection import Connection
from scache.errors import TimedOut, Unavailable
from scache.unix import fdpass

DEFAULT_TIMEOUT = 5.0
"""Seconds that a request may take, the same as in Postfix's client."""

CONNECT_PAUSE = 0.01
"""Seconds between two attempts to connect while the daemon's backlog is full. They are polled,
because no event reports room in the backlog."""


_forks: list[int] = []
os.register_at_fork(after_in_child=lambda: _forks.append(os.getpid()))


def this_process() -> tuple[int, int]:
    """Return the pid and the number of forks, which identify this process among its ancestors.

    The pid alone is not enough: a child in another pid namespace can have the pid of its parent,
    and any child can have the pid of an ancestor that has ended. The number of forks alone is not
    enough, because it does not include forks by C code.
    """
    return os.getpid(), len(_forks)


class BaseClient:
    """A client with at most one connection to the daemon."""

    def __init__(self, path: str | Path, *, timeout: float, inline: bool) -> None:
        """Use the daemon's socket at this path; each request may take ``timeout`` seconds."""
        self._path = socket_path(path)
        self._timeout = seconds(timeout)
        self._inline = inline
        self._connection: Connection | None = None
        self._process = this_process()
        self._buffer = fdpass.new_buffer()

    def __repr__(self) -> str:
        state = "connected" if self._connection else "not connected"
        return f"<{type(self).__name__} {self._path} {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied: it holds a connection and the "
            "conversation on it; create another client with the same path"
        )

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _rested(self) -> Connection | None:
        """Return the connection for a new request; None if there is none.

        A connection is closed first if an exception interrupted its last request.
        """
        if self._connection is not None and not self._connection.at_rest:
            self._hang_up()
        if self._connection is not None:
            self._connection.begin_request()
        return self._connection

    def _forked(self) -> bool:
        """Close the inherited connection and return True if this process was forked since.

        Only this process's copies of the descriptors are closed. The parent's connection stays
        open.
        """
        if self._process == this_process():
            return False
        self._process = this_process()
        self._hang_up()
        return True

    def _hung_up(self) -> Unavailable:
        return Unavailable(
            f"the daemon at {self._path} hung up before its reply was complete; the request may "
            "have been carried out"
        )

    def _late(self) -> TimedOut:
        return TimedOut(f"the daemon at {self._path} did not answer within {self._timeout:g} s")
