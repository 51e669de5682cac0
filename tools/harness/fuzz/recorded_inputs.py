"""Seed inputs: exchanges recorded between the real clients and a real daemon."""

from __future__ import annotations

import os
import select
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from random import Random

from harness.fuzz.client_check import NUMBERS
from harness.fuzz.inputs import ANNOUNCE, CLIENT, PERMIT, STRETCH, STRETCHED, write
from scache import Client, Found
from scache.protocol.messages import HELLO_REPLY_WITH_FEATURES
from scache.unix import fdpass
from tests.support.daemon import Daemon
from tests.support.replay import InlinePlayer, Player, Supply
from tests.support.request_sequences import TTL_LIMIT, random_steps

Sent = tuple[bytes, int]
"""The bytes of one recvmsg(2), and the number of descriptors with them."""

STEPS_OF_A_SEED = 4


class Relay:
    """A relay between a daemon and its clients that records all messages."""

    def __init__(self, path: Path, daemon: Path) -> None:
        self._daemon = daemon
        self.to_server: list[Sent] = []
        self.to_client: list[Sent] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._run, daemon=True).start()

    def take(self) -> tuple[list[Sent], list[Sent]]:
        """Return the messages since the last call: to the server, and to the client."""
        taken = self.to_server, self.to_client
        self.to_server, self.to_client = [], []
        return taken

    def close(self) -> None:
        """Stop accepting clients."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._pass_on, args=[client], daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            server.connect(str(self._daemon))
            ways = {client: server, server: client}
            data = b"."
            while data:
                for source in select.select(list(ways), [], [])[0]:
                    data, descriptors, _ = fdpass.receive(source)
                    log = self.to_server if source is client else self.to_client
                    log.append((data, len(descriptors)))
                    try:
                        fdpass.send(ways[source], data, descriptors)
                    finally:
                        fdpass.close(descriptors)


REQUEST_AHEAD = b"request\0find_endp\0label\0" + STRETCHED + b"\0\0"

AT_THE_LIMITS = (
    write(STRETCH, [(b"request\0find_endp\0label\0h\0\0", 0), (REQUEST_AHEAD * 50, 0)]),
    write(STRETCH, [(b"request\0find_endp\0label\0", 0), (STRETCHED * 12 + b"\0\0", 0)]),
    write(STRETCH, [(b"request\0" + STRETCHED, 253), (STRETCHED, 1)]),
    write(0, [(b"request\0find_endp\0label\0h\0\0", 253), (b"dummy", 253)]),
    write(CLIENT | STRETCH, [(STRETCHED * 30, 0)], [NUMBERS["find_endp"]]),
    write(
        CLIENT,
        [
            (b"status\x000\0version\x001\0server\0s\0\0", 0),
            (b"status\x002\0reason\0no\0\0", 0),
        ],
        [NUMBERS["hello"], NUMBERS["snapshot"]],
    ),
)
"""Inputs at limits that no recorded exchange reaches."""


def record(seed: int, steps: int) -> list[bytes]:
    """Return inputs for both halves; ``steps`` random requests are recorded in each mode."""
    with (
        tempfile.TemporaryDirectory(prefix="scache-fuzz-") as name,
        Daemon(Path(name, "socket"), "--ttl-limit", str(TTL_LIMIT)) as daemon,
        closing(Relay(Path(name, "relay"), daemon.path)) as relay,
    ):
        path = Path(name, "relay")
        return [
            *_random_requests(relay, path, Player, Random(seed), steps),
            *_random_requests(relay, path, InlinePlayer, Random(seed), steps),
            *_clients(relay, path, inline=False),
            *_clients(relay, path, inline=True),
            *AT_THE_LIMITS,
        ]


def _random_requests(
    relay: Relay, path: Path, kind: type[Player], random: Random, steps: int
) -> Iterator[bytes]:
    """Play random requests, good and bad, and cut the recording into inputs for a server."""
    hello = [(b"request\0hello\0\0", 0)] if kind is InlinePlayer else []
    # The player has a second client, which shows when the first has been served.
    asked_by_other = b"request\0save_dest\0"
    with closing(Supply()) as supply, kind(path) as player:
        relay.take()
        for at, step in enumerate(random_steps(random, steps)):
            with supply.for_step(step) as descriptor:
                supply.found(player.play(step, descriptor).found)
            if at % STEPS_OF_A_SEED == STEPS_OF_A_SEED - 1:
                sent, _ = relay.take()
                mine = [
                    each
                    for each in sent
                    if not (each[0].startswith(asked_by_other) and b"\0other\0" in each[0])
                ]
                yield write(ANNOUNCE | PERMIT, hello + mine)


def _clients(relay: Relay, path: Path, *, inline: bool) -> Iterator[bytes]:
    """Use each method of a client, and yield both directions of the recording as inputs."""
    here, there = socket.socketpair()
    with here, there, Client(path, inline=inline) as client:
        works: list[tuple[str, Callable[[], object]]] = [
            ("find_endp", lambda: client.find_endp("nothing")),
            ("save_endp", lambda: client.save_endp(60, "e", "p", here)),
            ("find_endp", lambda: client.find_endp("e")),
            ("save_dest", lambda: client.save_dest(60, "d", "q", "e")),
            ("save_many", lambda: client.save_many([(60, "e", "p", here)] * 2)),
            ("find_dest", lambda: client.find_dest("d")),
            ("find_many", lambda: client.find_many(["e", "e"])),
        ]
        if inline:
            works += [
                ("snapshot", client.snapshot),
                ("purge", lambda: client.purge(["e"], ["d"])),
                ("purge_ids", lambda: client.purge(ids=[1, 2**63 - 1])),
                ("ping", client.ping),
            ]
        for at, (name, work) in enumerate(works):
            _close(work())
            sent, received = relay.take()
            exchanges = [NUMBERS["hello"]] if inline else []
            exchanges.append(NUMBERS[name])
            before = [(HELLO_REPLY_WITH_FEATURES, 0)] if inline and at else []
            yield write(CLIENT, before + received, exchanges)
            hello = [(b"request\0hello\0\0", 0)] if inline and at else []
            yield write(ANNOUNCE | PERMIT, hello + sent)


def _close(result: object) -> None:
    for each in result if isinstance(result, list) else [result]:
        if isinstance(each, Found):
            each.close()
        elif isinstance(each, int) and not isinstance(each, bool):
            os.close(each)
