"""One leg of a soak: a daemon on one database, from its start to its end."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from scache import Client, Refused, Unavailable
from scache.errors import ProtocolError
from soaking import clients, foes, probe, trail, watch
from soaking.clock import Clock
from soaking.probe import Latency
from soaking.report import Fact, judged
from tests.support.daemon import Daemon
from tests.support.hostile import BEHAVIOURS
from tests.support.wire import Wire

PROCESSES = 2
"""Processes that the well-behaved clients share."""

RATE = 1200
"""Requests a second, of all well-behaved clients together: the machine is not to be the limit."""

AUDIT_ROWS = 20_000
"""Few enough to be there soon, so that memory can be flat."""

OPTIONS = (*("--exchange-timeout", "2", "--max-idle", "0", "--audit-rows", str(AUDIT_ROWS)),)

CHECK_INTERVAL = 3.0
STEP_INTERVAL = 2.0
RESTART_INTERVAL = 4.0
SETTLE = 10.0
"""Seconds for what must come to pass when all have gone."""

ALONE, AT_ONCE, BETWEEN = "alone", "hostile at once", "between"
"""Phases that are more than a name."""
ELSEWHERE = "hostile at once, at another daemon"
"""The same to the machine, and nothing to our daemon: what a client sees then is not its doing."""

SHORTEST = 0.5
"""Seconds for which each hostile behaviour must be there alone for its times to mean anything."""

MEDIAN_RATIO, P99, WORST = 2.0, 15.0, 50.0
WARM = 60.0
"""Seconds after which memory is to be flat."""
LONG = 10.0
"""Seconds after that which are enough to see whether it is."""
RETURN, RETURN_KIB = 1.10, 4096
"""Memory has returned when it is above what it was by no more than the larger of these."""

KNOWN_CLIENTS = 10_000
"""Of clients that have left the daemon remembers so many."""

_spawn = multiprocessing.get_context("spawn")


class Plan(NamedTuple):
    """What a leg is to be."""

    name: str
    seconds: float
    clients: int
    database: str
    seed: int
    clock: Clock
    say: Callable[[str], None]

    @property
    def is_file(self) -> bool:
        """Whether anything of it outlives the daemon."""
        return self.database != ":memory:"


class Chore:
    """What is done now and then."""

    def __init__(self, interval: float, work: Callable[[], object]) -> None:
        self._interval = interval
        self._work = work
        self._due = time.monotonic() + interval

    def do_if_due(self) -> None:
        """Do it, if its time has come."""
        if time.monotonic() >= self._due:
            self._work()
            self._due = time.monotonic() + self._interval


class Helper:
    """A process of ours, and a pipe to it."""

    def __init__(self, stack: ExitStack, target: Callable[..., None], *arguments: object) -> None:
        self.pipe: Pipe
        self.pipe, theirs = _spawn.Pipe()
        self._process: BaseProcess = _spawn.Process(target=target, args=(*arguments, theirs))
        self._process.start()
        theirs.close()
        stack.callback(self._end)

    def ask(self, order: str) -> Any:  # noqa: ANN401 - whatever that is
        """Tell it something, and return what it says."""
        self.pipe.send(order)
        return self.pipe.recv()

    def _end(self) -> None:
        self.pipe.close()
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


class Leg:
    """A daemon, everybody who uses it, and what is found wrong."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self._plan = plan
        self._path = directory / "socket"
        self._random = Random(plan.seed)
        self._wrong: list[str] = []
        self._restarts: Counter[str] = Counter()
        self._checks = 0
        self._books: trail.Books | None = None
        self._total: Counter[str] = Counter()
        """What daemons that took their books with them had counted."""
        self._logged: list[str] = []
        self._facts: list[Fact] = []
        self._daemon: Daemon
        self._probing: Helper
        self._stack = ExitStack()
        self._at_start = 0

    def run(self) -> list[Fact]:
        """Go through it; return what it came to."""
        plan = self._plan
        with self._stack:
            self._start_daemon()
            self._at_start = self._open_descriptors()
            self._probing = Helper(self._stack, probe.run, self._path)
            each = plan.clients // PROCESSES
            share = [each + (at < plan.clients % PROCESSES) for at in range(PROCESSES)]
            populations = [
                Helper(
                    self._stack, clients.run, self._path, at, count, plan.clients / RATE, plan.seed
                )
                for at, count in enumerate(share)
                if count
            ]
            hostile = Helper(self._stack, foes.run, self._path, plan.seed)
            hostile.ask("in turn")
            self._phase("with restarts", plan.seconds * 0.18, restarts=True)
            # The table of clients is full then, as the trail is: memory can be flat.
            for _ in range(KNOWN_CLIENTS):
                with Wire(self._path) as client:
                    client.announcement()
            steady = plan.seconds * 0.5
            with watch.watching(self._daemon.pid) as samples:
                self._phase("with all clients", steady)
            reports = [each.ask("end") for each in populations]
            in_turn = hostile.ask("nothing")
            before = watch.resident(self._daemon.pid)
            self._phase(ALONE, plan.seconds * 0.05, quiet=True)
            hostile.ask("at once")
            self._phase(AT_ONCE, plan.seconds * 0.1, quiet=True)
            at_once = hostile.ask("nothing") - in_turn
            self._phase(ALONE, plan.seconds * 0.05, quiet=True)
            self._elsewhere(plan.seconds * 0.05)
            each_alone = plan.seconds * 0.08 / len(BEHAVIOURS)
            for name in BEHAVIOURS if each_alone > SHORTEST else ():
                hostile.ask(name)
                self._phase(name, each_alone, quiet=True)
            hostile.ask("end")
            latencies, wrong = self._probing.ask("")
            self._wrong += wrong
            self._settle(before, samples)
        self._report_clients(reports)
        self._report_foes(in_turn, at_once)
        self._report_latencies(latencies)
        return self._facts

    def _elsewhere(self, seconds: float) -> None:
        """Let all hostile ones be at another daemon."""
        path = self._path.with_name("elsewhere")
        database = path.with_suffix(".db") if self._plan.is_file else self._plan.database
        with Daemon(path, *OPTIONS, database=database) as daemon, ExitStack() as stack:
            Helper(stack, foes.run, path, self._plan.seed).ask("at once")
            self._phase(ELSEWHERE, seconds, quiet=True)
        self._read_log(daemon)

    # The daemon

    def _start_daemon(self) -> None:
        plan = self._plan
        believing = plan.clock.believing() if not plan.clock.missing else ExitStack()
        with believing:
            daemon = Daemon(self._path, *OPTIONS, database=plan.database)
            daemon.__enter__()
        self._stack.callback(daemon.kill)
        self._daemon = daemon
        with Client(self._path) as client:  # what is loaded when first needed is there
            self._check(client)

    def _restart(self) -> None:
        self._check_now()
        if self._plan.is_file and self._random.random() < 0.5:
            self._daemon.kill()
            self._restarts["kill -9"] += 1
        else:
            if not self._plan.is_file and self._books is not None:
                self._total.update(saved=self._books.saved, **self._books.ways_out)
            if code := self._daemon.terminate():
                self._wrong.append(f"asked to stop, it ended with {code}")
            self._restarts["SIGTERM"] += 1
        self._read_log(self._daemon)
        self._start_daemon()

    def _read_log(self, daemon: Daemon) -> None:
        self._logged += [
            line for line in daemon.log() if "report it" in line or "Traceback" in line
        ]

    # Time

    def _phase(
        self,
        name: str,
        seconds: float,
        *,
        restarts: bool = False,
        quiet: bool = False,
    ) -> None:
        """Let time pass, and do now and then what there is to do."""
        plan = self._plan
        plan.say(f"{plan.name}: {name}, {seconds:.0f} s")
        self._probing.pipe.send(name)
        end = time.monotonic() + seconds
        chores = [Chore(CHECK_INTERVAL, self._check_now), Chore(STEP_INTERVAL, self._step)]
        if restarts:
            chores.append(Chore(min(RESTART_INTERVAL, seconds / 3), self._restart))
        if quiet:
            chores = []  # nobody else is to disturb
        while time.monotonic() < end:
            for chore in chores:
                chore.do_if_due()
            time.sleep(0.05)
        self._probing.pipe.send(BETWEEN)

    def _step(self) -> None:
        self._plan.clock.step(self._random)

    # The books

    def _check_now(self) -> None:
        try:
            with Client(self._path, timeout=20) as client:
                self._check(client)
        except (Unavailable, Refused, ProtocolError) as error:
            self._wrong.append(f"no snapshot: {error}")

    def _check(self, client: Client) -> trail.Books:
        with trail.opened(client.snapshot()) as image:
            self._books = trail.check(image)
        self._checks += 1
        self._wrong += self._books.wrong
        return self._books

    def _settle(self, before: int, samples: list[tuple[float, float]]) -> None:
        """See that all is as it was, when everybody has gone."""
        plan, name = self._plan, self._plan.name
        end = time.monotonic() + SETTLE
        opened = -1
        while opened != self._at_start and time.monotonic() < end:
            with (
                Client(self._path, timeout=20) as client,
                trail.opened(client.snapshot()) as image,
            ):
                client.purge(*trail.labels(image))
            opened = self._open_descriptors()
        with Client(self._path, timeout=20) as client:
            books = self._check(client)
        after = watch.resident(self._daemon.pid)
        if code := self._daemon.terminate():
            self._wrong.append(f"asked to stop, it ended with {code}")
        self._read_log(self._daemon)

        def fact(what: str, value: object, bound: str, *, ok: bool) -> None:
            self._facts.append(judged(name, what, value, bound, ok=ok))

        total = Counter(saved=books.saved, **books.ways_out) + self._total
        self._facts.append(Fact(name, "saved, and how they left", _listed(total)))
        fact("checks of the audit trail", self._checks, "all agree", ok=not self._wrong)
        for wrong in sorted(set(self._wrong))[:10]:
            fact("", wrong, "", ok=False)
        fact("bugs in the log", len(self._logged), "0", ok=not self._logged)
        restarts = f"{_listed(self._restarts)}; clock steps {plan.clock.steps}"
        if plan.clock.missing:
            restarts += f" (not possible here: {plan.clock.missing})"
        self._facts.append(Fact(name, "restarts", restarts))
        opened_text = f"{self._at_start} to {opened}"
        fact("descriptors, start to end", opened_text, "equal", ok=opened == self._at_start)
        self._facts.append(_flatness(name, samples))
        returned = after <= max(before * RETURN, before + RETURN_KIB)
        fact("memory, before and after", f"{before} to {after} KiB", "10 % or 4 MiB", ok=returned)

    def _open_descriptors(self) -> int:
        time.sleep(0.1)  # for those who have just gone
        return watch.descriptors(self._daemon.pid)

    # The report

    def _report_clients(self, reports: list[clients.Report]) -> None:
        name = self._plan.name
        counts: Counter[str] = Counter()
        tokens: set[int] = set()
        found, wrong = 0, []
        for report in reports:
            counts.update(report.counts)
            tokens.update(report.tokens)
            found += len(report.tokens)
            wrong += report.wrong
        never_saved = sum(
            token % clients.TOKENS >= reports[token // clients.TOKENS].saved for token in tokens
        )
        for text in wrong[:10]:
            self._facts.append(judged(name, "", text, "", ok=False))
        requests = sum(counts[work] for work in clients.WORK)
        self._facts += [
            judged(name, "wrong hits", len(wrong), f"0 of {found}", ok=not wrong and found > 0),
            judged(name, "found twice", found - len(tokens), "0", ok=found == len(tokens)),
            judged(name, "found, and never saved", never_saved, "0", ok=not never_saved),
            Fact(name, "requests of good clients", _listed(counts | Counter(requests=requests))),
        ]

    def _report_foes(self, in_turn: Counter[str], at_once: Counter[str]) -> None:
        name = self._plan.name
        self._facts.append(Fact(name, "hostile rounds, in turn", _listed(in_turn)))
        self._facts.append(Fact(name, "hostile rounds, at once", _listed(at_once)))

    def _report_latencies(self, latencies: dict[str, Latency]) -> None:
        leg = self._plan.name
        alone = latencies[ALONE]
        latencies.pop(BETWEEN, None)
        for name, each in latencies.items():
            worst = ", ".join(f"{value:.1f}" for value in each.worst)
            text = f"median {each.median:.3f}, p99 {each.p99:.2f}, worst {worst} ms"
            what = f"latency, {name} ({each.requests})"
            if name != AT_ONCE:
                self._facts.append(Fact(leg, what, text))
                continue
            ratio = each.median / alone.median
            self._facts += [
                judged(
                    leg,
                    what,
                    text,
                    f"p99 {P99:.0f}, worst {WORST:.0f} ms",
                    ok=each.p99 < P99 and each.worst[0] < WORST,
                    timing=True,
                ),
                judged(
                    leg,
                    "its median, against alone",
                    f"{ratio:.2f}",
                    f"{MEDIAN_RATIO}",
                    ok=ratio <= MEDIAN_RATIO,
                    timing=True,
                ),
            ]


def _flatness(leg: str, samples: list[tuple[float, float]]) -> Fact:
    """Judge whether memory is flat: after a minute, or, if there is no time, not much above."""
    since = samples[0][0] + WARM
    warm = [each for each in samples if each[0] > since]
    long = len(warm) * watch.INTERVAL >= LONG
    factor, kib, bound = (1.05, 1024, "flat: 5 % or 1 MiB") if long else (1.5, 16384, "no leap")
    memory = watch.trend(warm if long else samples)
    grown = f"{memory.first:.0f} to {memory.last:.0f} KiB, {memory.slope:+.0f} a minute"
    grown += " after the first" if long else "; too short to say more"
    flat = memory.last <= max(memory.first * factor, memory.first + kib)
    return judged(leg, "memory, with all clients", grown, bound, ok=flat)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
