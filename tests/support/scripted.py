"""Servers that run a script, which may violate the protocol."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from scache.model import Status
from scache.protocol.messages import EMPTY_REPLY, FindEndp, encode_reply
from scache.unix import fdpass
from tests.support.dialogue import DEADLINE

Script = Callable[[socket.socket], None]

HIT = encode_reply(Status.OK, b"")
"""The reply to a ``find_endp`` that hits."""

MISS = EMPTY_REPLY[FindEndp][Status.FAIL]
"""The reply to a ``find_endp`` that misses."""


@contextmanager
def serving(path: Path, script: Script) -> Iterator[list[int]]:
    """Run a server that runs this script for each client, one after the other.

    Yields a list that grows by one for each client.
    """
    connections: list[int] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                connections.append(len(connections))
                with client, suppress(ConnectionError):
                    client.settimeout(DEADLINE)
                    script(client)

    with (
        ThreadPoolExecutor(1) as thread,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(str(path))
        listener.listen()
        serving = thread.submit(serve)
        try:
            yield connections
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            serving.result(DEADLINE)


def saying(*answers: bytes | tuple[bytes, int]) -> Script:
    """Return a script that sends the first answer at once, and each other one after a message.

    A number is the number of descriptors that are sent with the bytes.
    """

    def script(client: socket.socket) -> None:
        for number, answer in enumerate(answers):
            if number:
                hear(client)
            data, count = answer if isinstance(answer, tuple) else (answer, 0)
            with Path(os.devnull).open() as anything:
                fdpass.send(client, data, [anything.fileno()] * count)

    return script


def hear(client: socket.socket) -> bytes:
    """Receive from the client, and close the descriptors; return the bytes."""
    data, descriptors, _ = fdpass.receive(client)
    fdpass.close(descriptors)
    assert data, "the client hung up"
    return data


def hang(client: socket.socket) -> None:
    """Receive until the client hangs up, and send nothing."""
    with suppress(AssertionError):
        while hear(client):
            pass


def by_turns(*scripts: Script) -> Script:
    """Return a script that runs the next one for each client, and the last one for all others."""
    coming = list(scripts)

    def script(client: socket.socket) -> None:
        (coming.pop(0) if len(coming) > 1 else coming[0])(client)

    return script


def then(*scripts: Script) -> Script:
    """Return a script that runs these one after the other."""

    def script(client: socket.socket) -> None:
        for each in scripts:
            each(client)

    return script
