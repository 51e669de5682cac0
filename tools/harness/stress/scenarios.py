"""The scenarios of tools/stress. Each yields facts about what it saw."""

from __future__ import annotations

import os
import select
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from random import Random
from threading import Event
from typing import NamedTuple

from harness.bench.servers import postfix_scache
from harness.processes import descriptors
from scache import Client, ProtocolError, Unavailable
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon
from tests.support.peer import Parked

OPEN_FILES = 160
SAVES = 2_000
MOST_CLIENTS = 100
"""Clients that connect to Postfix's scache(8), at most, until it has ended."""
DEAD_PEERS = 10_000
AT_ONCE = 500
LIVE = 10
"""Peers that stay connected while the others hang up."""
NOTICED_WITHIN = 0.1
"""Seconds after which a connection with a dead peer must not be handed out."""
CLOSED_WITHIN = 5.0
"""Seconds within which the daemon must have closed the connections of a purge."""
KILLS = 100
LOAD_SECONDS = 0.3
LONGEST_START = 1.0
LONGEST_FIND = 0.05


class Fact(NamedTuple):
    """An observation."""

    holds: bool | None
    """True if it is as it must be; None for an observation of another program."""
    text: str


def open_files(directory: Path, _: float) -> Iterator[Fact]:
    """Save without end under a low limit on open files."""
    with Daemon(directory / "socket", open_files=OPEN_FILES) as daemon:
        with Client(daemon.path, inline=False) as client:
            client.find_endp("nothing")
            before = descriptors(daemon.pid)
            saved, finds = _save_without_end(client)
            most = descriptors(daemon.pid)
            with Client(daemon.path) as administrator:
                administrator.purge([f"{number}" for number in range(SAVES)])
            after = _wait_until_closed(daemon.pid, before + 1)
        alive = daemon.terminate() == 0
    yield Fact(
        alive and saved == SAVES, f"{saved:,} of {SAVES:,} saves done, exit code 0 after SIGTERM"
    )
    yield Fact(most < OPEN_FILES, f"{most} of {OPEN_FILES} descriptors open after the last save")
    yield Fact(
        after <= before + 1, f"{after} open after a purge of everything, {before} before the saves"
    )
    yield Fact(max(finds) < LONGEST_FIND, f"finds meanwhile: {_times(finds)}")
    with postfix_scache(OPEN_FILES)() as server, ExitStack() as clients:
        client = clients.enter_context(Client(server.path, inline=False))
        saved, _finds = _save_without_end(client)
        others = 0
        # Other clients connect, because they cannot know that it has no descriptor left.
        while not _has_ended(server.pid) and others < MOST_CLIENTS:
            others += 1
            other = clients.enter_context(Client(server.path, inline=False, timeout=0.2))
            with suppress(Unavailable):
                other.find_endp("nothing")
        end = (
            "it has ended, and all its connections are lost"
            if _has_ended(server.pid)
            else "it is alive"
        )
    yield Fact(
        None, f"Postfix's scache(8): {saved:,} saves done; after {others} more clients: {end}"
    )


def _wait_until_closed(pid: int, most: int) -> int:
    """Return the number of open descriptors once it is at most ``most``, or CLOSED_WITHIN later.

    The daemon replies to a purge before it has closed the connections.
    """
    deadline = time.monotonic() + CLOSED_WITHIN
    while (number := descriptors(pid)) > most and time.monotonic() < deadline:
        time.sleep(0.01)
    return number


def _save_without_end(client: Client) -> tuple[int, list[float]]:
    """Return the number of saves until one failed, and the times of finds in seconds."""
    saved, finds = 0, []
    with open(os.devnull, "rb") as something, suppress(Unavailable, ProtocolError):  # noqa: PTH123
        for number in range(SAVES):
            saved += client.save_endp(60, f"{number}", "", something)
            began = time.monotonic()
            client.find_endp("nothing")
            finds.append(time.monotonic() - began)
    return saved, finds


def dead_peers(directory: Path, scale: float) -> Iterator[Fact]:
    """Find connections whose peers have hung up."""
    tries = max(int(DEAD_PEERS * scale) // AT_ONCE, 1)
    handed_out = alive_lost = 0
    with Daemon(directory / "socket") as daemon, Client(daemon.path, timeout=30) as client:
        for _ in range(tries):
            with ExitStack() as ends:
                for number in range(LIVE):
                    ends.enter_context(Parked(client, 60, f"live {number}"))
                dead = [Parked(client, 60, f"dead {number}") for number in range(AT_ONCE)]
                for each in dead:
                    each.peer.close()
                time.sleep(NOTICED_WITHIN)
                handed_out += sum(_is_found(client, f"dead {at}") for at in range(AT_ONCE))
                alive_lost += sum(not _is_found(client, f"live {at}") for at in range(LIVE))
    text = f"{handed_out} of {tries * AT_ONCE:,} connections with dead peers were handed out"
    yield Fact(handed_out == 0, f"{text} {NOTICED_WITHIN * 1e3:.0f} ms later")
    yield Fact(
        alive_lost == 0, f"{alive_lost} of {tries * LIVE} live connections were lost meanwhile"
    )


def _is_found(client: Client, endpoint: str) -> bool:
    found = client.find_endp(endpoint)
    if found is not None:
        found.close()
    return found is not None


def kills(directory: Path, scale: float) -> Iterator[Fact]:
    """Kill the daemon under load, again and again, on one database file."""
    tries = max(int(KILLS * scale), 1)
    database, path = directory / "cache.db", directory / "socket"
    starts, unsound = [], 0
    for _ in range(tries):
        began = time.monotonic()
        with Daemon(path, "--audit-rows", "10000000", database=database) as daemon:
            starts.append(time.monotonic() - began)
            _load(daemon)
        with closing(sqlite3.connect(database)) as file:
            unsound += file.execute("PRAGMA integrity_check").fetchall() != [("ok",)]
    with Daemon(path, "--audit-rows", "10000000", database=database):
        checked = run_command(*SCACHE, "check", "--socket", str(path)).returncode
    with closing(sqlite3.connect(database)) as file:
        counters = dict(file.execute("SELECT name, value FROM counter"))
        ((live,),) = file.execute("SELECT count(*) FROM connection")
    saved, lost = counters["save_endp_ok"], counters["connections_lost"]
    yield Fact(unsound == 0, f"the file was damaged after {unsound} of {tries} kills")
    yield Fact(max(starts) < LONGEST_START, f"starts: {_times(starts)}")
    yield Fact(
        checked == 0,
        f"of {saved:,} connections saved, {lost:,} were lost in a kill, {live} are left; "
        f"scache check {'finds nothing wrong' if checked == 0 else f'ends with {checked}'}",
    )


def _load(daemon: Daemon) -> None:
    """Make requests in both modes, and kill the daemon after a while."""
    killed = Event()

    def work(seed: int) -> None:
        random = Random(seed)
        with (
            suppress(Unavailable, ProtocolError),
            Client(daemon.path, inline=bool(seed % 2)) as client,
            open(os.devnull, "rb") as something,  # noqa: PTH123
        ):
            while not killed.is_set():
                label = f"{random.randrange(20)}"
                client.save_endp(random.choice((1, 60)), label, "", something)
                client.save_dest(60, label, "", label)
                found = client.find_dest(label) if random.random() < 0.5 else None
                if found is not None:
                    found.close()

    with ThreadPoolExecutor(4) as threads:
        work_done = [threads.submit(work, seed) for seed in range(4)]
        time.sleep(LOAD_SECONDS)
        daemon.kill()
        killed.set()
    for each in work_done:
        each.result()


def _has_ended(pid: int) -> bool:
    """Return True if a process has ended, or ends within 0.2 s."""
    process = os.pidfd_open(pid)
    try:
        return bool(select.select([process], [], [], 0.2)[0])
    finally:
        os.close(process)


def _times(seconds: list[float]) -> str:
    return f"median {statistics.median(seconds) * 1e3:.2f} ms, worst {max(seconds) * 1e3:.2f} ms"


SCENARIOS: dict[str, Callable[[Path, float], Iterator[Fact]]] = {
    "open-files": open_files,
    "dead-peers": dead_peers,
    "kills": kills,
}
