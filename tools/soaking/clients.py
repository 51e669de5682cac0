"""Well-behaved clients: many in a process, which saves, finds and checks what was found."""

from __future__ import annotations

import heapq
import os
import time
from array import array
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from random import Random

import anyio

from scache import AsyncClient, Found, ProtocolError, Refused, Unavailable
from soaking import proof

MAX_TTL = 8
"""Seconds."""

HELD = 4.0
"""Seconds for which the other end of what was saved stays open, on average."""

TOKENS = 10**9
"""Each process has so many tokens of its own."""


@dataclass
class Report:
    """What clients have seen."""

    counts: Counter[str] = field(default_factory=Counter)
    tokens: array[int] = field(default_factory=lambda: array("Q"))
    """Of all that was found."""
    saved: int = 0
    """Tokens given out."""
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
        """Live until the pipe says something."""
        async with anyio.create_task_group() as tasks:
            for number in range(self._clients):
                tasks.start_soon(self._live, number)
            tasks.start_soon(self._let_go)
            await anyio.wait_readable(pipe.fileno())
            self._over.set()
        for _, other in self._others:
            os.close(other)

    async def _let_go(self) -> None:
        """Close other ends when their time has come."""
        while not self._over.is_set():
            now = time.monotonic()
            while self._others and self._others[0][0] <= now:
                os.close(heapq.heappop(self._others)[1])
            await anyio.sleep(0.02)

    async def _live(self, number: int) -> None:
        """Connect, make some requests, leave, and come again."""
        random = self._random
        while not self._over.is_set():
            inline = number % 2 == 0
            async with AsyncClient(self._path, inline=inline, timeout=10) as client:
                for _ in range(random.randrange(1, 200)):
                    if self._over.is_set():
                        return
                    await anyio.sleep(random.expovariate(1 / self._pause))
                    await self._request(client, inline=inline)

    async def _request(self, client: AsyncClient, *, inline: bool) -> None:
        names, weights = zip(*WORK.items(), strict=True)
        (work,) = self._random.choices(names, weights)
        if work in ("purge", "snapshot") and not inline:
            return
        try:
            await getattr(self, f"_{work}")(client)
        except Unavailable:
            self.report.counts["unavailable"] += 1
            await anyio.sleep(0.05)
        except Refused:
            self.report.counts["refused"] += 1
        except (ProtocolError, proof.WrongHit) as error:
            self.report.wrong.append(f"{type(error).__name__}: {error}")
        else:
            self.report.counts[work] += 1

    async def _save(self, client: AsyncClient, count: int = 1) -> None:
        random, report = self._random, self.report
        items, opened = [], []
        for _ in range(count):
            token = self._first + report.saved
            report.saved += 1
            label = proof.endpoint(random.randrange(proof.ENDPOINTS))
            properties = b"properties of %d" % token
            kind = random.choices(("unix", "tcp", "pipe"), (70, 20, 10))[0]
            each = proof.connection(kind, label, properties, token)
            if random.random() < 0.1:
                os.close(each.ours)  # its peer closed even before it was saved
                report.counts["peer closed before the save"] += 1
            else:
                until = time.monotonic() + random.expovariate(1 / HELD)
                heapq.heappush(self._others, (until, each.ours))
            opened.append(each.theirs)
            items.append((random.randrange(1, MAX_TTL + 1), label, properties, each.theirs))
        try:
            if count == 1:
                accepted = [await client.save_endp(*items[0])]
            else:
                accepted = await client.save_many(items)
            report.counts["saved"] += sum(accepted)
            report.counts["not taken"] += count - sum(accepted)
        finally:
            for descriptor in opened:
                os.close(descriptor)

    async def _save_many(self, client: AsyncClient) -> None:
        await self._save(client, self._random.randrange(2, 12))

    async def _save_dest(self, client: AsyncClient) -> None:
        of = self._random.randrange(proof.DESTINATIONS)
        to = self._random.choice(proof.endpoints_of(of))
        ttl = self._random.randrange(1, 3 * MAX_TTL)
        labels = (proof.destination(of), proof.binding(of, to), proof.endpoint(to))
        await client.save_dest(ttl, *labels)

    async def _find_endp(self, client: AsyncClient, count: int = 1) -> None:
        asked = self._random.choices(range(proof.ENDPOINTS), k=count)
        found = await client.find_many(map(proof.endpoint, asked))
        for each, connection in zip(asked, found, strict=True):
            self._check(each, connection, is_destination=False)

    async def _find_dest(self, client: AsyncClient, count: int = 1) -> None:
        asked = self._random.choices(range(proof.DESTINATIONS), k=count)
        found = await client.find_dest_many(map(proof.destination, asked))
        for each, connection in zip(asked, found, strict=True):
            self._check(each, connection, is_destination=True)

    async def _find_many(self, client: AsyncClient) -> None:
        await self._find_endp(client, self._random.randrange(2, 12))

    async def _find_dest_many(self, client: AsyncClient) -> None:
        await self._find_dest(client, self._random.randrange(2, 12))

    def _check(self, asked: int, found: Found | None, *, is_destination: bool) -> None:
        report = self.report
        report.counts["finds"] += 1
        if found is None:
            return
        try:
            seen = proof.check(found, asked=asked, is_destination=is_destination)
            report.tokens.append(seen.token)
            report.counts["found"] += 1
            report.counts["peer closed before the find"] += seen.hung_up
        except proof.WrongHit as error:
            report.wrong.append(str(error))
        finally:
            found.close()

    async def _purge(self, client: AsyncClient) -> None:
        random = self._random
        await client.purge(
            [proof.endpoint(random.randrange(proof.ENDPOINTS))],
            [proof.destination(random.randrange(proof.DESTINATIONS))],
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
"""What a client does, and how often."""


def run(path: Path, number: int, clients: int, pause: float, seed: int, pipe: Pipe) -> None:
    """Be a process of clients until the pipe says something; send the report."""
    with suppress(PermissionError):
        os.nice(5)  # what is under test is the daemon, not who gets the processor
    population = Population(path, number, clients, pause, seed)
    anyio.run(population.run, pipe)
    pipe.send(population.report)
