"""The load generator: load.c, compiled on the spot, and what it measures."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from benchmark.servers import Failed, Server

SOURCE = Path(__file__).with_name("load.c")

Option = int | str


class Sample(NamedTuple):
    """What one run of the load generator measured; times are microseconds."""

    each: float
    """Time from one pair, save or binding to the next, over all clients."""
    server_cpu: float
    """Processor time of the server for each."""
    load_share: float
    """The part of the time that the load generator itself used the processor: near 1, it is
    the generator that was measured."""
    find_median: float
    """From a find to its descriptor; 0 where requests are sent ahead or are not finds."""
    find_worst: float
    left: float
    """Time until everything expires, if it was asked to expire together."""


class Load:
    """The compiled load generator."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            raise Failed("there is no C compiler for the load generator")
        self._program = directory / "load"
        command = [compiler, "-O2", "-Wall", "-Wextra", "-o", str(self._program), str(SOURCE)]
        subprocess.run(command, check=True)

    def run(self, server: Server, **options: Option) -> Sample:
        """Drive a server; the options are those at the top of load.c.

        A server without inline mode gets the same requests in the base protocol.
        """
        if not server.inline:
            options |= {"protocol": "base", "depth": 0}
        before = server.cpu_time()
        arguments = [f"{name}={value}" for name, value in options.items()]
        command = [str(self._program), str(server.path), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise Failed(result.stderr.strip() or f"load ended with {result.returncode}")
        measured = json.loads(result.stdout)
        return Sample(
            measured["each"],
            (server.cpu_time() - before) / measured["issued"],
            measured["cpu_share"],
            measured["find_median"],
            measured["find_worst"],
            measured["left"],
        )
