"""The scenarios, each of which measures some rows with fresh servers and interleaved rounds."""

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

from rich.progress import Progress

from harness.bench import servers
from harness.bench.load import Load, Option, Sample
from harness.bench.rows import (
    AUDIT_OFF,
    EMPTY,
    FILE,
    OURS,
    POSTFIX,
    POSTFIX_EMPTY,
    ROWS,
    Result,
    Row,
)
from harness.bench.servers import Failed, NotRun, Server
from harness.processes import descriptors, resident
from scache import Client
from tests.support.daemon import Daemon
from tests.support.postfix_setup import MAIL_OWNER
from tests.support.private_postfix import PrivatePostfix

STARTERS = {
    OURS: servers.ours(),
    POSTFIX: servers.postfix_scache(),
    FILE: servers.ours(file=True),
    AUDIT_OFF: servers.ours("--audit-rows", "0"),
    EMPTY: servers.ours(),
    POSTFIX_EMPTY: servers.postfix_scache(),
}

_SPARE_DESCRIPTORS = 200
_AUDIT_PROCESSES = 5
_EXPIRY_ROUNDS = (OURS, POSTFIX, OURS)
"""Postfix's scache(8) runs once only, because it takes long to fill."""
_MAIL_SESSIONS = 20
_MAIL_TIMEOUT = 120
"""Seconds within which the mail must be delivered."""

Options = Mapping[str, Option]
_CLIENTS_16: Options = {"protocol": "base", "clients": 16}
_CLIENTS_4_DEEP: Options = {"protocol": "inline", "depth": 32, "clients": 4}
_FILL: Options = {"protocol": "inline", "depth": 32, "clients": 16}

T = TypeVar("T")


@dataclass(frozen=True)
class Bench:
    """The amounts of work to measure."""

    load: Load
    rounds: int
    milliseconds: int
    """Duration of each round of each program."""
    warmup: int
    """Milliseconds of the same work before each round."""
    cached: int
    """Connections or bindings in the scenarios with many of them."""
    messages: int
    """Messages that Postfix delivers."""

    def pairs(self, options: Options) -> Callable[[Server], Sample]:
        """Return a function that measures pairs for one round."""
        times: Options = {"ms": self.milliseconds, "warmup": self.warmup}
        return lambda server: self.load.run(server, **times, **options)


@dataclass(frozen=True)
class Contenders:
    """The programs that one scenario compares."""

    running: dict[str, Server] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """The reasons why other programs cannot run, by label."""

    def each(self, measure: Callable[[Server], T]) -> dict[str, T]:
        """Measure each program once."""
        return {label: measure(server) for label, server in self.running.items()}

    def interleaved(self, rounds: int, measure: Callable[[Server], T]) -> dict[str, list[T]]:
        """Measure the programs in turn, and reverse their order in every second round.

        The first one in a round may find the machine in another state than the others.
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
"""A function that measures some rows together."""


def pairs(options: Options, *, processes: int = 1) -> Scenario:
    """Return a scenario that compares the time of pairs in the programs that the rows name.

    Two processes of one program differ by as much as the audit log costs, because the loader places
    them at different addresses. The rows of the audit log therefore use several ``processes`` of
    each program, with a full log, which is trimmed as it grows.
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
    """Save ``count`` connections in the fastest mode of the server."""
    return bench.load.run(server, work="save", count=count, **_FILL, **options)


def require_descriptors(count: int) -> None:
    """Raise NotRun if ``count`` connections are beyond the limit on open files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit != resource.RLIM_INFINITY and limit < count + _SPARE_DESCRIPTORS:
        raise NotRun(f"{count:,} connections are beyond the hard limit of {limit:,} open files")


def many_cached(bench: Bench, rows: Sequence[Row]) -> Iterator[Result]:
    """Compare time and memory, with many connections cached and with none."""
    require_descriptors(bench.cached)
    with contenders((POSTFIX, OURS, POSTFIX_EMPTY, EMPTY)) as four:
        four.each(lambda server: bench.load.run(server, count=100, **_CLIENTS_16))
        before = four.each(lambda server: resident(server.pid))
        for label in {OURS, POSTFIX} & four.running.keys():
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
        one, other = ([each[label]] if label in each else [] for label in (OURS, POSTFIX))
        yield Result(row, one, other, note=four.missing.get(POSTFIX, ""))


def save_dest(bench: Bench, rows: Sequence[Row]) -> Iterator[Result]:
    """Compare saves of new bindings, and of the same bindings again.

    New bindings accumulate: half-way through the rounds there are as many as the title of the row
    says.
    """
    each_round = bench.cached // 30
    at_start = bench.cached - bench.rounds * each_round // 2

    def bind(count: int, **options: Option) -> Callable[[Server], Sample]:
        work: Options = {"work": "bind", "count": count}
        return lambda server: bench.load.run(server, **work, **_CLIENTS_16, **options)

    with contenders((POSTFIX, OURS)) as both:
        both.each(bind(at_start, tag=1))
        for row, measure in zip(rows, (bind(each_round), bind(each_round, tag=1)), strict=True):
            yield per_pair(row, both.interleaved(bench.rounds, measure), both.missing)


def expire_together(bench: Bench, label: str) -> tuple[Sample, Sample]:
    """Measure the finds of one client while many connections expire at the same moment, and before.

    Postfix's scache(8) counts whole seconds, and this daemon does not. Times to live are whole
    seconds, so the connections for this daemon must be saved in the same 0.2 s of each second.
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
                raise Failed("the connections have not expired")
            return during, before
    raise NotRun("this machine is too slow to save all connections before the first expires")


def expiry(bench: Bench, rows: Sequence[Row]) -> Iterator[Result]:
    """Compare the finds of one client while many connections expire at the same moment."""
    require_descriptors(bench.cached)
    watched: dict[str, list[tuple[Sample, Sample]]] = {OURS: [], POSTFIX: []}
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


def snapshots(server: Server, stop: Event) -> list[float]:
    """Take snapshots one after the other; return the time of each in milliseconds."""
    taken = []
    with Client(server.path, timeout=30) as client:
        while not stop.is_set():
            began = time.monotonic()
            os.close(client.snapshot())
            taken.append((time.monotonic() - began) * 1e3)
    return taken


def snapshot(bench: Bench, rows: Sequence[Row]) -> Iterator[Result]:
    """Measure the finds of one client while snapshots are taken one after the other."""
    require_descriptors(bench.cached)
    quiet, during, taken = [], [], []
    for label in (OURS, FILE):
        with STARTERS[label]() as server, ThreadPoolExecutor(1) as threads:
            fill(bench, server, bench.cached)
            bench.load.run(server, count=2 * bench.cached, **_FILL)  # fills the audit log
            quiet.append(bench.load.run(server, ms=10 * bench.milliseconds).find_worst / 1e3)
            stop = Event()
            taking = threads.submit(snapshots, server, stop)
            try:
                sample = bench.load.run(server, ms=20 * bench.milliseconds)
            finally:
                stop.set()
            during.append(sample.find_worst / 1e3)
            taken += taking.result()
    yield Result(rows[0], during, quiet, note="a database in memory, and a file")
    yield Result(rows[1], taken)


def startup(bench: Bench, rows: Sequence[Row]) -> Iterator[Result]:
    """Compare the time from exec to the announcement."""
    bare = []
    started: dict[str, list[float]] = {OURS: [], POSTFIX: []}
    for _ in range(bench.rounds):
        bare.append(servers.python_pass() * 1e3)
        with contenders(started) as both:
            for label, server in both.running.items():
                started[label].append(server.started_in * 1e3)
    yield Result(rows[0], started[OURS], bare)
    yield Result(rows[1], started[OURS], started[POSTFIX], note=both.missing.get(POSTFIX, ""))


def deliver(messages: int, *, with_scache: bool) -> float:
    """Return the seconds that a private Postfix takes to deliver ``messages``."""
    with ExitStack() as stack:
        try:
            postfix = stack.enter_context(PrivatePostfix(with_scache=with_scache))
        except (OSError, RuntimeError) as error:
            raise NotRun(str(error)) from None
        if not with_scache:
            limit = str(postfix.cache_time_limit)
            options = ("--socket-owner", MAIL_OWNER, "--ttl-limit", limit)
            stack.enter_context(Daemon(postfix.cache_socket, *options))
        start = time.perf_counter()
        postfix.send(messages, _MAIL_SESSIONS, _MAIL_TIMEOUT)
        postfix.wait_delivered(messages, _MAIL_TIMEOUT)
        return time.perf_counter() - start


def mail(bench: Bench, rows: Sequence[Row]) -> Iterator[Result]:
    """Compare the time of a whole Postfix for the same mail."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for at in range(bench.rounds):
        # The first of two runs finds the machine quieter, so the order is reversed each time.
        for with_scache in (True, False) if at % 2 else (False, True):
            seconds[with_scache].append(deliver(bench.messages, with_scache=with_scache))
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
    ("cached", "flat", "flat-postfix", "memory-empty", "memory", "memory-each"): many_cached,
    ("save-dest", "save-dest-again"): save_dest,
    ("expiry", "expiry-median", "expiry-quiet"): expiry,
    ("snapshot", "snapshot-time"): snapshot,
    ("startup", "startup-postfix"): startup,
    ("postfix",): mail,
}


def measure(bench: Bench, wanted: Callable[[str], bool], progress: Progress) -> list[Result]:
    """Measure the wanted rows; return the results in the order of the table."""
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
