"""One run of a soak: a daemon on one database, from its start to its end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random

from harness.processes import descriptors, resident
from harness.soak import accounting_check, good_clients, hostile_clients, latency_probe
from harness.soak.accounting_check import AccountingCheck
from harness.soak.helper import Helper
from harness.soak.report import (
    ALONE,
    AT_ONCE,
    BETWEEN,
    LONG,
    MEMORY_INTERVAL,
    WARM,
    Fact,
    Report,
    listed,
)
from scache import Client, Refused, Unavailable
from scache.errors import ProtocolError
from scache.inspection.labels import select
from tests.support.clocks import MovedClocks
from tests.support.daemon import Daemon
from tests.support.wire import Wire

CLIENTS = 64
PROCESSES = 2
"""Processes that the well-behaved clients share."""

RATE = 1200
"""Requests a second of all well-behaved clients, which leaves the machine some processor time."""

SEED = 1

AUDIT_ROWS = 20_000
"""Few enough to be full soon, so that memory can be flat."""

OPTIONS = ("--exchange-timeout", "2", "--max-idle", "0", "--audit-rows", str(AUDIT_ROWS))

CHECK_INTERVAL = 3.0
STEP_INTERVAL = 2.0
RESTART_INTERVAL = 4.0
SETTLE = 10.0
"""Seconds for the daemon to close everything after all clients have left."""

STEPS = (-86400 * 400, -3600, -30, 30, 3600, 86400 * 400)
"""Seconds by which the daemon's wall clock is set."""

ELSEWHERE = "hostile at once, at another daemon"
"""The phase that shows how much of a latency is due to the load on the machine alone."""

KNOWN_CLIENTS = 10_000
"""Disconnected clients that the daemon keeps on record."""


class SoakRun:
    """A daemon, its clients, and the violations that were found."""

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
        """Restarts, checks and clock steps."""
        self._latest: AccountingCheck
        self._total: Counter[str] = Counter()
        """Counters of daemons that are gone together with their database in memory."""
        self._logged: list[str] = []
        """Lines of the log that report a bug."""
        self._memory: list[tuple[float, int]] = []
        """Samples: the time in seconds, and KiB."""
        self._report = Report(name)
        self._daemon: Daemon
        self._probe: Helper
        self._stack = ExitStack()

    def run(self) -> list[Fact]:
        """Run all phases; return the lines of the report."""
        seconds = self._seconds
        with self._stack:
            self._start_daemon()
            at_start = self._open_descriptors()
            self._probe = Helper(self._stack, latency_probe.run, self._path)
            each = CLIENTS // PROCESSES
            populations = [
                Helper(self._stack, good_clients.run, self._path, at, each, CLIENTS / RATE, SEED)
                for at in range(PROCESSES)
            ]
            hostile = Helper(self._stack, hostile_clients.run, self._path, SEED)
            hostile.ask("in turn")
            upkeep = {self._check_now: CHECK_INTERVAL, self._step_clock: STEP_INTERVAL}
            restarting = {self._restart: min(RESTART_INTERVAL, seconds * 0.06)}
            self._phase("with restarts", seconds * 0.18, upkeep | restarting)
            if seconds > WARM + LONG:
                self._fill_table_of_clients()
            sampling = {self._sample_memory: MEMORY_INTERVAL}
            self._phase("with all clients", seconds * 0.58, upkeep | sampling)
            reports = [each.ask("end") for each in populations]
            in_turn = hostile.ask("nothing")
            before = resident(self._daemon.pid)
            self._phase(ALONE, seconds * 0.05)
            hostile.ask("at once")
            self._phase(AT_ONCE, seconds * 0.1)
            at_once = hostile.ask("nothing") - in_turn
            self._phase(ALONE, seconds * 0.05)
            self._load_another_daemon(seconds * 0.05)
            hostile.ask("end")
            latencies, wrong = self._probe.ask("")
            self._wrong += wrong
            self._settle(at_start, before)
        self._report.add_clients(reports)
        self._report.add("hostile rounds, in turn", listed(in_turn))
        self._report.add("hostile rounds, at once", listed(at_once))
        self._report.add_latencies(latencies)
        return self._report.facts

    def _load_another_daemon(self, seconds: float) -> None:
        """Let all hostile clients attack another daemon on the same machine."""
        path = self._path.with_name("elsewhere")
        database = path.with_suffix(".db") if self._name == "file" else self._database
        with Daemon(path, *OPTIONS, database=database) as daemon, ExitStack() as stack:
            Helper(stack, hostile_clients.run, path, SEED).ask("at once")
            self._phase(ELSEWHERE, seconds)
        self._read_log(daemon)

    def _fill_table_of_clients(self) -> None:
        """Fill it so that memory can be flat, which a shorter run does not judge."""
        for _ in range(KNOWN_CLIENTS):
            with Wire(self._path) as client:
                client.announcement()

    # The daemon

    def _start_daemon(self) -> None:
        clocks = (f"{name}={value}" for name, value in self._clocks.environment.items())
        prefix = ("env", *clocks)
        self._daemon = Daemon(self._path, *OPTIONS, database=self._database, prefix=prefix)
        self._daemon.__enter__()
        self._stack.callback(self._daemon.kill)
        with Client(self._path) as client:  # the daemon loads some modules at their first use
            self._check(client)

    def _restart(self) -> None:
        self._check_now()
        if self._name == "file" and self._random.random() < 0.5:
            self._daemon.kill()
            self._done["kill -9"] += 1
        else:
            if self._name == "memory":
                self._total.update(saved=self._latest.saved, **self._latest.ways_out)
            self._terminate()
            self._done["SIGTERM"] += 1
        self._read_log(self._daemon)
        self._start_daemon()

    def _terminate(self) -> None:
        if code := self._daemon.terminate():
            self._wrong.append(f"the daemon's exit code after SIGTERM was {code}")

    def _read_log(self, daemon: Daemon) -> None:
        self._logged += [
            line for line in daemon.log() if "report it" in line or "Traceback" in line
        ]

    def _open_descriptors(self) -> int:
        time.sleep(0.1)  # for clients that have just disconnected
        return descriptors(self._daemon.pid)

    # Phases

    def _phase(
        self, name: str, seconds: float, chores: dict[Callable[[], None], float] | None = None
    ) -> None:
        """Let time pass; call each chore at its interval, given in seconds."""
        self._say(f"{self._name}: {name}, {seconds:.0f} s")
        self._probe.pipe.send(name)
        now = time.monotonic()
        end = now + seconds
        due = {chore: now + interval for chore, interval in (chores or {}).items()}
        while (now := time.monotonic()) < end:
            for chore in [chore for chore, at in due.items() if at <= now]:
                chore()
                due[chore] = time.monotonic() + (chores or {})[chore]
            time.sleep(0.05)
        self._probe.pipe.send(BETWEEN)

    def _step_clock(self) -> None:
        self._clocks.set_wall(self._random.choice(STEPS))
        self._done["clock steps"] += 1

    def _sample_memory(self) -> None:
        self._memory.append((time.monotonic(), resident(self._daemon.pid)))

    # The accounting invariants

    def _check_now(self) -> None:
        try:
            with Client(self._path, timeout=20) as client:
                self._check(client)
        except (Unavailable, Refused, ProtocolError) as error:
            self._wrong.append(f"no snapshot: {error}")

    def _check(self, client: Client) -> None:
        with accounting_check.image_of(client) as image:
            self._latest = accounting_check.check(image)
        self._done["checks"] += 1
        self._wrong += self._latest.wrong

    def _settle(self, at_start: int, before: int) -> None:
        """Purge everything, stop the daemon, and compare its end with its start."""
        end = time.monotonic() + SETTLE
        at_end = -1
        while at_end != at_start and time.monotonic() < end:
            with (
                Client(self._path, timeout=20) as client,
                accounting_check.image_of(client) as image,
            ):
                cached = select(image)
                client.purge(cached.endpoints, cached.destinations)
            at_end = self._open_descriptors()
        with Client(self._path, timeout=20) as client:
            self._check(client)
        after = resident(self._daemon.pid)
        self._terminate()
        self._read_log(self._daemon)
        report = self._report
        total = Counter(saved=self._latest.saved, **self._latest.ways_out) + self._total
        report.add("saved, and how they left", listed(total))
        checks = self._done.pop("checks")
        report.add("checks of the audit log", checks, "all agree", ok=not self._wrong)
        for wrong in sorted(set(self._wrong))[:10]:
            report.add("", wrong, ok=False)
        report.add("bugs in the log", len(self._logged), "0", ok=not self._logged)
        report.add("restarts", listed(self._done))
        text = f"{at_start} to {at_end}"
        report.add("descriptors, start to end", text, "equal", ok=at_end == at_start)
        report.add_memory(self._memory, before, after)
