"""The closer: descriptors that it closes at once, and those that its threads close."""

from __future__ import annotations

import _thread
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from scache.unix import closing
from scache.unix.closing import Closer, is_cheap, is_file
from tests.support.dialogue import DEADLINE, eventually


@pytest.fixture
def closer() -> Iterator[Closer]:
    """Make a closer; assert at the end that it has closed everything."""
    closer = Closer()
    yield closer
    assert closer.finish(DEADLINE) == 0


def opened(stack: ExitStack, *descriptors: int) -> int:
    """Close these descriptors after the test; return the first."""
    for descriptor in descriptors:
        stack.callback(os.close, descriptor)
    return descriptors[0]


def new_socket(stack: ExitStack, *kind: int) -> socket.socket:
    """Return a new socket of this family, type and protocol."""
    return stack.enter_context(socket.socket(*kind))


def tcp(stack: ExitStack) -> socket.socket:
    """Return a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return stack.enter_context(socket.create_connection(listener.getsockname()))


def lingering(sock: socket.socket) -> socket.socket:
    """Set SO_LINGER, so that close(2) waits for the peer."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("2i", 1, 3600))
    return sock


def fill(sock: socket.socket) -> None:
    """Send as much as the kernel takes while the peer reads nothing."""
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            sock.send(bytes(65536))


def unix(stack: ExitStack, data: bytes = b"") -> socket.socket:
    """Return a UNIX socket with this data in its queue."""
    ours, peer = (stack.enter_context(end) for end in socket.socketpair())
    peer.send(data)
    return ours


def listening(stack: ExitStack, *, client: bool) -> socket.socket:
    """Return a listening UNIX socket, with a client in its backlog if ``client``."""
    sock = new_socket(stack, socket.AF_UNIX)
    sock.bind("")  # the kernel chooses a name (unix(7), "autobind")
    sock.listen()
    if client:
        new_socket(stack, socket.AF_UNIX).connect(sock.getsockname())
    return sock


CHEAP: dict[str, Callable[[ExitStack], socket.socket]] = {
    "tcp": tcp,
    "tcp that was never connected": lambda stack: new_socket(stack, socket.AF_INET),
    "udp": lambda stack: new_socket(stack, socket.AF_INET6, socket.SOCK_DGRAM),
    "unix": unix,
    "unix datagram": lambda stack: new_socket(stack, socket.AF_UNIX, socket.SOCK_DGRAM),
    "listening unix": lambda stack: listening(stack, client=False),
}
EXPENSIVE: dict[str, Callable[[ExitStack], socket.socket]] = {
    "tcp with linger": lambda stack: lingering(tcp(stack)),
    "listening tcp": lambda stack: stack.enter_context(socket.create_server(("127.0.0.1", 0))),
    "unix with a queue": lambda stack: unix(stack, b"x"),
    "unix with a client": lambda stack: listening(stack, client=True),
    "netlink": lambda stack: new_socket(stack, socket.AF_NETLINK, socket.SOCK_RAW),
}


@pytest.mark.parametrize("kind", [*CHEAP, *EXPENSIVE])
def test_sockets_are_closed_at_once_if_that_is_cheap(stack: ExitStack, kind: str) -> None:
    """Cheap: the kernel has nothing large to free, and does not wait for the peer."""
    sock = (CHEAP | EXPENSIVE)[kind](stack)
    if kind.startswith("tcp"):
        assert is_cheap(sock.fileno(), tcp=True) is (kind in CHEAP)
    assert is_cheap(sock.fileno()) is (kind in CHEAP)
    assert not is_file(sock.fileno())


def test_descriptors_other_than_sockets_are_closed_by_threads(stack: ExitStack) -> None:
    """Files, directories and devices are distinguished from kernel objects."""
    epoll = select.epoll()
    stack.callback(epoll.close)
    objects = [
        opened(stack, *os.pipe()),
        opened(stack, os.memfd_create("memory")),
        opened(stack, os.eventfd(0)),
        epoll.fileno(),
    ]
    files = [opened(stack, os.open(name, os.O_RDONLY)) for name in ("/", os.devnull, __file__)]
    assert not any(is_cheap(descriptor) for descriptor in objects + files)
    assert [is_file(descriptor) for descriptor in objects] == [False] * len(objects)
    assert [is_file(descriptor) for descriptor in files] == [True] * len(files)


def test_lingering_socket_is_closed_without_waiting_for_its_peer(
    stack: ExitStack, closer: Closer
) -> None:
    """No other process has it, so the kernel sends the rest in the background."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
        peer = stack.enter_context(listener.accept()[0])
    fill(lingering(sock))
    closer.close((sock.detach(),))
    eventually(lambda: closer.look().pending == 0)
    peer.settimeout(DEADLINE)
    while peer.recv(65536):
        pass


def test_linger_of_a_shared_socket_is_unchanged(stack: ExitStack, closer: Closer) -> None:
    """The finder has the same socket open, and may rely on SO_LINGER."""
    sock = lingering(tcp(stack))
    closer.close_shared(os.dup(sock.fileno()))
    eventually(lambda: closer.look().pending == 0)
    linger = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
    assert linger == struct.pack("2i", 1, 3600)


def test_thread_that_cannot_be_started_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, closer: Closer
) -> None:
    """The descriptor is held, and is closed when a thread can be started."""
    reader, writer = os.pipe()
    told: list[int] = []
    closer.on_pending = lambda: told.append(closer.pending)

    def no_thread(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", no_thread)
        closer.close((reader,))
        look = closer.look()
        assert (look.pending, look.stuck, str(look.error)) == (1, 0, "can't start new thread")
        assert (closer.held, told) == (1, [1])
        os.write(writer, b"x")
    closer.look()
    eventually(lambda: closer.pending == 0)
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"x")
    os.close(writer)
    assert closer.look() == (0, 0, None)
    assert closer.held == 0


def test_thread_that_ends_before_it_begins_is_replaced(
    monkeypatch: pytest.MonkeyPatch, closer: Closer
) -> None:
    """A new thread may find no memory; if it begins late after all, it leaves the work alone."""
    reader, writer = os.pipe()
    threads: list[Callable[[], None]] = []

    def lost(function: Callable[[], None], _: tuple[()]) -> int:
        threads.append(function)
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", lost)
        closer.close((reader,))
        assert closer.look().pending == 1
    closer.look()
    eventually(lambda: closer.pending == 0)
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"x")
    for late in threads:
        late()
    closer.close((writer,))
    eventually(lambda: closer.look() == (0, 0, None))


def test_thread_that_has_begun_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch, closer: Closer
) -> None:
    """It may be busy with a close(2) that takes long."""
    begun, answers, close = threading.Event(), threading.Event(), os.close
    start, started = _thread.start_new_thread, list[object]()

    def count(function: Callable[[], None], arguments: tuple[()]) -> int:
        started.append(function)
        return start(function, arguments)

    def wait(descriptor: int) -> None:
        begun.set()
        assert answers.wait(DEADLINE)
        close(descriptor)

    descriptor = os.open("/", os.O_RDONLY)
    with monkeypatch.context() as patch:
        patch.setattr(closing, "STUCK", 2 * DEADLINE)
        patch.setattr(_thread, "start_new_thread", count)
        patch.setattr(os, "close", wait)
        closer.close((descriptor,))
        assert begun.wait(DEADLINE)
        assert closer.look().pending == 1
        answers.set()
        eventually(lambda: closer.look().pending == 0)
    assert len(started) == 1


def test_stuck_close_does_not_delay_other_descriptors(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack, closer: Closer
) -> None:
    """Another thread for files starts when all are stuck; other descriptors have own threads."""
    monkeypatch.setattr(closing, "STUCK", 0.01)
    answers, close = threading.Event(), os.close
    silent = {opened(stack, os.open("/", os.O_RDONLY)) for _ in range(closing.MAX_THREADS)}

    def wait_for_server(descriptor: int) -> None:
        if descriptor in silent:
            assert answers.wait(DEADLINE * 2)
        else:
            close(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", wait_for_server)
        closer.close(silent)
        last = os.open(os.devnull, os.O_RDONLY)
        reader, writer = os.pipe()
        closer.close((last, reader))
        eventually(lambda: closer.look()[:2] == (len(silent) + 1, len(silent)))
        assert closer.held == len(silent) + 1
        with pytest.raises(BrokenPipeError):
            os.write(writer, b"x")
        answers.set()
        eventually(lambda: closer.look() == (0, 0, None))
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(last)
    os.close(writer)


def test_close_is_not_stuck_because_the_process_was_stopped(
    monkeypatch: pytest.MonkeyPatch, closer: Closer
) -> None:
    """Two checks have to agree, because the thread can go on between them."""
    stopped, answers, close = threading.Event(), threading.Event(), os.close
    descriptor = os.open("/", os.O_RDONLY)

    def wait(descriptor: int) -> None:
        stopped.set()
        assert answers.wait(DEADLINE)
        close(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", wait)
        closer.close((descriptor,))
        assert stopped.wait(DEADLINE)
        patch.setattr(closing, "STUCK", 0)
        assert closer.look() == (1, 0, None)
        assert closer.look() == (1, 1, None)
        assert closer.look() == (1, 1, None)
        answers.set()
        eventually(lambda: closer.look() == (0, 0, None))


def test_finish_returns_the_number_of_descriptors_left_open(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    """It waits for the given time at most."""
    answers = threading.Event()
    directory = opened(stack, os.open("/", os.O_RDONLY))
    closer = Closer()
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", lambda _: answers.wait(DEADLINE * 2))
        closer.close((directory,))
        assert closer.finish(0.01) == 1
        answers.set()
        eventually(lambda: closer.pending == 0)
