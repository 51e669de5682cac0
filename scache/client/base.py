"""What both clients hold: a connection, and the time that a request may take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from scache.client.connection import Connection
from scache.errors import Unavailable
from scache.unix import fdpass

DEFAULT_TIMEOUT = 5.0
"""Seconds that a request may take, as Postfix's own client gives it."""

CONNECT_PAUSE = 0.01
"""Seconds until the next attempt while the daemon's backlog is full: no event tells of room."""


_forks: list[int] = []
os.register_at_fork(after_in_child=lambda: _forks.append(os.getpid()))


def this_process() -> tuple[int, int]:
    """Return what tells this process from those that it was forked from.

    The pid alone does not: a child can have that of its parent in a pid namespace of its own, or
    that of an ancestor that has ended. The number of forks alone misses those of C code.
    """
    return os.getpid(), len(_forks)


class BaseClient:
    """A client that may be connected."""

    def __init__(self, path: str | Path, *, timeout: float, inline: bool) -> None:
        """Speak to the socket at this path; give each request ``timeout`` seconds."""
        self._path = os.fspath(path)
        self._timeout = timeout
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
            "conversation on it; make a new one from the same path"
        )

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _rested(self) -> Connection | None:
        """Return the connection for a new request, or hang up if an exception broke into the last.

        None if there is no connection then.
        """
        if self._connection is not None and not self._connection.at_rest:
            self._hang_up()
        if self._connection is not None:
            self._connection.begin_request()
        return self._connection

    def _forked(self) -> bool:
        """Leave the conversation to the parent, if this process is a child that has just found out.

        Only copies of descriptors are closed: the parent's connection goes on.
        """
        if self._process == this_process():
            return False
        self._process = this_process()
        self._hang_up()
        return True

    def _hung_up(self) -> Unavailable:
        return Unavailable(f"the daemon at {self._path} hung up")

    def _late(self) -> Unavailable:
        return Unavailable(
            f"the daemon at {self._path} did not answer within {self._timeout:g} seconds"
        )
