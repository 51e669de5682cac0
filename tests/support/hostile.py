"""Hostile clients. Each function is one round, which closes everything that it opens.

The daemon may hang up or refuse at any moment, so a round ignores errors. The effect on other
clients is what tests check.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random

from tests.support.request_sequences import (
    find_dest,
    find_endp,
    random_steps,
    save_dest,
    save_endp,
    spoil,
)
from tests.support.wire import DESCRIPTOR_BYTE, DUMMY, Wire, encode

LABEL = b"hostile"
MOST_DESCRIPTORS = 253
"""The limit of one sendmsg(2)."""

HELLO = encode([(b"request", b"hello")])
SAVE = encode(save_endp(LABEL, b"p", b"5"))
FIND = encode(find_endp(LABEL))
FIND_DEST = encode(find_dest(LABEL))
BIND = encode(save_dest(LABEL, b"q", LABEL, b"5"))

Round = Callable[[Path, Random], None]


@contextmanager
def some_descriptors(count: int = 1) -> Iterator[list[int]]:
    """Yield ``count`` descriptors of one file."""
    with ExitStack() as stack:
        first = os.memfd_create("hostile")
        stack.callback(os.close, first)
        more = [os.dup(first) for _ in range(count - 1)]
        for descriptor in more:
            stack.callback(os.close, descriptor)
        yield [first, *more]


@contextmanager
def ignoring_errors() -> Iterator[None]:
    """Ignore that the daemon hangs up, is not there, or does not reply."""
    with suppress(OSError, EOFError, AssertionError):  # part of a message, at the end
        yield


def label_without_end(path: Path, random: Random) -> None:
    """Send a message that never ends."""
    beginning = random.choice(
        (b"request\0find_endp\0label\0", b"", b"request\0", b"name\0", FIND + b"dummy\0")
    )
    with ignoring_errors(), Wire(path) as client:
        client.send(beginning)
        for _ in range(64):
            client.send(b"x" * 65536)


def pipeline_without_end(path: Path, random: Random) -> None:
    """Send very many requests ahead, then read all replies."""
    requests = b"".join(random.choices((FIND, FIND_DEST, BIND), k=500))
    with ignoring_errors(), Wire(path) as client:
        if random.random() < 0.5:
            client.send(HELLO)
        for _ in range(20):
            client.send(requests)
            for _ in range(500):
                client.receive_message_bytes()


def read_nothing(path: Path, random: Random, patience: float = 3.0) -> None:
    """Send requests until the socket buffer is full, and read no reply."""
    with ignoring_errors(), Wire(path, patience) as client:
        if random.random() < 0.5:
            client.send(HELLO)
        while True:
            client.send((FIND + BIND) * 200)


def byte_by_byte(path: Path, random: Random, pause: float = 1.0) -> None:
    """Connect many clients that slowly send one byte after the other."""
    exchange = random.choice((SAVE + DESCRIPTOR_BYTE, FIND + DUMMY + DUMMY, BIND))
    with ignoring_errors(), ExitStack() as stack:
        clients = [stack.enter_context(Wire(path)) for _ in range(20)]
        start = random.randrange(len(exchange))
        for client in clients:
            client.send(exchange[:start])
        for at in range(start, min(start + 4, len(exchange))):
            for client in clients:
                with ignoring_errors():
                    client.send(exchange[at : at + 1])
            time.sleep(pause)


def most_descriptors(path: Path, random: Random) -> None:
    """Send the largest possible number of descriptors in each of many messages."""
    carrier = random.choice((b"\0", b"x", FIND, SAVE, SAVE + DESCRIPTOR_BYTE))
    with some_descriptors(MOST_DESCRIPTORS) as heap, ignoring_errors(), Wire(path, 1.0) as client:
        if random.random() < 0.5:
            client.send(HELLO)
        for _ in range(20):
            client.send(carrier, heap)


def unexpected_descriptors(path: Path, random: Random) -> None:
    """Send descriptors with requests that take none, and read the replies."""
    with some_descriptors(3) as some, ignoring_errors(), Wire(path) as client:
        if random.random() < 0.5:
            client.send(HELLO)
            client.receive_message_bytes()
        client.announcement()
        for _ in range(100):
            client.send(random.choice((FIND_DEST, BIND)), some[: random.randrange(1, 4)])
            client.receive_message_bytes()
            client.send(random.choice((b"\0", DUMMY)), some[:1])


def connect_and_vanish(path: Path, random: Random, times: int = 100) -> None:
    """Connect and disconnect at once, many times."""
    del random
    for _ in range(times):
        with ignoring_errors(), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(path))


Pieces = Sequence[tuple[bytes, int]]
"""Bytes, and the number of descriptors attached to the first of them."""

_BASE: Pieces = [(SAVE, 0), (DESCRIPTOR_BYTE, 1)]
EXCHANGES: Sequence[Pieces] = (
    [*_BASE, (FIND + DUMMY + DUMMY, 0)],
    [(SAVE, 1), (DESCRIPTOR_BYTE, 0), (BIND + FIND_DEST + DUMMY + DUMMY, 0)],
    [(HELLO, 0), (SAVE, 1), (BIND, 0), (FIND, 0)],
    [(HELLO, 0), (BIND + SAVE + SAVE + FIND_DEST + FIND, 2)],
)
"""Every kind of exchange, in both modes."""


def abort_everywhere(path: Path, random: Random) -> None:
    """Hang up after each byte of each exchange, sometimes after reading the reply."""
    with some_descriptors(2) as some:
        for exchange in EXCHANGES:
            for length in range(1, sum(len(data) for data, _ in exchange) + 1):
                with ignoring_errors(), Wire(path) as client:
                    left = length
                    for data, count in exchange:
                        if left > 0:
                            client.send(data[:left], some[:count])
                            left -= len(data)
                    if random.random() < 0.1:
                        close_all(client.receive_raw(0.01)[1])


def close_all(descriptors: Sequence[int]) -> None:
    """Close received descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)


def nonsense(path: Path, random: Random) -> None:
    """Send corrupted exchanges, some of them with descriptors."""
    spoiled = list(spoil(save_endp(LABEL, b"p", b"5")))
    with some_descriptors(3) as some, ignoring_errors(), Wire(path, 0.2) as client:
        if random.random() < 0.5:
            client.send(HELLO)
        for step in random_steps(random, 50):
            data = bytearray(b"".join(step.pieces) or random.choice(spoiled))
            if len(data) > 1000:
                continue  # the audit log keeps every label, and memory would grow
            for _ in range(random.randrange(3)):
                data[random.randrange(len(data))] = random.randrange(256)
            client.send(bytes(data), some[: random.choice((0, 0, 0, 1, 2))])
            if random.random() < 0.2:
                with suppress(TimeoutError):
                    close_all(client.receive_raw(0.001)[1])


def slow_to_close_descriptors(path: Path, random: Random) -> None:
    """Save descriptors that are slow to close, and leave the last copy of them to the daemon."""
    with ExitStack() as stack:
        memory = os.memfd_create("hostile")
        stack.callback(os.close, memory)
        os.posix_fallocate(memory, 0, random.randrange(1, 64) << 20)
        epoll = select.epoll()
        stack.callback(epoll.close)
        pairs = [socket.socketpair() for _ in range(200)]
        for ours, theirs in pairs:
            stack.enter_context(ours)
            stack.enter_context(theirs)
            epoll.register(theirs, select.EPOLLIN)
        socket.send_fds(
            pairs[0][0], [b"x"], [epoll.fileno(), memory, *(b.fileno() for _, b in pairs)]
        )
        with ignoring_errors(), Wire(path) as client:
            client.announcement()
            for descriptor in (memory, epoll.fileno(), pairs[0][1].fileno()):
                client.save_endp(1, LABEL, b"p", descriptor)


BEHAVIOURS: dict[str, Round] = {
    "label without end": label_without_end,
    "pipeline without end": pipeline_without_end,
    "read nothing": read_nothing,
    "byte by byte": byte_by_byte,
    "most descriptors": most_descriptors,
    "unexpected descriptors": unexpected_descriptors,
    "connect and vanish": connect_and_vanish,
    "abort everywhere": abort_everywhere,
    "nonsense": nonsense,
    "descriptors slow to close": slow_to_close_descriptors,
}
"""All rounds by name."""
