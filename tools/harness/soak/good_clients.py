"""Well-behaved clients, many in a process, that save, find, and check each connection found.

The other end of a connection sends its endpoint, properties and a token when it is saved. The
client that finds the connection reads them.
"""

from __future__ import annotations

import heapq
import os
import select
import socket
import time
from array import array
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from random import Random
from typing import NamedTuple

import anyio

from scache import AsyncClient, Found, ProtocolError, Refused, Unavailable

ENDPOINTS = 60
DESTINATIONS = 30
BOUND = 3
"""Endpoints to which a destination is bound."""

MAX_TTL = 8
"""Seconds."""

HELD = 4.0
"""Seconds, on average, for which the other end of a saved connection stays open."""

TOKENS = 10**9
"""Tokens reserved for each process."""

END = b"\n"


def endpoint(number: int) -> bytes:
    """Return the label of an endpoint, which is not UTF-8."""
    return b"endpoint %d \xff" % number


def destination(number: int) -> bytes:
    """Return the label of a destination."""
    return b"destination %d" % number


def endpoints_of(number: int) -> list[int]:
    """Return the endpoints to which clients bind a destination."""
    return [(number * 7 + at * 13) % ENDPOINTS for at in range(BOUND)]


def binding(of: int, to: int) -> bytes:
    """Return the properties of the binding of a destination to an endpoint."""
    return b"%d to %d" % (of, to)


def connection(kind: str, label: bytes, properties: bytes, token: int) -> tuple[int, int]:
    """Open a connection and write a proof to it; return that end and the end to save."""
    if kind == "pipe":
        theirs, ours = os.pipe()
    elif kind == "unix":
        ours, theirs = (each.detach() for each in socket.socketpair())
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname()).detach()
            theirs = listener.accept()[0].detach()
    os.write(ours, b"\0".join((label, properties, b"%d" % token)) + END)
    return ours, theirs


class Proof(NamedTuple):
    """The data that the other end of a connection sent."""

    endpoint: bytes
    properties: bytes
    token: int


class WrongHit(Exception):
    """A find returned another connection than it asked for."""


def read(found: Found) -> Proof:
    """Read the proof; raise WrongHit if there is none. The descriptor stays the caller's."""
    data = b""
    while not data.endswith(END):
        more = _read(found.descriptor, milliseconds=1000)
        if not more:
            raise WrongHit(f"the connection sent only {data!r}, then {more!r}")
        data += more
    label, properties, token = data.removesuffix(END).split(b"\0")
    return Proof(label, properties, int(token))


def _read(descriptor: int, *, milliseconds: int) -> bytes | None:
    """Return the data to read, b"" after a hang-up, None if the time is over."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(milliseconds):
        return None
    try:
        return os.read(descriptor, 4096)
    except ConnectionResetError:
        return b""


def check(found: Found, *, asked: int, is_destination: bool) -> Proof:
    """Return the proof of a connection; raise WrongHit if the find asked for another one."""
    proof = read(found)
    if proof.properties != found.endpoint_properties:
        raise WrongHit(f"{proof} came with the properties {found.endpoint_properties!r}")
    right = {endpoint(asked): b""}
    if is_destination:
        right = {endpoint(each): binding(asked, each) for each in endpoints_of(asked)}
    if right.get(proof.endpoint) != found.destination_properties:
        kind = "destination" if is_destination else "endpoint"
        raise WrongHit(f"{proof} was found as {kind} {asked}: {found}")
    return proof


@dataclass
class Report:
    """The results of the clients of one process."""

    counts: Counter[str] = field(default_factory=Counter)
    tokens: array[int] = field(default_factory=lambda: array("Q"))
    """Tokens of the connections that were found."""
    saved: int = 0
    """Tokens that were used."""
    wrong: list[str] = field(default_factory=list)


class Population:
    """The clients of one process."""

    def __init__(self, path: Path, number: int, clients: int, pause: float, seed: int) -> None:
        self._path = path
        self._clients = clients
        self._pause = pause
        self._random = Random(seed * 1000 + number)
        self._first = number * TOKENS
        self._others: list[tuple[float, int]] = []
        self._over = anyio.Event()
        self.report = Report()

    async def run(self, pipe: Pipe) -> None:
        """Run the clients until the pipe has a message."""
        async with anyio.create_task_group() as tasks:
            for number in range(self._clients):
                tasks.start_soon(self._run_client, number)
            tasks.start_soon(self._close_other_ends)
            await anyio.wait_readable(pipe.fileno())
            self._over.set()
        for _, other in self._others:
            os.close(other)

    async def _close_other_ends(self) -> None:
        """Close each other end at its time."""
        while not self._over.is_set():
            now = time.monotonic()
            while self._others and self._others[0][0] <= now:
                os.close(heapq.heappop(self._others)[1])
            await anyio.sleep(0.02)

    async def _run_client(self, number: int) -> None:
        """Connect, make some requests and disconnect, again and again."""
        inline = number % 2 == 0
        while not self._over.is_set():
            async with AsyncClient(self._path, inline=inline, timeout=10) as client:
                for _ in range(self._random.randrange(1, 200)):
                    if self._over.is_set():
                        return
                    await anyio.sleep(self._random.expovariate(1 / self._pause))
                    await self._request(client, inline=inline)

    async def _request(self, client: AsyncClient, *, inline: bool) -> None:
        (work,) = self._random.choices(list(WORK), list(WORK.values()))
        if work in ("purge", "snapshot") and not inline:
            return
        try:
            await getattr(self, f"_{work}")(client)
        except Unavailable:
            self.report.counts["unavailable"] += 1
            await anyio.sleep(0.05)
        except Refused:
            self.report.counts["refused"] += 1
        except (ProtocolError, WrongHit) as error:
            self.report.wrong.append(f"{type(error).__name__}: {error}")
        else:
            self.report.counts[work] += 1

    async def _save(self, client: AsyncClient, count: int = 1) -> None:
        random, report = self._random, self.report
        items = []
        for _ in range(count):
            token = self._first + report.saved
            report.saved += 1
            label = endpoint(random.randrange(ENDPOINTS))
            properties = b"properties of %d" % token
            kind = random.choices(("unix", "tcp", "pipe"), (70, 20, 10))[0]
            ours, theirs = connection(kind, label, properties, token)
            if random.random() < 0.1:
                os.close(ours)  # the peer closed before the connection was saved
                report.counts["peer closed before the save"] += 1
            else:
                until = time.monotonic() + random.expovariate(1 / HELD)
                heapq.heappush(self._others, (until, ours))
            items.append((random.randrange(1, MAX_TTL + 1), label, properties, theirs))
        try:
            if count == 1:
                accepted = [await client.save_endp(*items[0])]
            else:
                accepted = await client.save_many(items)
            report.counts["saved"] += sum(accepted)
            report.counts["not taken"] += count - sum(accepted)
        finally:
            for *_, theirs in items:
                os.close(theirs)

    async def _save_many(self, client: AsyncClient) -> None:
        await self._save(client, self._random.randrange(2, 12))

    async def _save_dest(self, client: AsyncClient) -> None:
        of = self._random.randrange(DESTINATIONS)
        to = self._random.choice(endpoints_of(of))
        ttl = self._random.randrange(1, 3 * MAX_TTL)
        await client.save_dest(ttl, destination(of), binding(of, to), endpoint(to))

    async def _find_endp(self, client: AsyncClient, count: int = 1) -> None:
        asked = self._random.choices(range(ENDPOINTS), k=count)
        found = await client.find_many(map(endpoint, asked))
        for each, hit in zip(asked, found, strict=True):
            self._check(each, hit, is_destination=False)

    async def _find_dest(self, client: AsyncClient, count: int = 1) -> None:
        asked = self._random.choices(range(DESTINATIONS), k=count)
        found = await client.find_dest_many(map(destination, asked))
        for each, hit in zip(asked, found, strict=True):
            self._check(each, hit, is_destination=True)

    async def _find_many(self, client: AsyncClient) -> None:
        await self._find_endp(client, self._random.randrange(2, 12))

    async def _find_dest_many(self, client: AsyncClient) -> None:
        await self._find_dest(client, self._random.randrange(2, 12))

    def _check(self, asked: int, found: Found | None, *, is_destination: bool) -> None:
        report = self.report
        report.counts["finds"] += 1
        if found is None:
            return
        with found:
            try:
                proof = check(found, asked=asked, is_destination=is_destination)
            except WrongHit as error:
                report.wrong.append(str(error))
                return
            report.tokens.append(proof.token)
            report.counts["found"] += 1
            hung_up = _read(found.descriptor, milliseconds=0) == b""
            report.counts["peer closed before the find"] += hung_up

    async def _purge(self, client: AsyncClient) -> None:
        random = self._random
        await client.purge(
            [endpoint(random.randrange(ENDPOINTS))],
            [destination(random.randrange(DESTINATIONS))],
            [random.randrange(1, 100_000)],
        )

    async def _snapshot(self, client: AsyncClient) -> None:
        os.close(await client.snapshot())


WORK: dict[str, float] = {
    "save": 30,
    "save_many": 4,
    "save_dest": 15,
    "find_endp": 20,
    "find_dest": 20,
    "find_many": 3,
    "find_dest_many": 3,
    "purge": 0.5,
    "snapshot": 0.05,
}
"""Weights of the requests that a client makes."""


def run(path: Path, number: int, clients: int, pause: float, seed: int, pipe: Pipe) -> None:
    """Run clients until the pipe has a message; then send the report."""
    with suppress(PermissionError):
        os.nice(5)  # the test is of the daemon, not of how this process is scheduled
    population = Population(path, number, clients, pause, seed)
    anyio.run(population.run, pipe)
    pipe.send(population.report)
