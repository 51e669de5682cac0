"""Closes descriptors of others, so that the event loop never waits for close(2).

close(2) of a file sends FLUSH to a FUSE server and waits for the answer, in a state that no signal
ends. That of a large memfd, of an epoll descriptor with thousands of sockets or of a UNIX socket
with descriptors in its queue frees all of these before it returns. That of a socket with SO_LINGER
waits for its peer (socket(7)).
"""

from __future__ import annotations

import _thread
import fcntl
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import NamedTuple

from scache.unix import fdpass, sockopt
from scache.unix.statx import type_of

STUCK = 0.5
"""Seconds after which a close(2) under way counts as stuck: another thread then closes what waits
behind it."""

MAX_THREADS = 16
"""Threads for files, and as many for everything else."""

_POLL_INTERVAL = 0.005
_DOMAIN, _PROTOCOL = int(socket.SO_DOMAIN), int(socket.SO_PROTOCOL)
_LINGER, _LISTENS = int(socket.SO_LINGER), int(socket.SO_ACCEPTCONN)
_UNIX = int(socket.AF_UNIX)
_INTERNET = frozenset({int(socket.AF_INET), int(socket.AF_INET6)})
_TCP, _UDP = int(socket.IPPROTO_TCP), int(socket.IPPROTO_UDP)
_NO_LINGER = struct.pack("2i", 0, 0)


def is_cheap(descriptor: int, *, tcp: bool = False) -> bool:
    """Return True if close(2) is known to take microseconds.

    That is a TCP connection without SO_LINGER, a UDP socket, or a UNIX socket with an empty queue.
    The queue of a UNIX socket may hold descriptors, and that of a listening one whole connections.
    Of what is known to be a ``tcp`` connection, less has to be asked.
    """
    if tcp:
        return not sockopt.option(descriptor, _LINGER)
    domain = sockopt.option(descriptor, _DOMAIN)
    if domain in _INTERNET:
        protocol = sockopt.option(descriptor, _PROTOCOL)
        if protocol == _TCP:
            lingers = sockopt.option(descriptor, _LINGER)
            return not (lingers or sockopt.option(descriptor, _LISTENS))
        return protocol == _UDP
    return domain == _UNIX and sockopt.is_quiet(descriptor)


def is_file(descriptor: int) -> bool:
    """Return True if close(2) may wait for a file server or a device.

    A memfd is none: its file system is the kernel's memory.
    """
    try:
        mode, _ = type_of(descriptor)
        if not stat.S_ISREG(mode):
            return not (stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode) or stat.S_IFMT(mode) == 0)
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        return True
    return False


class _Item(NamedTuple):
    descriptor: int
    is_shared: bool


class _Worker:
    """A thread that closes one descriptor after the other."""

    def __init__(self, queue: SimpleQueue[_Item | None]) -> None:
        self.closed = 0
        self.since: float | None = None
        """When the close(2) under way began; None between two of them."""
        self._late_since: float | None = None
        """The same of the close(2) that had taken STUCK seconds at the latest look."""
        # threading.Thread.start() would wait for the new thread to get a processor.
        _thread.start_new_thread(self._run, (queue,))

    def is_stuck(self) -> bool:
        """Return True if the same close(2) has taken STUCK seconds at two looks in a row.

        A single look may be the first thing that this process does after it was stopped (SIGSTOP).
        """
        since = self.since
        if since is not None and time.monotonic() - since < STUCK:
            since = None
        before, self._late_since = self._late_since, since
        return since is not None and since == before

    def _run(self, queue: SimpleQueue[_Item | None]) -> None:
        while (item := queue.get()) is not None:
            self.since = time.monotonic()
            if not item.is_shared:
                _stop_lingering(item.descriptor)
            fdpass.close((item.descriptor,))
            self.since = None
            self.closed += 1


class _Lane:
    """A queue of descriptors, and the threads that close them."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._workers: list[_Worker] = []
        self._given = 0
        self.error: RuntimeError | None = None
        """Why no thread could be started when one was last needed."""

    @property
    def pending(self) -> int:
        return self._given - sum(worker.closed for worker in self._workers)

    def put(self, item: _Item) -> None:
        self._given += 1
        self._queue.put(item)
        if not self._workers:
            self._add_worker()

    def look(self) -> int:
        """Start a thread if all are stuck; return how many descriptors are."""
        stuck = sum(worker.is_stuck() for worker in self._workers)
        if stuck == len(self._workers) < MAX_THREADS and self.pending > stuck:
            self._add_worker()
        return stuck

    def end(self) -> None:
        """Let the threads end when they have closed what is in the queue."""
        for _ in self._workers:
            self._queue.put(None)

    def _add_worker(self) -> None:
        try:
            self._workers.append(_Worker(self._queue))
        except RuntimeError as error:
            self.error = error
        else:
            self.error = None


class Look(NamedTuple):
    """What a look at the threads has shown."""

    pending: int
    """Descriptors that are not closed yet."""
    stuck: int
    """Descriptors of these whose close(2) does not return."""
    error: RuntimeError | None
    """Why a thread that is needed cannot be started; another look tries again."""


class Closer:
    """Owns the descriptors that are given to it, and closes each of them.

    What is known to be cheap is closed at once, and everything else by threads. Files have threads
    of their own, so that a file server that does not answer keeps nothing but files open. Used by
    the event loop's thread, which calls `look` again and again while something is pending.
    """

    def __init__(self) -> None:
        """Start no thread yet."""
        self.on_pending: Callable[[], None] = lambda: None
        """Called whenever something was left to a thread."""
        self._is_troubled = False
        """True if the latest `look` found that a thread is stuck or cannot be started."""
        self._lanes = self._files, self._others = _Lane(), _Lane()

    @property
    def pending(self) -> int:
        """How many descriptors are still to be closed."""
        return self._files.pending + self._others.pending

    @property
    def held(self) -> int:
        """How many descriptors stay open because a thread is stuck or cannot be started.

        They take the room of connections.
        """
        return self.pending if self._is_troubled else 0

    def close(self, descriptors: Iterable[int], *, tcp: bool = False) -> None:
        """Close descriptors that nobody else uses: none lingers for its peer (see `is_cheap`)."""
        for descriptor in descriptors:
            self._close(_Item(descriptor, is_shared=False), tcp=tcp)

    def close_shared(self, descriptor: int, *, tcp: bool = False) -> None:
        """Close a descriptor that another process uses too: how long it lingers is up to that."""
        self._close(_Item(descriptor, is_shared=True), tcp=tcp)

    def look(self) -> Look:
        """Start another thread where all are stuck; return what there is to say."""
        stuck = sum(lane.look() for lane in self._lanes)
        error = self._files.error or self._others.error
        self._is_troubled = bool(stuck or error)
        return Look(self.pending, stuck, error)

    def finish(self, seconds: float) -> int:
        """Wait up to ``seconds`` until all is closed; return how many descriptors are not."""
        end = time.monotonic() + seconds
        while self.look().pending and time.monotonic() < end:
            time.sleep(_POLL_INTERVAL)
        for lane in self._lanes:
            lane.end()
        return self.pending

    def _close(self, item: _Item, *, tcp: bool) -> None:
        if is_cheap(item.descriptor, tcp=tcp):
            fdpass.close((item.descriptor,))
            return
        lane = self._files if is_file(item.descriptor) else self._others
        lane.put(item)
        self.on_pending()


def _stop_lingering(descriptor: int) -> None:
    """In a thread: keep close(2) of a socket from waiting for its peer."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    except OSError:
        return
    finally:
        sock.detach()
