"""The load generator: it compiles load.c, runs it, and returns its measurements."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from harness.bench.servers import Failed, Server

SOURCE = Path(__file__).with_name("load.c")

Option = int | str


class Sample(NamedTuple):
    """The measurements of one run of the load generator, in microseconds."""

    each: float
    """Time from one pair, save or binding to the next, over all clients."""
    server_cpu: float
    """Processor time of the server for each of them."""
    load_share: float
    """The part of the time that the load generator used a processor. Near 1, the run measured the
    generator rather than the server."""
    find_median: float
    """Time from a find to its descriptor; 0 if requests are sent ahead or are not finds."""
    find_worst: float
    left: float
    """Time until everything expires, if the run asked for a common moment."""


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
        """Run the generator against a server, with the options described in load.c.

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
