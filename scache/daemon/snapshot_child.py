"""The forked child process that makes the image of one snapshot.

The child only reads, and ends with _exit(2). SQLite forbids to close or write a connection after a
fork ("How To Corrupt An SQLite Database File").
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

import anyio

from scache.cache import Cache
from scache.daemon.shortages import shortage_of
from scache.model import Connection, SocketInfo
from scache.store.database import Database
from scache.store.serialized import FAULT, complete, load
from scache.unix import fdpass
from scache.unix.closing import is_file
from scache.unix.process import end_idle, lower_priority
from scache.unix.socket_info import facts_of

_NAP = 0.0002
"""Seconds of each sleep of the child between two slices of work. The sleep makes its processor
idle, and Linux then moves a process to it that waits for another processor. Without the sleep, a
request may wait although only the child uses the other processor."""

_STINT = 64
"""Descriptors that the child examines between two sleeps."""

_WRITE_SIZE = 65536
"""Bytes that the child writes between two sleeps."""

_PROGRESS = b"."
"""Sent by the child after each part of its work. Anything else is the word for what was missing."""

_LONGEST_WORD = 32
"""Bytes that are read of such a word."""

_COPY_NICENESS = 5
"""Niceness added while commits wait, if the daemon may not raise priorities (sched(7))."""

_NICENESS = 10
"""Niceness added after that, if the daemon may not raise priorities."""

_BUG = "bug"
"""Sent if the child fails for another reason than a shortage."""

logger = logging.getLogger(__name__)


class SnapshotError(Exception):
    """The child failed, or no child may be started."""

    def __init__(self, text: str, shortage: str | None) -> None:
        super().__init__(text)
        self.shortage = shortage
        """The word for what was missing (see `shortages`); None if it is unknown."""


class Source(NamedTuple):
    """The parts of the daemon from which a child makes an image."""

    database: Database
    cache: Cache
    to_close: Callable[[], Iterable[int]]
    """Returns the descriptors that the child must not hold: client sockets and those of epoll."""
    figures: Callable[[], Mapping[str, str]]
    """Returns rows of ``setting`` that are not in the database."""


class Child(NamedTuple):
    """The daemon's handle on a running child."""

    pid: int
    pidfd: int
    reader: int
    """A socket: one byte after the child has read the database, another after the image is done;
    or the word for what the child was short of."""

    async def wait_for_byte(self, patience: float) -> None:
        """Wait for the next byte; after ``patience`` seconds, take the child out of SCHED_IDLE.

        Raises SnapshotError if the child has ended instead.
        """
        with anyio.move_on_after(patience) as waiting:
            await anyio.wait_readable(self.reader)
        if waiting.cancelled_caught:
            end_idle(self.pid, self.pidfd)
            await anyio.wait_readable(self.reader)
        byte = os.read(self.reader, 1)
        if not byte:
            raise SnapshotError("the child ended early", "child")
        if byte != _PROGRESS:
            word = (byte + os.read(self.reader, _LONGEST_WORD)).decode()
            raise SnapshotError(f"the child failed ({word})", None if word == _BUG else word)

    def kill(self) -> None:
        """Kill the child; ``pidfd`` stays open, and is readable when the child has ended."""
        end_idle(self.pid, self.pidfd)  # it would keep its descriptors while the machine is busy
        with suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.close(self.reader)


def start(image: int, source: Source, being_delivered: list[Connection]) -> Child:
    """Fork a child that writes a snapshot to the descriptor ``image``.

    ``being_delivered`` are the connections that were found but not sent; they are included. The
    kernel reaps the child (see `process.reap_children`). Raises OSError.
    """
    with ExitStack() as stack, warnings.catch_warnings():
        reader, writer = socket.socketpair()
        stack.enter_context(reader)
        with writer:
            # Python warns that another thread may hold a lock; `held_still` excludes that.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
            if pid == 0:
                _work(image, reader, writer, source, being_delivered)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):  # the kernel has reaped it
                os.waitpid(pid, 0)
            raise
        stack.pop_all()
    with suppress(OSError):  # the child was killed
        reader.shutdown(socket.SHUT_WR)
    return Child(pid, pidfd, reader.detach())


def _work(
    image: int,
    reader: socket.socket,
    progress: socket.socket,
    source: Source,
    being_delivered: list[Connection],
) -> NoReturn:
    """In the child: write the image, report progress to the socket ``progress`` and exit.

    ``reader`` is the daemon's end of that socket.
    """
    database = source.database
    writer = progress.fileno()
    try:
        reader.close()
        # The kernel reaps a child that ends, and its pid may then belong to another process. The
        # daemon shuts its end down when it has the pidfd, so the child does not end before.
        progress.recv(1)
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        lower_priority(niceness, _COPY_NICENESS)
        signal.set_wakeup_fd(-1)  # a signal to the child would wake the daemon
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        # Clients and other daemons wait for these to be closed: the child must not hold them.
        fdpass.close(source.to_close())
        database.let_go()
        copy = load(database.batch.serialize())
        os.write(writer, _PROGRESS)
        lower_priority(niceness, _NICENESS)  # commits no longer wait
        settings = dict(source.figures())
        if (fault := database.fault) is not None:
            settings[FAULT] = fault
        data = complete(copy, being_delivered, _socket_infos(source.cache), settings)
        copy.close()
        _write(image, data)
        del data
        _close_all_but_files(writer)
        os.write(writer, _PROGRESS)
        os._exit(0)
    except BaseException as error:
        with suppress(MemoryError):
            logger.exception("cannot take a snapshot")
        os.write(writer, (shortage_of(error) or _BUG).encode())  # the daemon then kills the child
    finally:
        os._exit(1)


def _socket_infos(cache: Cache) -> Iterator[tuple[int, SocketInfo]]:
    """In the child: yield the socket information of each cached connection, and close it.

    The child closes its copy early, so that the peer sees end of file when the daemon closes the
    connection, and not when the child ends.
    """
    for number, (row_id, descriptor) in enumerate(cache.descriptors()):
        if not number % _STINT:
            time.sleep(_NAP)
        facts = facts_of(descriptor)
        if not is_file(descriptor):
            fdpass.close((descriptor,))
        yield row_id, facts


def _close_all_but_files(kept: int) -> None:
    """In the child: close all descriptors except files and ``kept``.

    The end of the process may wait for the close of a file. Other descriptors must not stay open
    until then.
    """
    try:
        descriptors = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError:  # /proc is not mounted
        descriptors = [*range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])]
    for descriptor in descriptors:
        if descriptor != kept and not is_file(descriptor):
            fdpass.close((descriptor,))


def _write(descriptor: int, data: bytes) -> None:
    """In the child: write data in small pieces, with a sleep before each.

    Kernels built for servers (without preemption) let a process keep its processor during a system
    call, or until the next timer tick.
    """
    rest = memoryview(data)
    while rest:
        time.sleep(_NAP)
        rest = rest[os.write(descriptor, rest[:_WRITE_SIZE]) :]
