"""A process of hostile clients, which misbehave one after the other or all at once."""

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
"""Seconds between two rounds, if they come one after the other."""

PER_ROUND = {"connect and vanish": 100}
"""Connections of one round, if it is not one."""

AT_ONCE = {"connect and vanish": 10_000}
"""Connections of one behaviour when all run at once; unlimited if it is not listed."""


def run(path: Path, seed: int, pipe: Pipe) -> None:
    """Follow the orders from the pipe; answer each with the counts of rounds so far.

    The orders are ``in turn``, ``at once``, ``nothing`` and ``end``.
    """
    with suppress(PermissionError):
        os.nice(5)
    done: Counter[str] = Counter()
    order = pipe.recv()
    pipe.send(done)
    while order != "end":
        stop = Event()
        with ThreadPoolExecutor(len(BEHAVIOURS)) as threads:
            working = [
                threads.submit(_repeat, path, name, seed, stop, done)
                for name in (BEHAVIOURS if order == "at once" else ())
            ]
            if order == "in turn":
                working.append(threads.submit(_in_turn, path, Random(seed), stop, done))
            order = pipe.recv()
            stop.set()
        for each in working:
            each.result()
        pipe.send(done)


def _in_turn(path: Path, random: Random, stop: Event, done: Counter[str]) -> None:
    while not stop.is_set():
        name = random.choice(list(BEHAVIOURS))
        BEHAVIOURS[name](path, random)
        done[name] += PER_ROUND.get(name, 1)
        stop.wait(REST)


def _repeat(path: Path, name: str, seed: int, stop: Event, done: Counter[str]) -> None:
    random = Random(f"{seed} {name}")
    last = done[name] + AT_ONCE.get(name, 10**12)
    while not stop.is_set() and done[name] < last:
        began = time.monotonic()
        BEHAVIOURS[name](path, random)
        done[name] += PER_ROUND.get(name, 1)
        if time.monotonic() < began + 0.001:
            stop.wait(0.01)  # the daemon is restarting
