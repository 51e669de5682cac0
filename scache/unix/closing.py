"""Closing of client-supplied descriptors without blocking the event loop.

close(2) may block for a long time:

- On a FUSE file system it sends FLUSH to the server and waits for the answer, uninterruptibly.
- For a large memfd, an epoll descriptor with thousands of sockets, or a UNIX socket with
  descriptors in its queue, it frees all of these before it returns.
- For a socket with SO_LINGER it waits for the peer (socket(7)).
"""

from __future__ import annotations

import _thread
import fcntl
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import SimpleQueue
from typing import NamedTuple

from scache.unix import fdpass, sockopt
from scache.unix.statx import type_of

STUCK = 0.5
"""Seconds after which a running close(2) counts as stuck. Another thread then closes the
descriptors that are queued behind it."""

MAX_THREADS = 16
"""Most threads for files, and the same number for all other descriptors."""

_POLL_INTERVAL = 0.005
_DOMAIN, _PROTOCOL = int(socket.SO_DOMAIN), int(socket.SO_PROTOCOL)
_LINGER, _LISTENS = int(socket.SO_LINGER), int(socket.SO_ACCEPTCONN)
_UNIX = int(socket.AF_UNIX)
_INTERNET = frozenset({int(socket.AF_INET), int(socket.AF_INET6)})
_TCP, _UDP = int(socket.IPPROTO_TCP), int(socket.IPPROTO_UDP)
_NO_LINGER = struct.pack("2i", 0, 0)


def is_cheap(descriptor: int, *, tcp: bool = False) -> bool:
    """Return True if close(2) of this descriptor is known to take microseconds.

    This is so for a TCP connection without SO_LINGER, a UDP socket, and a UNIX socket with an empty
    queue. The queue of a UNIX socket may hold descriptors, and that of a listening socket may hold
    connections. ``tcp`` means that the descriptor is known to be a TCP connection, which saves
    system calls.
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

    A memfd cannot wait, because it is in memory.
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
    """A thread that closes queued descriptors one after the other."""

    def __init__(self, queue: SimpleQueue[_Item | None]) -> None:
        self.closed = 0
        self.since: float | None = None
        """Start time of the running close(2); None if there is none."""
        self._late_since: float | None = None
        """Start time of the close(2) that had run for STUCK seconds at the last check, or None."""
        self._queue = queue
        self._vacant = [True]
        """Empty once a thread has begun."""
        self.start()

    def start(self) -> None:
        """Start a thread if none has begun; raise RuntimeError if that fails.

        A thread that has no memory ends before it begins; then call this again.
        """
        if self._vacant:
            # threading.Thread.start() would wait for the new thread to get a processor.
            _thread.start_new_thread(self._run, ())

    def is_stuck(self) -> bool:
        """Return True if the same close(2) was late at two checks in a row.

        One check is not enough, because the whole process may have been stopped (SIGSTOP) before.
        """
        since = self.since
        if since is not None and time.monotonic() - since < STUCK:
            since = None
        before, self._late_since = self._late_since, since
        return since is not None and since == before

    def _run(self) -> None:
        try:
            self._vacant.pop()
        except IndexError:
            return  # another thread has begun in the place of this one
        while (item := self._queue.get()) is not None:
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
        """The error if a thread could not be started when one was last needed."""

    @property
    def pending(self) -> int:
        return self._given - sum(worker.closed for worker in self._workers)

    def put(self, item: _Item) -> None:
        self._given += 1
        self._queue.put(item)
        if not self._workers:
            self._add_worker()

    def look(self) -> int:
        """Start another thread if all are stuck; return the number of stuck threads."""
        stuck = sum(worker.is_stuck() for worker in self._workers)
        if stuck == len(self._workers) < MAX_THREADS and self.pending > stuck:
            self._add_worker()
        elif self.pending:
            self._start_again()
        return stuck

    def end(self) -> None:
        """Tell the threads to end after the queued descriptors are closed."""
        for _ in self._workers:
            self._queue.put(None)

    def _start_again(self) -> None:
        """Start the threads that have not begun; the next check repeats it if that fails."""
        with suppress(RuntimeError):
            for worker in self._workers:
                worker.start()

    def _add_worker(self) -> None:
        try:
            self._workers.append(_Worker(self._queue))
        except RuntimeError as error:
            self.error = error
        else:
            self.error = None


class Look(NamedTuple):
    """The state of the closing threads at a check."""

    pending: int
    """Descriptors that are not closed yet."""
    stuck: int
    """Pending descriptors whose close(2) does not return."""
    error: RuntimeError | None
    """The error if a thread could not be started; the next check tries again."""


class Closer:
    """The owner of descriptors that are to be closed.

    A descriptor whose close(2) is known to be cheap is closed at once; the others are closed by
    threads. Files have separate threads, so that a file server that does not answer delays only
    files. Only the event loop's thread uses this class. It calls `look` repeatedly while
    descriptors are pending.
    """

    def __init__(self) -> None:
        """Create a closer; threads are started when they are first needed."""
        self.on_pending: Callable[[], None] = lambda: None
        """Called when a descriptor was queued for a thread."""
        self._is_troubled = False
        """True if the last `look` found a stuck thread or could not start one."""
        self._lanes = self._files, self._others = _Lane(), _Lane()

    @property
    def pending(self) -> int:
        """The number of descriptors that are not closed yet."""
        return self._files.pending + self._others.pending

    @property
    def held(self) -> int:
        """The number of descriptors that stay open because a thread is stuck or cannot be started.

        They count against the limit on connections.
        """
        return self.pending if self._is_troubled else 0

    def close(self, descriptors: Iterable[int], *, tcp: bool = False) -> None:
        """Close descriptors that no other process uses, without lingering for the peer."""
        for descriptor in descriptors:
            self._close(_Item(descriptor, is_shared=False), tcp=tcp)

    def close_shared(self, descriptor: int, *, tcp: bool = False) -> None:
        """Close a descriptor that another process shares; leave its SO_LINGER unchanged."""
        self._close(_Item(descriptor, is_shared=True), tcp=tcp)

    def look(self) -> Look:
        """Check the threads; start another one for each queue whose threads are all stuck."""
        stuck = sum(lane.look() for lane in self._lanes)
        error = self._files.error or self._others.error
        self._is_troubled = bool(stuck or error)
        return Look(self.pending, stuck, error)

    def finish(self, seconds: float) -> int:
        """Wait up to ``seconds`` until all descriptors are closed; return the number left open."""
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
    """Keep close(2) of a socket from waiting for its peer; call this in a thread."""
    try:
        sock = socket.socket(fileno=descriptor)
    except (OSError, MemoryError):
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    except OSError:
        return
    finally:
        sock.detach()
