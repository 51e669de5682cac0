"""The trials: each yields what it saw."""

from __future__ import annotations

import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from random import Random
from threading import Event
from typing import NamedTuple

from benchmark.servers import genuine

from scache import Client, ProtocolError, Unavailable
from tests.support.daemon import Daemon

OPEN_FILES = 160
SAVES = 2_000
MOST_CLIENTS = 100
"""Clients that come to the original until it is dead."""
DEAD_PEERS = 10_000
AT_ONCE = 500
NOTICED_WITHIN = 0.1
"""Seconds after which a dead peer must not be handed out."""
KILLS = 100
LOAD_SECONDS = 0.3
LONGEST_START = 1.0
LONGEST_FIND = 0.05


class Fact(NamedTuple):
    """Something that was seen."""

    holds: bool | None
    """Whether it is as it must be; None for what is told for comparison."""
    text: str


def open_files(directory: Path, _: float) -> Iterator[Fact]:
    """Save without end where there are few open files."""
    with Daemon(directory / "socket", open_files=OPEN_FILES) as daemon:
        with Client(daemon.path, inline=False) as client:
            client.find_endp("nothing")
            before = _descriptors(daemon.pid)
            saved, finds = _save_without_end(client)
            most = _descriptors(daemon.pid)
            client_in_charge = Client(daemon.path)
            with closing(client_in_charge):
                client_in_charge.purge([f"{number}" for number in range(SAVES)])
            after = _descriptors(daemon.pid)
        alive = daemon.terminate() == 0
    yield Fact(alive and saved == SAVES, f"{saved:,} of {SAVES:,} saves done, exit 0 when asked")
    yield Fact(most < OPEN_FILES, f"{most} of {OPEN_FILES} descriptors open at the end of it")
    yield Fact(after <= before + 1, f"{after} open once all is purged, {before} before")
    yield Fact(
        max(finds) < LONGEST_FIND,
        f"finds meanwhile: median {_ms(statistics.median(finds))}, worst {_ms(max(finds))}",
    )
    yield from _genuine_open_files()


def _genuine_open_files() -> Iterator[Fact]:
    """Save without end, then let others come, as they do when they see nothing of it."""
    with genuine(OPEN_FILES)() as server, ExitStack() as clients:
        client = clients.enter_context(Client(server.path, inline=False))
        saved, _ = _save_without_end(client)
        others = 0
        while not _gone(server.pid) and others < MOST_CLIENTS:
            others += 1
            other = clients.enter_context(Client(server.path, inline=False, timeout=0.2))
            with suppress(Unavailable):
                other.find_endp("nothing")
        end = "dead, with all that it held" if _gone(server.pid) else "alive"
    yield Fact(None, f"the original: {saved:,} saves done; when {others} more had come: {end}")


def _save_without_end(client: Client) -> tuple[int, list[float]]:
    """Return how many saves were done before it could not go on, and how long finds took."""
    saved, finds = 0, []
    with open(os.devnull, "rb") as something, suppress(Unavailable, ProtocolError):  # noqa: PTH123
        for number in range(SAVES):
            saved += client.save_endp(60, f"{number}", "", something)
            began = time.monotonic()
            client.find_endp("nothing")
            finds.append(time.monotonic() - began)
    return saved, finds


def dead_peers(directory: Path, scale: float) -> Iterator[Fact]:
    """Ask for connections whose peers have hung up."""
    tries = max(int(DEAD_PEERS * scale) // AT_ONCE, 1)
    handed_out = alive_lost = 0
    with Daemon(directory / "socket") as daemon, Client(daemon.path, timeout=30) as client:
        for _ in range(tries):
            with ExitStack() as ends:
                dead = [_saved_pair(client, f"dead {number}", ends) for number in range(AT_ONCE)]
                live = [_saved_pair(client, f"live {number}", ends) for number in range(10)]
                for peer in dead:
                    peer.close()
                time.sleep(NOTICED_WITHIN)
                for number in range(AT_ONCE):
                    found = client.find_endp(f"dead {number}")
                    if found is not None:
                        found.close()
                        handed_out += 1
                for number, _ in enumerate(live):
                    found = client.find_endp(f"live {number}")
                    alive_lost += found is None
                    if found is not None:
                        found.close()
    text = f"{handed_out} of {tries * AT_ONCE:,} peers that had hung up were handed out"
    yield Fact(handed_out == 0, f"{text} {NOTICED_WITHIN * 1e3:.0f} ms later")
    yield Fact(alive_lost == 0, f"{alive_lost} of {tries * 10} live ones meanwhile were lost")


def _saved_pair(client: Client, endpoint: str, ends: ExitStack) -> socket.socket:
    """Save one end of a connection; return the other."""
    ours, theirs = socket.socketpair()
    ends.enter_context(ours)
    with theirs:
        assert client.save_endp(60, endpoint, "", theirs)
    return ours


def kills(directory: Path, scale: float) -> Iterator[Fact]:
    """Kill the daemon in the middle of its work on one file."""
    tries = max(int(KILLS * scale), 1)
    database, path = directory / "cache.db", directory / "socket"
    starts, unsound, findings = [], 0, 0
    for _ in range(tries):
        began = time.monotonic()
        with Daemon(path, "--audit-rows", "10000000", database=database) as daemon:
            starts.append(time.monotonic() - began)
            _load(daemon)
        with closing(sqlite3.connect(database)) as file:
            unsound += file.execute("PRAGMA integrity_check").fetchall() != [("ok",)]
    with Daemon(path, "--audit-rows", "10000000", database=database):
        findings = _check(path)
    with closing(sqlite3.connect(database)) as file:
        ((lost, live),) = file.execute(
            "SELECT (SELECT value FROM counter WHERE name = 'connections_lost'),"
            " (SELECT count(*) FROM connection)"
        )
        ((saved,),) = file.execute("SELECT value FROM counter WHERE name = 'save_endp_ok'")
    yield Fact(unsound == 0, f"{unsound} of {tries} times the file was not sound after kill -9")
    yield Fact(
        max(starts) < LONGEST_START,
        f"starts: median {_ms(statistics.median(starts))}, worst {_ms(max(starts))}",
    )
    yield Fact(
        findings == 0,
        f"of {saved:,} connections saved, {lost:,} were lost with their process, {live} are left; "
        f"scache check {'has nothing to say' if findings == 0 else f'ends with {findings}'}",
    )


def _load(daemon: Daemon) -> None:
    """Make requests in both modes until the daemon is killed."""
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


def _check(path: Path) -> int:
    command = [sys.executable, "-m", "scache", "check", "--socket", str(path)]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _gone(pid: int) -> bool:
    """Return whether a process has ended, or does in a moment."""
    with suppress(OSError):
        for _ in range(10):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state in "ZX":
                return True
            time.sleep(0.02)
        return False
    return True


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"
