"""A client that measures the latency of its own requests."""

from __future__ import annotations

import gc
import os
import socket
import statistics
import time
from array import array
from collections import defaultdict
from contextlib import suppress
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import NamedTuple

from scache import Client, Unavailable

PAUSE = 0.004
"""Seconds between two saves and finds."""

MOST_WORST = 5
"""The number of longest times to report."""


class Latency(NamedTuple):
    """Latencies of requests, in milliseconds."""

    requests: int
    median: float
    p99: float
    worst: list[float]
    """The longest times, in descending order."""


def run(path: Path, pipe: Pipe) -> None:
    """Time requests, and file them under the phase that the pipe named last, until it sends ""."""
    with suppress(PermissionError):
        os.nice(-10)
    gc.disable()
    times: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
    wrong: list[str] = []
    name = pipe.recv()
    here, there = socket.socketpair()
    with here, there, Client(path, inline=True) as inline, Client(path, inline=False) as base:
        while name:
            for client in (inline, base):
                try:
                    _exchange(client, here, there, times[name], wrong)
                except Unavailable:
                    time.sleep(0.05)
            while name and pipe.poll(PAUSE):
                name = pipe.recv()
    gc.enable()
    pipe.send(({name: summary(each) for name, each in times.items() if len(each) > 1}, wrong))


def _exchange(
    client: Client, here: socket.socket, there: socket.socket, times: array[float], wrong: list[str]
) -> None:
    began = time.perf_counter()
    taken = client.save_endp(5, b"probe", b"p", there)
    saved = time.perf_counter()
    found = client.find_endp(b"probe")
    ended = time.perf_counter()
    times.extend(((saved - began) * 1e3, (ended - saved) * 1e3))
    if found is None:
        if taken:
            wrong.append("the probe did not find the connection that it had saved")
        return
    with found.socket() as connection:
        connection.send(b"x")
        if here.recv(10) != b"x":
            wrong.append("the probe found another connection than it had saved")


def summary(times: array[float]) -> Latency:
    """Summarize times."""
    p99 = statistics.quantiles(times, n=100)[98]
    worst = sorted(times, reverse=True)[:MOST_WORST]
    return Latency(len(times), statistics.median(times), p99, worst)
