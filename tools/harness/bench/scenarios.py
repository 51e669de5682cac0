"""How each row is measured: always fresh servers, their rounds interleaved."""

from __future__ import annotations

import os
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from threading import Event
from typing import TypeVar

from common import descriptors, resident
from rich.progress import Progress

from benchmark import servers
from benchmark.load import Load, Option, Sample
from benchmark.rows import AUDIT_OFF, EMPTY, FILE, GENUINE, GENUINE_EMPTY, OURS, ROWS, Result, Row
from benchmark.servers import Failed, NotRun, Server
from scache import Client
from tests.support.daemon import Daemon
from tests.support.genuine import MAIL_OWNER
from tests.support.postfix import PrivatePostfix

STARTERS = {
    OURS: servers.ours(),
    GENUINE: servers.genuine(),
    FILE: servers.ours(file=True),
    AUDIT_OFF: servers.ours("--audit-rows", "0"),
    EMPTY: servers.ours(),
    GENUINE_EMPTY: servers.genuine(),
}

_SPARE_DESCRIPTORS = 200
_AUDIT_PROCESSES = 5
_EXPIRY_ROUNDS = (OURS, GENUINE, OURS)
"""Once is enough to see what Postfix's scache(8) does, which takes its time to be filled."""
_MAIL_SESSIONS = 20
_MAIL_TIMEOUT = 120
"""Seconds that the mail may take."""

Options = Mapping[str, Option]
_CLIENTS_16: Options = {"protocol": "base", "clients": 16}
_CLIENTS_4_DEEP: Options = {"protocol": "inline", "depth": 32, "clients": 4}
_FILL: Options = {"protocol": "inline", "depth": 32, "clients": 16}

T = TypeVar("T")


@dataclass(frozen=True)
class Bench:
    """How much is measured."""

    load: Load
    rounds: int
    milliseconds: int
    """Of each round of each program."""
    warmup: int
    """Milliseconds before that."""
    cached: int
    """Connections or bindings, where many are asked for."""
    messages: int
    """Mail for Postfix."""

    def pairs(self, options: Options) -> Callable[[Server], Sample]:
        """Return what measures pairs for one round."""
        times: Options = {"ms": self.milliseconds, "warmup": self.warmup}
        return lambda server: self.load.run(server, **times, **options)


@dataclass(frozen=True)
class Contenders:
    """The programs that one scenario compares, those that can be had."""

    running: dict[str, Server] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Why the others cannot be had."""

    def each(self, measure: Callable[[Server], T]) -> dict[str, T]:
        """Measure every one once."""
        return {label: measure(server) for label, server in self.running.items()}

    def interleaved(self, rounds: int, measure: Callable[[Server], T]) -> dict[str, list[T]]:
        """Measure them in turn, again and again, now from the first and now from the last on.

        The first in a round may find the machine in another state than the others.
        """
        figures: dict[str, list[T]] = {label: [] for label in self.running}
        for number in range(rounds):
            order = list(self.running.items())
            for label, server in order if number % 2 else reversed(order):
                figures[label].append(measure(server))
        return figures


@contextmanager
def contenders(labels: Iterable[str]) -> Iterator[Contenders]:
    """Start the programs with these labels."""
    found = Contenders()
    with ExitStack() as stack:
        for label in dict.fromkeys(labels):
            try:
                found.running[label] = stack.enter_context(STARTERS[label]())
            except NotRun as reason:
                found.missing[label] = f"{label} not run: {reason}"
        yield found


def per_pair(
    row: Row, samples: Mapping[str, Sequence[Sample]], missing: Mapping[str, str]
) -> Result:
    """Return the result of a row that compares the time of a pair."""
    one, other = samples.get(row.ours, ()), samples.get(row.reference, ())
    notes = [missing[label] for label in (row.ours, row.reference) if label in missing]
    busiest = max((sample.load_share for sample in [*one, *other]), default=0)
    if busiest > 0.9:
        notes.append(f"the load generator was {busiest:.0%} busy")
    return Result(
        row,
        [sample.each for sample in one],
        [sample.each for sample in other],
        [a.server_cpu / b.server_cpu for a, b in zip(one, other, strict=False)],
        "; ".join(notes),
    )


Scenario = Callable[[Bench, Sequence[Row]], Iterator[Result]]
"""Measures some rows in one go."""


def pairs(options: Options, *, processes: int = 1) -> Scenario:
    """Return what compares pairs of the programs that the rows name.

    Where the loader puts things makes a process faster or slower than the next one of the same
    program, by as much as the audit trail costs. So there are several ``processes`` of each for
    that, with a full trail, which is trimmed as it grows.
    """

    def run(bench: Bench, rows: Sequence[Row]) -> Iterator[Result]:
        samples: dict[str, list[Sample]] = defaultdict(list)
        for _ in range(processes):
            with contenders(label for row in rows for label in (row.reference, row.ours)) as both:
                if processes > 1:
                    both.each(
                        lambda server: bench.load.run(server, count=2 * bench.cached, **_FILL)
                    )
                rounds = max(1, bench.rounds // processes)
                for label, found in both.interleaved(rounds, bench.pairs(options)).items():
                    samples[label] += found
        for row in rows:
            yield per_pair(row, samples, both.missing)

    return run


def fill(bench: Bench, server: Server, count: int, **options: Option) -> Sample:
    """Save so many connections, in the fastest way that the server knows."""
    return bench.load.run(server, work="save", count=count, **_FILL, **options)


def require_descriptors(count: int) -> None:
    """Refuse what cannot be done within the limit on open files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit != resource.RLIM_INFINITY and limit < count + _SPARE_DESCRIPTORS:
        raise NotRun(f"{count:,} connections are beyond the hard limit of {limit:,} open files")


def many_cached(bench: Bench, rows: Sequence[Row]) -> Iterator[Result]:
    """Compare time and memory, with many connections cached and with none."""
    require_descriptors(bench.cached)
    with contenders((GENUINE, OURS, GENUINE_EMPTY, EMPTY)) as four:
        four.each(lambda server: bench.load.run(server, count=100, **_CLIENTS_16))
        before = four.each(lambda server: resident(server.pid))
        for label in {OURS, GENUINE} & four.running.keys():
            fill(bench, four.running[label], bench.cached)
        after = four.each(lambda server: resident(server.pid))
        samples = four.interleaved(bench.rounds, bench.pairs(_CLIENTS_16))
    for row in rows[:3]:
        yield per_pair(row, samples, four.missing)
    figures = (
        {label: kib / 1024 for label, kib in before.items()},
        {label: kib / 1024 for label, kib in after.items()},
        {label: (after[label] - before[label]) / bench.cached for label in after},
    )
    for row, each in zip(rows[3:], figures, strict=True):
        one, other = ([each[label]] if label in each else [] for label in (OURS, GENUINE))
        yield Result(row, one, other, note=four.missing.get(GENUINE, ""))


def save_dest(bench: Bench, rows: Sequence[Row]) -> Iterator[Result]:
    """Compare saving bindings, fresh ones and the same again.

    As the fresh ones stay, so many are there at the start that half-way there
    are as many as the row says.
    """
    each_round = bench.cached // 30
    at_start = bench.cached - bench.rounds * each_round // 2

    def bind(count: int, **options: Option) -> Callable[[Server], Sample]:
        work: Options = {"work": "bind", "count": count}
        return lambda server: bench.load.run(server, **work, **_CLIENTS_16, **options)

    with contenders((GENUINE, OURS)) as both:
        both.each(bind(at_start, tag=1))
        for row, measure in zip(rows, (bind(each_round), bind(each_round, tag=1)), strict=True):
            yield per_pair(row, both.interleaved(bench.rounds, measure), both.missing)


def expire_together(bench: Bench, label: str) -> tuple[Sample, Sample]:
    """Measure one client's finds while many connections expire in the same moment, and before.

    Postfix's scache(8) counts whole seconds. Ours does not: with times to live in whole seconds,
    what expires together has to be saved at the same fraction of a second, give or take a tenth.
    """
    shortest = 3 + bench.cached // 3000
    for seconds in (shortest, 2 * shortest, 4 * shortest):
        with STARTERS[label]() as server:
            quiet = descriptors(server.pid)
            window = 200 if server.inline else 0
            try:
                filled = fill(bench, server, bench.cached, together=seconds, window=window)
            except Failed as failure:
                if "moment of expiry" in str(failure):
                    continue  # this machine needs more time to save them all
                raise
            if filled.left < 1.5e6:
                continue
            before = bench.load.run(server, ms=int(filled.left / 1e3) - 1000)
            during = bench.load.run(server, ms=3000)
            if descriptors(server.pid) > quiet + bench.cached // 100:
                raise Failed("they have not expired")
            return during, before
    raise NotRun("this machine is too slow to save them all before the first expires")


def expiry(bench: Bench, rows: Sequence[Row]) -> Iterator[Result]:
    """Compare the finds of one client while many connections expire in the same moment."""
    require_descriptors(bench.cached)
    watched: dict[str, list[tuple[Sample, Sample]]] = {OURS: [], GENUINE: []}
    note = ""
    for label in _EXPIRY_ROUNDS:
        try:
            watched[label].append(expire_together(bench, label))
        except NotRun as reason:
            note = f"{label} not run: {reason}"
    figures: tuple[Callable[[Sample, Sample], float], ...] = (
        lambda during, _: during.find_worst,
        lambda during, _: during.find_median,
        lambda _, before: before.find_worst,
    )
    for row, figure in zip(rows, figures, strict=True):
        one, other = ([figure(*each) / 1e3 for each in found] for found in watched.values())
        yield Result(row, one, other, note=note)


def snapshots(server: Server, enough: Event) -> list[float]:
    """Take snapshots one after the other; return the milliseconds that each took."""
    taken = []
    with Client(server.path, timeout=30) as client:
        while not enough.is_set():
            began = time.monotonic()
            os.close(client.snapshot())
            taken.append((time.monotonic() - began) * 1e3)
    return taken


def snapshot(bench: Bench, rows: Sequence[Row]) -> Iterator[Result]:
    """Watch the finds of one client while snapshots are taken one after the other."""
    require_descriptors(bench.cached)
    quiet, during, taken = [], [], []
    for label in (OURS, FILE):
        with STARTERS[label]() as server, ThreadPoolExecutor(1) as threads:
            fill(bench, server, bench.cached)
            bench.load.run(server, count=2 * bench.cached, **_FILL)  # a full audit trail
            quiet.append(bench.load.run(server, ms=10 * bench.milliseconds).find_worst / 1e3)
            enough = Event()
            taking = threads.submit(snapshots, server, enough)
            try:
                sample = bench.load.run(server, ms=20 * bench.milliseconds)
            finally:
                enough.set()
            during.append(sample.find_worst / 1e3)
            taken += taking.result()
    yield Result(rows[0], during, quiet, note="a database in memory, and a file")
    yield Result(rows[1], taken)


def startup(bench: Bench, rows: Sequence[Row]) -> Iterator[Result]:
    """Compare the time from exec to the announcement."""
    bare = []
    started: dict[str, list[float]] = {OURS: [], GENUINE: []}
    for _ in range(bench.rounds):
        bare.append(servers.python_pass() * 1e3)
        with contenders(started) as both:
            for label, server in both.running.items():
                started[label].append(server.started_in * 1e3)
    yield Result(rows[0], started[OURS], bare)
    yield Result(rows[1], started[OURS], started[GENUINE], note=both.missing.get(GENUINE, ""))


def deliver(messages: int, *, genuine_scache: bool) -> float:
    """Return the seconds that a Postfix of our own takes to deliver so many messages."""
    with ExitStack() as stack:
        try:
            postfix = stack.enter_context(PrivatePostfix(genuine_scache=genuine_scache))
        except (OSError, RuntimeError) as error:
            raise NotRun(str(error)) from None
        if not genuine_scache:
            limit = str(postfix.cache_time_limit)
            options = ("--socket-owner", MAIL_OWNER, "--ttl-limit", limit)
            stack.enter_context(Daemon(postfix.cache_socket, *options))
        start = time.perf_counter()
        postfix.send(messages, _MAIL_SESSIONS, _MAIL_TIMEOUT)
        postfix.wait_delivered(messages, _MAIL_TIMEOUT)
        return time.perf_counter() - start


def mail(bench: Bench, rows: Sequence[Row]) -> Iterator[Result]:
    """Compare what a whole Postfix takes for the same mail."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for at in range(bench.rounds):
        # The first of two that follow each other finds the machine quieter: take turns at that too.
        for genuine in (True, False) if at % 2 else (False, True):
            seconds[genuine].append(deliver(bench.messages, genuine_scache=genuine))
    yield Result(rows[0], seconds[False], seconds[True])


SCENARIOS: dict[tuple[str, ...], Scenario] = {
    ("base-1",): pairs({"protocol": "base"}),
    ("base-16", "file"): pairs(_CLIENTS_16),
    ("base-64",): pairs({"protocol": "base", "clients": 64}),
    ("inline-1",): pairs({"protocol": "inline"}),
    ("inline-16",): pairs({"protocol": "inline", "clients": 16}),
    ("inline-deep",): pairs(_CLIENTS_4_DEEP),
    ("audit",): pairs(_CLIENTS_16, processes=_AUDIT_PROCESSES),
    ("audit-deep",): pairs(_CLIENTS_4_DEEP, processes=_AUDIT_PROCESSES),
    ("cached", "flat", "flat-genuine", "memory-empty", "memory", "memory-each"): many_cached,
    ("save-dest", "save-dest-again"): save_dest,
    ("expiry", "expiry-median", "expiry-quiet"): expiry,
    ("snapshot", "snapshot-time"): snapshot,
    ("startup", "startup-genuine"): startup,
    ("postfix",): mail,
}


def measure(bench: Bench, wanted: Callable[[str], bool], progress: Progress) -> list[Result]:
    """Measure the rows that are wanted, and return them in the order of the table."""
    found: dict[str, Result] = {}
    chosen = [names for names in SCENARIOS if any(map(wanted, names))]
    for names in progress.track(chosen, description="measuring"):
        progress.console.print(", ".join(names))
        rows = [
            replace(row, title=row.title.format(cached=bench.cached, messages=bench.messages))
            for name in names
            for row in ROWS
            if row.name == name
        ]
        try:
            found |= {result.row.name: result for result in SCENARIOS[names](bench, rows)}
        except (NotRun, Failed) as error:
            note = f"{'failed' if isinstance(error, Failed) else 'not run'}: {error}"
            found |= {row.name: Result(row, note=note) for row in rows}
    return [found[row.name] for row in ROWS if row.name in found and wanted(row.name)]
