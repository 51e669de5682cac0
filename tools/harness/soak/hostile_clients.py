"""Hostile clients: all behaviours in one process, one after the other or at once."""

from __future__ import annotations

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from random import Random
from threading import Event

from tests.support.hostile import BEHAVIOURS

REST = 0.2
"""Seconds between two, when they come one after the other."""

PER_ROUND = {"connect and vanish": 100}
"""What a round does so many times."""

AT_ONCE = {"connect and vanish": 10_000}
"""How often each does what it does when all are there at once; without end if it is not here."""


def run(path: Path, seed: int, pipe: Pipe) -> None:
    """Do as the pipe says until it says something else; say then what was done so far.

    The pipe says ``in turn``, ``at once``, ``nothing`` or ``end``.
    """
    with suppress(PermissionError):
        os.nice(5)
    done: Counter[str] = Counter()
    order = pipe.recv()
    pipe.send(done)
    while order != "end":
        enough = Event()
        with ThreadPoolExecutor(len(BEHAVIOURS)) as threads:
            working = [
                threads.submit(_again_and_again, path, name, seed, enough, done)
                for name in (BEHAVIOURS if order == "at once" else ())
            ]
            if order == "in turn":
                working.append(threads.submit(_in_turn, path, Random(seed), enough, done))
            order = pipe.recv()
            enough.set()
        for each in working:
            each.result()
        pipe.send(done)


def _in_turn(path: Path, random: Random, enough: Event, done: Counter[str]) -> None:
    while not enough.is_set():
        name = random.choice(list(BEHAVIOURS))
        BEHAVIOURS[name](path, random)
        done[name] += PER_ROUND.get(name, 1)
        enough.wait(REST)


def _again_and_again(path: Path, name: str, seed: int, enough: Event, done: Counter[str]) -> None:
    random = Random(f"{seed} {name}")
    last = done[name] + AT_ONCE.get(name, 10**12)
    while not enough.is_set() and done[name] < last:
        began = time.monotonic()
        BEHAVIOURS[name](path, random)
        done[name] += PER_ROUND.get(name, 1)
        if time.monotonic() < began + 0.001:
            enough.wait(0.01)  # the daemon is not there
