"""How each row is measured: always fresh servers, their rounds interleaved."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from threading import Event
from typing import NamedTuple, TypeVar

from benchmark import servers
from benchmark.errors import Failed, NotRun
from benchmark.load import Load, Option, Sample
from benchmark.rows import ROWS, Result, Row, Series
from benchmark.servers import Server, Starter
from scache import Client

OURS, GENUINE, FILE = "ours", "genuine", "ours, file"
EMPTY, GENUINE_EMPTY = "ours, none", "genuine, none"
AUDIT_OFF = "ours, audit off"

_SPARE_DESCRIPTORS = 200
_PAIRS_OF_PROCESSES = 5
_BASE: Mapping[str, Option] = {"protocol": "base"}
_CLIENTS_16: Mapping[str, Option] = {"protocol": "base", "clients": 16}
_CLIENTS_4_DEEP: Mapping[str, Option] = {"protocol": "inline", "depth": 32, "clients": 4}
_FILL_AHEAD: Mapping[str, Option] = {"protocol": "inline", "depth": 32}

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

    def row(self, name: str) -> Row:
        """Return a row with its figures filled in."""
        (row,) = [row for row in ROWS if row.name == name]
        title = row.title.format(cached=self.cached, messages=self.messages)
        return replace(row, title=title)

    def pairs(self, server: Server, **options: Option) -> Sample:
        """Measure pairs for one round."""
        return self.load.run(server, ms=self.milliseconds, warmup=self.warmup, **options)

    def pairs_with(self, options: Mapping[str, Option]) -> Callable[[Server], Sample]:
        """Return what measures pairs with these options."""
        return lambda server: self.pairs(server, **options)


class Contenders:
    """The programs that one scenario compares, those that can be had."""

    def __init__(self, stack: ExitStack, starters: Mapping[str, Starter]) -> None:
        self.running: dict[str, Server] = {}
        self.missing = ""
        for label, starter in starters.items():
            try:
                self.running[label] = stack.enter_context(starter())
            except NotRun as reason:
                self.missing = f"{label} not run: {reason}"

    def each(self, measure: Callable[[Server], T]) -> dict[str, T]:
        """Measure every one once."""
        return {label: measure(server) for label, server in self.running.items()}

    def interleaved(self, rounds: int, measure: Callable[[Server], T]) -> dict[str, list[T]]:
        """Measure them in turn, again and again, now from the first and now from the last on.

        Whoever comes first in a round may find the machine in another state than who follows.
        """
        figures: dict[str, list[T]] = {label: [] for label in self.running}
        for number in range(rounds):
            order = list(self.running.items())
            for label, server in order if number % 2 else reversed(order):
                figures[label].append(measure(server))
        return figures


def per_pair(
    row: Row, samples: Mapping[str, Sequence[Sample]], ours: str, reference: str, note: str
) -> Result:
    """Return the result of a row that compares the time of a pair."""
    one, other = samples.get(ours, ()), samples.get(reference, ())
    busiest = max((sample.load_share for sample in [*one, *other]), default=0)
    if busiest > 0.9:
        note = f"{note} the load generator was {busiest:.0%} busy".strip()
    return Result(
        row,
        Series([sample.each for sample in one]),
        Series([sample.each for sample in other]),
        Series([a.server_cpu / b.server_cpu for a, b in zip(one, other, strict=False)]),
        note,
    )


def simple(name: str, **options: Option) -> Callable[[Bench], Iterator[Result]]:
    """Return what measures pairs against the genuine program on its own protocol."""

    def run(bench: Bench) -> Iterator[Result]:
        theirs = {"clients": options.get("clients", 1)}
        with ExitStack() as stack:
            both = Contenders(stack, {GENUINE: servers.genuine(), OURS: servers.ours()})
            genuine = both.running.get(GENUINE)
            samples = both.interleaved(
                bench.rounds,
                lambda server: bench.pairs(server, **(theirs if server is genuine else options)),
            )
            yield per_pair(bench.row(name), samples, OURS, GENUINE, both.missing)

    return run


def base_16_and_file(bench: Bench) -> Iterator[Result]:
    """Compare the genuine program, ours, and ours with a database file."""
    starters = {
        GENUINE: servers.genuine(),
        OURS: servers.ours(),
        FILE: servers.ours(file=True),
    }
    with ExitStack() as stack:
        all_three = Contenders(stack, starters)
        samples = all_three.interleaved(
            bench.rounds, lambda server: bench.pairs(server, **_CLIENTS_16)
        )
        yield per_pair(bench.row("base-16"), samples, OURS, GENUINE, all_three.missing)
        yield per_pair(bench.row("file"), samples, FILE, OURS, "")


def audit(bench: Bench) -> Iterator[Result]:
    """Compare ours with its audit trail, full and trimmed as it grows, and without.

    Where the loader puts things makes a process faster or slower than the next one of the same
    program, by as much as is measured here: so there are several of each.
    """
    starters = {OURS: servers.ours(), AUDIT_OFF: servers.ours(audit=False)}
    works = {"audit": _CLIENTS_16, "audit-deep": _CLIENTS_4_DEEP}
    samples: dict[str, dict[str, list[Sample]]] = {
        name: {label: [] for label in starters} for name in works
    }
    for _ in range(_PAIRS_OF_PROCESSES):
        with ExitStack() as stack:
            both = Contenders(stack, starters)
            for server in both.running.values():
                bench.load.run(server, count=2 * bench.cached, **_FILL_AHEAD)
            for name, options in works.items():
                rounds = max(1, bench.rounds // _PAIRS_OF_PROCESSES)
                found = both.interleaved(rounds, bench.pairs_with(options))
                for label, each in found.items():
                    samples[name][label] += each
    for name in works:
        yield per_pair(bench.row(name), samples[name], OURS, AUDIT_OFF, "")


def fill(bench: Bench, server: Server, count: int) -> None:
    """Save so many connections, in the fastest way that the server knows."""
    try:
        bench.load.run(server, work="save", count=count, **_FILL_AHEAD)
    except NotRun:
        bench.load.run(server, work="save", count=count, **_CLIENTS_16)


def fill_together(bench: Bench, server: Server, seconds: int) -> Sample:
    """Save many connections that all expire in the same moment, so many seconds from now.

    The genuine program counts whole seconds. Ours does not: with times to live
    in whole seconds, what expires together has to be saved at the same
    fraction of a second, give or take a tenth.
    """
    options: dict[str, Option] = {"work": "save", "count": bench.cached, "together": seconds}
    try:
        return bench.load.run(server, window=200, **_FILL_AHEAD, **options)
    except NotRun:
        return bench.load.run(server, **_CLIENTS_16, **options)


def require_descriptors(count: int) -> None:
    """Refuse what cannot be done within the limit on open files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit != resource.RLIM_INFINITY and limit < count + _SPARE_DESCRIPTORS:
        raise NotRun(f"{count:,} connections are beyond the hard limit of {limit:,} open files")


def many_cached(bench: Bench) -> Iterator[Result]:
    """Compare time and memory, with many connections cached and with none."""
    require_descriptors(bench.cached)
    starters = {
        GENUINE: servers.genuine(),
        OURS: servers.ours(),
        GENUINE_EMPTY: servers.genuine(),
        EMPTY: servers.ours(),
    }
    with ExitStack() as stack:
        four = Contenders(stack, starters)
        for server in four.running.values():
            bench.load.run(server, count=100, **_CLIENTS_16)
        before = four.each(Server.resident)
        for label in (OURS, GENUINE):
            if label in four.running:
                fill(bench, four.running[label], bench.cached)
        after = four.each(Server.resident)
        samples = four.interleaved(bench.rounds, lambda server: bench.pairs(server, **_CLIENTS_16))
    missing = four.missing
    yield per_pair(bench.row("cached"), samples, OURS, GENUINE, missing)
    yield per_pair(bench.row("flat"), samples, OURS, EMPTY, "")
    yield per_pair(bench.row("flat-genuine"), samples, GENUINE, GENUINE_EMPTY, missing)
    yield memory(bench.row("memory-empty"), {at: kib / 1024 for at, kib in before.items()}, missing)
    yield memory(bench.row("memory"), {at: kib / 1024 for at, kib in after.items()}, missing)
    grown = {label: (after[label] - before[label]) / bench.cached for label in after}
    yield memory(bench.row("memory-each"), grown, missing)


def memory(row: Row, figures: Mapping[str, float], note: str) -> Result:
    """Return the result of a row about memory, which is measured once."""
    one, other = ([figures[at]] if at in figures else [] for at in (OURS, GENUINE))
    return Result(row, Series(one), Series(other), note=note)


def save_dest(bench: Bench) -> Iterator[Result]:
    """Compare saving bindings, fresh ones and the same again.

    As the fresh ones stay, so many are there at the start that half-way there
    are as many as the row says.
    """
    each_round = bench.cached // 30
    at_start = bench.cached - bench.rounds * each_round // 2

    def fresh(server: Server) -> Sample:
        return bench.load.run(server, work="bind", count=each_round, **_CLIENTS_16)

    def again(server: Server) -> Sample:
        return bench.load.run(server, work="bind", count=each_round, tag=1, **_CLIENTS_16)

    with ExitStack() as stack:
        both = Contenders(stack, {GENUINE: servers.genuine(), OURS: servers.ours()})
        for server in both.running.values():
            bench.load.run(server, work="bind", count=at_start, tag=1, **_CLIENTS_16)
        for name, measure in (("save-dest", fresh), ("save-dest-again", again)):
            samples = both.interleaved(bench.rounds, measure)
            yield per_pair(bench.row(name), samples, OURS, GENUINE, both.missing)


class Expiry(NamedTuple):
    """Finds while everything expires, and before; microseconds."""

    during: Sample
    before: Sample


def expire_together(bench: Bench, starter: Starter) -> Expiry:
    """Watch the finds of one client while many connections expire in the same moment."""
    shortest = 3 + bench.cached // 3000
    for seconds in (shortest, 2 * shortest, 4 * shortest):
        with starter() as server:
            quiet = server.descriptors()
            try:
                filled = fill_together(bench, server, seconds)
            except Failed as failure:
                if "moment of expiry" in str(failure):
                    continue  # this machine needs more time to save them all
                raise
            if filled.left < 1.5e6:
                continue
            before = bench.load.run(server, ms=int(filled.left / 1e3) - 1000)
            during = bench.load.run(server, ms=3000)
            if server.descriptors() > quiet + bench.cached // 100:
                raise Failed("they have not expired")
            return Expiry(during, before)
    raise NotRun("this machine is too slow to save them all before the first expires")


def expiry(bench: Bench) -> Iterator[Result]:
    """Compare the finds of one client while many connections expire in the same moment."""
    require_descriptors(bench.cached)
    watched: dict[str, list[Expiry]] = {OURS: [], GENUINE: []}
    note = ""
    # Once is enough to see what the genuine program does, which takes its time to be filled.
    for label, starter in (
        (OURS, servers.ours()),
        (GENUINE, servers.genuine()),
        (OURS, servers.ours()),
    ):
        try:
            watched[label].append(expire_together(bench, starter))
        except NotRun as reason:
            note = f"{label} not run: {reason}"

    def result(name: str, figure: Callable[[Expiry], float]) -> Result:
        row = bench.row(name)
        ours, theirs = (
            Series([figure(each) / 1e3 for each in watched[label]], row.summary)
            for label in (OURS, GENUINE)
        )
        return Result(row, ours, theirs, note=note)

    yield result("expiry", lambda each: each.during.find_worst)
    yield result("expiry-median", lambda each: each.during.find_median)
    yield result("expiry-quiet", lambda each: each.before.find_worst)


def snapshots(server: Server, enough: Event) -> list[float]:
    """Take snapshots one after the other; return the milliseconds that each took."""
    taken = []
    with Client(server.path, timeout=30) as client:
        while not enough.is_set():
            began = time.monotonic()
            os.close(client.snapshot())
            taken.append((time.monotonic() - began) * 1e3)
    return taken


def snapshot(bench: Bench) -> Iterator[Result]:
    """Watch the finds of one client while snapshots are taken one after the other."""
    require_descriptors(bench.cached)
    quiet, during, taken = [], [], []
    for starter in (servers.ours(), servers.ours(file=True)):
        with starter() as server, ThreadPoolExecutor(1) as threads:
            fill(bench, server, bench.cached)
            bench.load.run(server, count=2 * bench.cached, **_FILL_AHEAD)  # a full audit trail
            quiet.append(bench.load.run(server, ms=10 * bench.milliseconds).find_worst / 1e3)
            enough = Event()
            taking = threads.submit(snapshots, server, enough)
            try:
                sample = bench.load.run(server, ms=20 * bench.milliseconds)
            finally:
                enough.set()
            during.append(sample.find_worst / 1e3)
            taken += taking.result()
    note = "a database in memory, and a file"
    yield Result(bench.row("snapshot"), Series(during, "worst"), Series(quiet, "worst"), note=note)
    yield Result(bench.row("snapshot-time"), Series(taken))


def startup(bench: Bench) -> Iterator[Result]:
    """Compare the time from exec to the announcement."""
    bare, ours, theirs, note = [], [], [], ""
    for _ in range(bench.rounds):
        bare.append(servers.python_pass() * 1e3)
        with servers.ours()() as server:
            ours.append(server.started_in * 1e3)
        try:
            with servers.genuine()() as server:
                theirs.append(server.started_in * 1e3)
        except NotRun as reason:
            note = f"genuine not run: {reason}"
    yield Result(bench.row("startup"), Series(ours), Series(bare))
    yield Result(bench.row("startup-genuine"), Series(ours), Series(theirs), note=note)


def postfix(bench: Bench) -> Iterator[Result]:
    """Compare what a whole Postfix takes for the same mail."""
    from benchmark.postfix import deliver  # needs a Postfix, and the tests' support

    seconds: dict[bool, list[float]] = {True: [], False: []}
    for at in range(bench.rounds):
        # The first of two that follow each other finds the machine quieter: take turns at that too.
        for genuine in (True, False) if at % 2 else (False, True):
            seconds[genuine].append(deliver(bench.messages, genuine_scache=genuine))
    yield Result(bench.row("postfix"), Series(seconds[False]), Series(seconds[True]))


@dataclass(frozen=True)
class Scenario:
    """Rows that are measured in one go."""

    run: Callable[[Bench], Iterator[Result]]
    rows: Sequence[str]


SCENARIOS = (
    Scenario(simple("base-1", **_BASE), ["base-1"]),
    Scenario(base_16_and_file, ["base-16", "file"]),
    Scenario(simple("base-64", **_BASE, clients=64), ["base-64"]),
    Scenario(simple("inline-1", protocol="inline"), ["inline-1"]),
    Scenario(simple("inline-16", protocol="inline", clients=16), ["inline-16"]),
    Scenario(simple("inline-deep", **_CLIENTS_4_DEEP), ["inline-deep"]),
    Scenario(audit, ["audit", "audit-deep"]),
    Scenario(
        many_cached,
        ["cached", "flat", "flat-genuine", "memory-empty", "memory", "memory-each"],
    ),
    Scenario(save_dest, ["save-dest", "save-dest-again"]),
    Scenario(expiry, ["expiry", "expiry-median", "expiry-quiet"]),
    Scenario(snapshot, ["snapshot", "snapshot-time"]),
    Scenario(startup, ["startup", "startup-genuine"]),
    Scenario(postfix, ["postfix"]),
)


def measure_rows(
    bench: Bench, wanted: Callable[[Row], bool], say: Callable[[str], None]
) -> list[Result]:
    """Measure the rows that are wanted, and return them in the order of the table."""
    found: dict[str, Result] = {}
    for scenario in SCENARIOS:
        rows = [bench.row(name) for name in scenario.rows]
        if not any(map(wanted, rows)):
            continue
        began = time.monotonic()
        say(", ".join(scenario.rows))
        try:
            found |= {result.row.name: result for result in scenario.run(bench)}
        except NotRun as reason:
            found |= {row.name: Result(row, note=f"not run: {reason}") for row in rows}
        except Failed as failure:
            found |= {row.name: Result(row, note=f"failed: {failure}") for row in rows}
        say(f"    {time.monotonic() - began:.0f} s")
    return [found[row.name] for row in ROWS if row.name in found and wanted(row)]
