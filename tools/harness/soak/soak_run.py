"""One leg of a soak: a daemon on one database, from its start to its end."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from common import descriptors, resident

from scache import Client, Refused, Unavailable
from scache.errors import ProtocolError
from scache.inspection.labels import select
from soaking import clients, foes, probe, trail
from soaking.probe import Latency
from tests.support.clocks import MovedClocks
from tests.support.daemon import Daemon
from tests.support.wire import Wire

CLIENTS = 64
PROCESSES = 2
"""Processes that the well-behaved clients share."""

RATE = 1200
"""Requests a second, of all well-behaved clients together: the machine is not to be the limit."""

SEED = 1

AUDIT_ROWS = 20_000
"""Few enough to be there soon, so that memory can be flat."""

OPTIONS = ("--exchange-timeout", "2", "--max-idle", "0", "--audit-rows", str(AUDIT_ROWS))

CHECK_INTERVAL = 3.0
STEP_INTERVAL = 2.0
RESTART_INTERVAL = 4.0
MEMORY_INTERVAL = 0.5
SETTLE = 10.0
"""Seconds for what must come to pass when all have gone."""

STEPS = (-86400 * 400, -3600, -30, 30, 3600, 86400 * 400)
"""Seconds by which the wall clock of the daemon is set."""

ALONE, AT_ONCE, BETWEEN = "alone", "hostile at once", "between"
"""Phases that are more than a name."""
ELSEWHERE = "hostile at once, at another daemon"
"""The same to the machine, and nothing to our daemon: what a client sees then is not its doing."""

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


class Fact(NamedTuple):
    """A line of the table."""

    leg: str
    what: str
    verdict: str
    """ok, FAILED, or missed: a time that is too long, for which a busy machine may be to blame."""
    bound: str
    value: str


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

    def __init__(
        self, name: str, database: str, seconds: float, directory: Path, say: Callable[[str], None]
    ) -> None:
        self._name = name
        self._database = database
        self._seconds = seconds
        self._say = say
        self._path = directory / "socket"
        self._clocks = MovedClocks(directory)
        self._random = Random(SEED)
        self._wrong: list[str] = []
        self._done: Counter[str] = Counter()
        """Restarts, checks and steps of the clock."""
        self._books: trail.Books
        self._total: Counter[str] = Counter()
        """What daemons that took their books with them had counted."""
        self._logged: list[str] = []
        self._memory: list[tuple[float, int]] = []
        """Seconds, and KiB then."""
        self._facts: list[Fact] = []
        self._daemon: Daemon
        self._probing: Helper
        self._stack = ExitStack()

    def run(self) -> list[Fact]:
        """Go through it; return what it came to."""
        seconds = self._seconds
        with self._stack:
            self._start_daemon()
            at_start = self._open_descriptors()
            self._probing = Helper(self._stack, probe.run, self._path)
            each = CLIENTS // PROCESSES
            populations = [
                Helper(self._stack, clients.run, self._path, at, each, CLIENTS / RATE, SEED)
                for at in range(PROCESSES)
            ]
            hostile = Helper(self._stack, foes.run, self._path, SEED)
            hostile.ask("in turn")
            upkeep = {self._check_now: CHECK_INTERVAL, self._step: STEP_INTERVAL}
            restarting = {self._restart: min(RESTART_INTERVAL, seconds * 0.06)}
            self._phase("with restarts", seconds * 0.18, upkeep | restarting)
            # The table of clients is full then, as the trail is: memory can be flat.
            for _ in range(KNOWN_CLIENTS):
                with Wire(self._path) as client:
                    client.announcement()
            looking = {self._look_at_memory: MEMORY_INTERVAL}
            self._phase("with all clients", seconds * 0.58, upkeep | looking)
            reports = [each.ask("end") for each in populations]
            in_turn = hostile.ask("nothing")
            before = resident(self._daemon.pid)
            self._phase(ALONE, seconds * 0.05)
            hostile.ask("at once")
            self._phase(AT_ONCE, seconds * 0.1)
            at_once = hostile.ask("nothing") - in_turn
            self._phase(ALONE, seconds * 0.05)
            self._elsewhere(seconds * 0.05)
            hostile.ask("end")
            latencies, wrong = self._probing.ask("")
            self._wrong += wrong
            self._settle(at_start, before)
        self._report_clients(reports)
        self._tell("hostile rounds, in turn", _listed(in_turn))
        self._tell("hostile rounds, at once", _listed(at_once))
        self._report_latencies(latencies)
        return self._facts

    def _tell(
        self,
        what: str,
        value: object,
        bound: str = "",
        *,
        ok: bool | None = None,
        timing: bool = False,
    ) -> None:
        """Add a line to the table; ``ok`` says if what must hold does."""
        verdict = {None: "", True: "ok", False: "missed" if timing else "FAILED"}[ok]
        self._facts.append(Fact(self._name, what, verdict, bound, str(value)))

    def _elsewhere(self, seconds: float) -> None:
        """Let all hostile ones be at another daemon."""
        path = self._path.with_name("elsewhere")
        database = path.with_suffix(".db") if self._name == "file" else self._database
        with Daemon(path, *OPTIONS, database=database) as daemon, ExitStack() as stack:
            Helper(stack, foes.run, path, SEED).ask("at once")
            self._phase(ELSEWHERE, seconds)
        self._read_log(daemon)

    # The daemon

    def _start_daemon(self) -> None:
        clocks = (f"{name}={value}" for name, value in self._clocks.environment.items())
        prefix = ("env", *clocks)
        self._daemon = Daemon(self._path, *OPTIONS, database=self._database, prefix=prefix)
        self._daemon.__enter__()
        self._stack.callback(self._daemon.kill)
        with Client(self._path) as client:  # what is loaded when first needed is there
            self._check(client)

    def _restart(self) -> None:
        self._check_now()
        if self._name == "file" and self._random.random() < 0.5:
            self._daemon.kill()
            self._done["kill -9"] += 1
        else:
            if self._name == "memory":
                self._total.update(saved=self._books.saved, **self._books.ways_out)
            self._terminate()
            self._done["SIGTERM"] += 1
        self._read_log(self._daemon)
        self._start_daemon()

    def _terminate(self) -> None:
        if code := self._daemon.terminate():
            self._wrong.append(f"asked to stop, it ended with {code}")

    def _read_log(self, daemon: Daemon) -> None:
        self._logged += [
            line for line in daemon.log() if "report it" in line or "Traceback" in line
        ]

    # Time

    def _phase(
        self, name: str, seconds: float, chores: dict[Callable[[], None], float] | None = None
    ) -> None:
        """Let time pass, and do each chore every so many seconds."""
        self._say(f"{self._name}: {name}, {seconds:.0f} s")
        self._probing.pipe.send(name)
        now = time.monotonic()
        end = now + seconds
        due = {chore: now + interval for chore, interval in (chores or {}).items()}
        while (now := time.monotonic()) < end:
            for chore in [chore for chore, at in due.items() if at <= now]:
                chore()
                due[chore] = time.monotonic() + (chores or {})[chore]
            time.sleep(0.05)
        self._probing.pipe.send(BETWEEN)

    def _step(self) -> None:
        self._clocks.set_wall(self._random.choice(STEPS))
        self._done["clock steps"] += 1

    def _look_at_memory(self) -> None:
        self._memory.append((time.monotonic(), resident(self._daemon.pid)))

    # The books

    def _check_now(self) -> None:
        try:
            with Client(self._path, timeout=20) as client:
                self._check(client)
        except (Unavailable, Refused, ProtocolError) as error:
            self._wrong.append(f"no snapshot: {error}")

    def _check(self, client: Client) -> None:
        with trail.image_of(client) as image:
            self._books = trail.check(image)
        self._done["checks"] += 1
        self._wrong += self._books.wrong

    def _settle(self, at_start: int, before: int) -> None:
        """See that all is as it was, when everybody has gone."""
        end = time.monotonic() + SETTLE
        opened = -1
        while opened != at_start and time.monotonic() < end:
            with Client(self._path, timeout=20) as client, trail.image_of(client) as image:
                cached = select(image)
                client.purge(cached.endpoints, cached.destinations)
            opened = self._open_descriptors()
        with Client(self._path, timeout=20) as client:
            self._check(client)
        after = resident(self._daemon.pid)
        self._terminate()
        self._read_log(self._daemon)
        total = Counter(saved=self._books.saved, **self._books.ways_out) + self._total
        self._tell("saved, and how they left", _listed(total))
        checks = self._done.pop("checks")
        self._tell("checks of the audit trail", checks, "all agree", ok=not self._wrong)
        for wrong in sorted(set(self._wrong))[:10]:
            self._tell("", wrong, ok=False)
        self._tell("bugs in the log", len(self._logged), "0", ok=not self._logged)
        self._tell("restarts", _listed(self._done))
        descriptors_told = f"{at_start} to {opened}"
        self._tell("descriptors, start to end", descriptors_told, "equal", ok=opened == at_start)
        self._report_memory()
        returned = after <= max(before * RETURN, before + RETURN_KIB)
        memory_told = f"{before} to {after} KiB"
        self._tell("memory, before and after", memory_told, "10 % or 4 MiB", ok=returned)

    def _open_descriptors(self) -> int:
        time.sleep(0.1)  # for those who have just gone
        return descriptors(self._daemon.pid)

    # The report

    def _report_clients(self, reports: Sequence[clients.Report]) -> None:
        counts = sum((report.counts for report in reports), Counter[str]())
        wrong = [text for report in reports for text in report.wrong]
        found = sum(len(report.tokens) for report in reports)
        tokens = {token for report in reports for token in report.tokens}
        never_saved = sum(
            token % clients.TOKENS >= reports[token // clients.TOKENS].saved for token in tokens
        )
        for text in wrong[:10]:
            self._tell("", text, ok=False)
        counts["requests"] = sum(counts[work] for work in clients.WORK)
        self._tell("wrong hits", len(wrong), f"0 of {found}", ok=not wrong and found > 0)
        self._tell("found twice", found - len(tokens), "0", ok=found == len(tokens))
        self._tell("found, and never saved", never_saved, "0", ok=not never_saved)
        self._tell("requests of good clients", _listed(counts))

    def _report_latencies(self, latencies: dict[str, Latency]) -> None:
        latencies.pop(BETWEEN, None)
        for name, each in latencies.items():
            worst = ", ".join(f"{value:.1f}" for value in each.worst)
            text = f"median {each.median:.3f}, p99 {each.p99:.2f}, worst {worst} ms"
            bound, ok = "", None
            if name == AT_ONCE:
                bound = f"p99 {P99:.0f}, worst {WORST:.0f} ms"
                ok = each.p99 < P99 and each.worst[0] < WORST
            self._tell(f"latency, {name} ({each.requests})", text, bound, ok=ok, timing=True)
        ratio = latencies[AT_ONCE].median / latencies[ALONE].median
        bound, ok = f"{MEDIAN_RATIO}", ratio <= MEDIAN_RATIO
        self._tell("its median, against alone", f"{ratio:.2f}", bound, ok=ok, timing=True)

    def _report_memory(self) -> None:
        """Judge if memory is flat: after a minute, or, if there is no time, not much above."""
        samples = self._memory
        warm = [each for each in samples if each[0] > samples[0][0] + WARM]
        long = len(warm) * MEMORY_INTERVAL >= LONG
        factor, kib, bound = (1.05, 1024, "flat: 5 % or 1 MiB") if long else (1.5, 16384, "no leap")
        seconds, values = zip(*(warm if long else samples), strict=True)
        quarter = max(1, len(values) // 4)
        first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
        slope = statistics.linear_regression(seconds, values).slope * 60 if quarter > 1 else 0.0
        grown = f"{first:.0f} to {last:.0f} KiB, {slope:+.0f} a minute"
        grown += " after the first" if long else "; too short to say more"
        flat = last <= max(first * factor, first + kib)
        self._tell("memory, with all clients", grown, bound, ok=flat)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
