"""When a parked connection counts as hung up, by the kind of its descriptor."""

from __future__ import annotations

import errno
import os
import pty
import select
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from scache import Client
from scache.cache.descriptors import Descriptors, Parked
from scache.cache.liveness import Kind, kind_of
from scache.inspection.image import Image
from scache.store import serialized
from scache.unix.closing import Closer
from tests.support.daemon import Daemon
from tests.support.dialogue import DEADLINE


def opened(stack: ExitStack, *descriptors: int) -> int:
    """Close these descriptors after the test; return the first."""
    for descriptor in descriptors:
        stack.callback(os.close, descriptor)
    return descriptors[0]


def tcp_pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = stack.enter_context(socket.create_connection(server.getsockname()))
        theirs, _ = server.accept()
        return ours, stack.enter_context(theirs)


def unconnected(family: int, kind: int, stack: ExitStack) -> int:
    """Return a socket that has no peer."""
    return stack.enter_context(socket.socket(family, kind)).fileno()


def listening_with_client(family: int, stack: ExitStack) -> int:
    """Return a listening socket with a client in its backlog."""
    server = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    server.bind(("127.0.0.1", 0) if family == socket.AF_INET else "")  # "": a name of its own
    server.listen()
    stack.enter_context(socket.socket(family, socket.SOCK_STREAM)).connect(server.getsockname())
    return server.fileno()


def tcp_with_time_stamp(stack: ExitStack) -> int:
    """Return a TCP connection that has the time stamp of a sent byte in its error queue."""
    ours, _ = tcp_pair(stack)
    ours.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, TIME_STAMP_OF_ACK)
    ours.send(b"x")
    look = select.poll()
    look.register(ours, 0)
    assert look.poll() == [(ours.fileno(), select.POLLERR)]
    return ours.fileno()


def refused(family: int, stack: ExitStack) -> int:
    """Return a UDP socket with the error of a datagram that was sent to a closed port."""
    ours = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
    with socket.socket(family, socket.SOCK_DGRAM) as theirs:
        theirs.bind(("localhost" if family == socket.AF_INET else "::1", 0))
        ours.connect(theirs.getsockname())
    ours.send(b"x")
    look = select.poll()
    look.register(ours, select.POLLIN)
    assert look.poll() == [(ours.fileno(), select.POLLERR)]
    return ours.fileno()


SO_TIMESTAMPING = 37
TIME_STAMP_OF_ACK = 1 << 9 | 1 << 4
"""SOF_TIMESTAMPING_TX_ACK and SOF_TIMESTAMPING_SOFTWARE (Linux, net_tstamp.h)."""

KINDS: dict[str, tuple[Kind, Callable[[ExitStack], int]]] = {
    "TCP": (Kind.ESTABLISHED, lambda stack: tcp_pair(stack)[0].fileno()),
    "TCP, not connected": (
        Kind.STREAM,
        lambda stack: unconnected(socket.AF_INET, socket.SOCK_STREAM, stack),
    ),
    "TCP, time stamp in its error queue": (Kind.ESTABLISHED, tcp_with_time_stamp),
    "TCP, listening": (
        Kind.LISTENING,
        lambda stack: listening_with_client(socket.AF_INET, stack),
    ),
    "UNIX, listening": (
        Kind.LISTENING,
        lambda stack: listening_with_client(socket.AF_UNIX, stack),
    ),
    "UDP": (Kind.DATAGRAM, lambda stack: unconnected(socket.AF_INET, socket.SOCK_DGRAM, stack)),
    "UDP, refused by its peer": (Kind.DATAGRAM, lambda stack: refused(socket.AF_INET, stack)),
    "UDP over IPv6, refused by its peer": (
        Kind.DATAGRAM,
        lambda stack: refused(socket.AF_INET6, stack),
    ),
    "UNIX stream": (
        Kind.STREAM,
        lambda stack: unconnected(socket.AF_UNIX, socket.SOCK_STREAM, stack),
    ),
    "UNIX seqpacket": (
        Kind.STREAM,
        lambda stack: unconnected(socket.AF_UNIX, socket.SOCK_SEQPACKET, stack),
    ),
    "UNIX datagram": (
        Kind.DATAGRAM,
        lambda stack: unconnected(socket.AF_UNIX, socket.SOCK_DGRAM, stack),
    ),
    "pipe": (Kind.POLLABLE, lambda stack: opened(stack, *os.pipe())),
    "eventfd": (Kind.POLLABLE, lambda stack: opened(stack, os.eventfd(0))),
    "pidfd": (Kind.POLLABLE, lambda stack: opened(stack, os.pidfd_open(os.getpid()))),
    "pseudo-terminal, master": (Kind.POLLABLE, lambda stack: opened(stack, *pty.openpty())),
    "pseudo-terminal, slave": (Kind.POLLABLE, lambda stack: opened(stack, *pty.openpty()[::-1])),
    "ptmx": (Kind.POLLABLE, lambda stack: opened(stack, os.open("/dev/ptmx", os.O_RDWR))),
    "epoll": (Kind.OPAQUE, lambda stack: stack.enter_context(closing(select.epoll())).fileno()),
    "regular file": (
        Kind.OPAQUE,
        lambda stack: opened(stack, os.open(__file__, os.O_RDONLY)),
    ),
    "memfd": (Kind.OPAQUE, lambda stack: opened(stack, os.memfd_create("x"))),
    "directory": (Kind.OPAQUE, lambda stack: opened(stack, os.open("/", os.O_RDONLY))),
    "null device": (Kind.OPAQUE, lambda stack: opened(stack, os.open(os.devnull, os.O_RDONLY))),
}


@pytest.mark.parametrize("name", KINDS)
def test_kind_of_returns_the_kind_of_a_descriptor(name: str, stack: ExitStack) -> None:
    """It distinguishes terminals from other devices, and epoll from other kernel objects."""
    kind, make = KINDS[name]
    assert kind_of(make(stack)) is kind


def count(path: Path, counter: str) -> int:
    """Return a counter of the daemon."""
    with Client(path) as admin, Image.from_bytes(serialized.read(admin.snapshot())) as image:
        rows = image.execute("SELECT value FROM counter WHERE name = :name", {"name": counter})
        return next((int(value or 0) for (value,) in rows.rows), 0)


def watched(client: Client, path: Path) -> None:
    """Wait until the daemon watches every connection that was saved so far."""
    before = count(path, "connections_hung_up")
    ours, theirs = socket.socketpair()
    with theirs:
        assert client.save_endp(60, "watched", "", theirs)
    ours.close()
    while count(path, "connections_hung_up") == before:
        pass


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("wait", [False, True], ids=["young", "watched"])
def test_find_returns_a_connection_that_has_not_hung_up(
    path: Path, name: str, stack: ExitStack, *, wait: bool
) -> None:
    """This holds for each kind of descriptor, also with ``--on-data close``."""
    _, make = KINDS[name]
    with Daemon(path, "--on-data", "close"), Client(path) as client:
        assert client.save_endp(60, "e", "", make(stack))
        if wait:
            watched(client, path)
        found = client.find_endp("e")
        assert found is not None
        found.close()


@pytest.mark.parametrize(
    ("family", "how"),
    [
        (socket.AF_INET, socket.SHUT_RD),
        (socket.AF_INET, socket.SHUT_WR),
        (socket.AF_INET, socket.SHUT_RDWR),
        (socket.AF_UNIX, socket.SHUT_RD),
        (socket.AF_UNIX, socket.SHUT_RDWR),
    ],
)
@pytest.mark.parametrize("wait", [False, True], ids=["young", "watched"])
def test_find_skips_a_connection_that_was_shut_down_through_a_duplicate(
    path: Path, family: int, how: int, stack: ExitStack, *, wait: bool
) -> None:
    """The next connection of the endpoint is found; the audit log says why the first was closed."""
    with Daemon(path), Client(path) as client:
        for number in range(2):
            ours, theirs = (
                tcp_pair(stack)
                if family == socket.AF_INET
                else map(stack.enter_context, socket.socketpair())
            )
            assert client.save_endp(60, "e", str(number), theirs)
            if number == 0:
                if wait:
                    watched(client, path)
                theirs.shutdown(how)
                stack.callback(ours.close)
        found = client.find_endp("e")
        assert found is not None
        assert found.endpoint_properties == b"1"
        found.close()
        with Image.from_bytes(serialized.read(client.snapshot())) as image:
            rows = image.execute(
                "SELECT detail FROM event WHERE kind = 'hung_up' AND endpoint = 'e'"
            )
            ((detail,),) = rows.rows
        if family == socket.AF_INET and how == socket.SHUT_WR:
            # It depends on the peer: it may have acknowledged the shutdown already.
            assert detail in (
                b"no longer ESTABLISHED: FIN_WAIT1",
                b"no longer ESTABLISHED: FIN_WAIT2",
            )


@pytest.mark.parametrize("wait", [False, True], ids=["young", "watched"])
def test_find_skips_a_datagram_socket_that_was_shut_down(path: Path, *, wait: bool) -> None:
    """Its finder could receive no data."""
    with (
        Daemon(path) as daemon,
        Client(daemon.path) as client,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.connect(("localhost", 9))
        assert client.save_endp(60, "e", "", sock)
        if wait:
            watched(client, path)
        sock.shutdown(socket.SHUT_RDWR)
        assert client.find_endp("e") is None


def test_find_skips_a_tcp_connection_that_was_shut_down_before_it_was_saved(
    path: Path, stack: ExitStack
) -> None:
    """Its finder could not send."""
    _, theirs = tcp_pair(stack)
    theirs.shutdown(socket.SHUT_WR)
    with Daemon(path), Client(path) as client:
        assert client.save_endp(60, "e", "", theirs)
        assert client.find_endp("e") is None


class FullEpoll:
    """An epoll instance that is full, as at fs.epoll.max_user_watches."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll

    def __getattr__(self, name: str) -> object:
        return getattr(self._epoll, name)

    def register(self, *_: int) -> None:
        """Raise the error of a full epoll instance."""
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_connection_that_cannot_be_watched_is_polled_by_each_find(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The failure is reported, and a find still detects a hang-up."""
    failures: list[OSError] = []
    ours, theirs = socket.socketpair()
    closer = Closer()
    epoll = select.epoll()
    monkeypatch.setattr(select, "epoll", lambda: FullEpoll(epoll))
    descriptors = Descriptors(closer)
    with ours:
        descriptors.on_watch_failed = failures.append
        number = theirs.detach()
        parked = Parked(1, b"e", 0.0, 60.0, number, kind_of(number), 1)
        descriptors.park(parked)
        assert descriptors.watch(10) is False
        assert [error.errno for error in failures] == [errno.ENOSPC]
        assert descriptors.hang_up_of(parked) is None
    assert descriptors.hang_up_of(parked) == ""
    descriptors.close_all()
    assert closer.finish(DEADLINE) == 0


@pytest.mark.parametrize("wait", [False, True], ids=["young", "watched"])
def test_connection_saved_many_times_is_found_once_for_each_save(
    path: Path, stack: ExitStack, *, wait: bool
) -> None:
    """A hang-up of the peer closes the remaining descriptors."""
    ours, theirs = map(stack.enter_context, socket.socketpair())
    with Daemon(path), Client(path) as client:
        for _ in range(10):
            assert client.save_endp(60, "e", "", theirs)
        if wait:
            watched(client, path)
        for _ in range(5):
            found = client.find_endp("e")
            assert found is not None
            with found.socket() as connection:
                connection.sendall(b"x")
                assert ours.recv(1) == b"x"
        theirs.close()
        ours.close()
        assert client.find_endp("e") is None
        while count(path, "connections_hung_up") < 5 + wait:
            pass
