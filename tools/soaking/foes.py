"""Hostile clients: all behaviours in one process, one after the other or at once."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from contextlib import suppress
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from random import Random

from tests.support.hostile import BEHAVIOURS

REST = 0.2
"""Seconds between two, when they come one after the other."""

PER_ROUND = {"connect and vanish": 100}
"""What a round does so many times."""


AT_ONCE = {"connect and vanish": 10_000}
"""How often each does what it does when all are there at once; without end if it is not here."""


def run(path: Path, seed: int, pipe: Pipe) -> None:
    """Do as the pipe says; say first what was done so far.

    The pipe says ``in turn``, ``at once``, a behaviour, ``nothing`` or ``end``.
    """
    with suppress(PermissionError):
        os.nice(5)
    done: Counter[str] = Counter()
    random = Random(seed)
    enough = threading.Event()
    threads: list[threading.Thread] = []
    while True:
        order = pipe.recv()
        enough.set()
        for thread in threads:
            thread.join()
        pipe.send(done)
        if order == "end":
            return
        enough = threading.Event()
        if order == "in turn":
            threads = [threading.Thread(target=_in_turn, args=(path, random, enough, done))]
        else:
            threads = [
                threading.Thread(target=_again_and_again, args=(path, name, seed, enough, done))
                for name in BEHAVIOURS
                if order in (name, "at once")
            ]
        for thread in threads:
            thread.start()


def _in_turn(path: Path, random: Random, enough: threading.Event, done: Counter[str]) -> None:
    while not enough.is_set():
        name = random.choice(list(BEHAVIOURS))
        BEHAVIOURS[name](path, random)
        done[name] += PER_ROUND.get(name, 1)
        enough.wait(REST)


def _again_and_again(
    path: Path, name: str, seed: int, enough: threading.Event, done: Counter[str]
) -> None:
    random = Random(f"{seed} {name}")
    last = done[name] + AT_ONCE.get(name, 10**12)
    while not enough.is_set() and done[name] < last:
        began = time.monotonic()
        BEHAVIOURS[name](path, random)
        done[name] += PER_ROUND.get(name, 1)
        if time.monotonic() < began + 0.001:
            enough.wait(0.01)  # the daemon is not there
