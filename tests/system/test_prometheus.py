"""Prometheus scrapes a daemon under load: counters, restarts, and the queries of the dashboard."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest

from scache import Client, ScacheError
from scache.screens.exporter import dashboard
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon
from tests.support.dialogue import eventually
from tests.support.prometheus import INTERVAL, Prometheus, exporting, prometheus

pytestmark = pytest.mark.slow

PAUSE = 0.005
"""Seconds between two rounds of requests; each scrape reads an image with all their events."""

SHORT = 15.0
"""Seconds of load in CI."""

NOT_IN_AN_IMAGE = ("scache_connection_age", "process_")
"""Metrics of figures that a snapshot of the daemon does not have."""

VARIABLES = {"$job": ".*", "$instance": ".*", "$__rate_interval": "10s"}


class Load:
    """A client in a thread that saves, binds and finds, and survives restarts of the daemon."""

    def __init__(self, path: Path) -> None:
        self.begun = Counter[str]()
        """Requests that were sent, by kind; the daemon may have died before it served one."""
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        """Send requests until `stop`."""
        while not self._stop.is_set():
            with suppress(ScacheError), Client(self._path, timeout=1) as client:
                while not self._stop.wait(PAUSE):
                    self._round(client)

    def stop(self) -> None:
        """Wait until the last request is answered."""
        self._stop.set()
        self._thread.join()

    def _round(self, client: Client) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.begun["save_endp"] += 1
            client.save_endp(30, "smtp", "", theirs)
        self.begun["save_dest"] += 1
        client.save_dest(30, "example", "", "smtp")
        for find, kind in ((client.find_dest, "find_dest"), (client.find_endp, "find_endp")):
            self.begun[kind] += 1
            if (found := find("example" if kind == "find_dest" else "smtp")) is not None:
                found.close()


@contextmanager
def loading(path: Path) -> Iterator[Load]:
    """Send requests to the daemon in a thread while this block runs."""
    load = Load(path)
    try:
        yield load
    finally:
        load.stop()


@pytest.mark.parametrize("seconds", [SHORT, pytest.param(120.0, marks=pytest.mark.long)])
def test_counters_survive_restarts_and_agree_with_the_audit_log(
    path: Path, tmp_path: Path, seconds: float
) -> None:
    """No restart makes a spike, also not a kill; every query of the dashboard has data."""
    began = time.time()
    with exporting(path) as url, prometheus(tmp_path, url) as server, loading(path) as load:
        for end in (Daemon.terminate, Daemon.kill):
            with Daemon(path) as daemon:
                time.sleep(seconds / 3)
                end(daemon)
            eventually(lambda: server.value("scache_up") == 0)
        with Daemon(path, "--audit-rows", "10000000"):
            time.sleep(seconds / 3)
            dashboard_has_data(server)
            load.stop()
            for kind in ("save_endp", "find_dest"):
                agrees(server, kind, recorded(path, kind))
            window = f"{math.ceil(time.time() - began) + 1}s"
            for kind in ("save_endp", "find_endp"):
                compare_with_load(server, kind, window, load.begun[kind])


def agrees(server: Prometheus, kind: str, number: float) -> None:
    """Wait until Prometheus has this number of requests of a kind."""
    expression = f'sum(scache_requests_total{{request="{kind}"}})'
    eventually(lambda: server.value(expression) == number)


def recorded(path: Path, kind: str) -> float:
    """Return the number of requests of a kind in the audit log of the daemon."""
    sql = f"SELECT count(*) AS n FROM event WHERE kind = '{kind}'"
    result = run_command(*SCACHE, "sql", "--socket", str(path), "--format", "json", sql)
    (row,) = json.loads(result.stdout)
    return float(row["n"])


def compare_with_load(server: Prometheus, kind: str, window: str, begun: int) -> None:
    """Compare the growth of the counters in all runs with the requests that were sent."""
    grown, resets = 0.0, 0
    for series in server.query(f'scache_requests_total{{request="{kind}"}}[{window}]'):
        values = [float(value) for _, value in series["values"]]
        grown += values[0]
        for before, after in pairwise(values):
            resets += after < before
            grown += after if after < before else after - before
    assert 0 < grown <= begun
    assert resets <= 2 * 2, "one for each restart, of each of two statuses"
    (lowest,) = server.query(f"min(min_over_time(rate(scache_requests_total[5s])[{window}:1s]))")
    assert float(lowest["value"][1]) >= 0


def dashboard_has_data(server: Prometheus) -> None:
    """Run every query of the dashboard."""
    queries = [
        target["expr"] for panel in json.loads(dashboard())["panels"] for target in panel["targets"]
    ]
    assert len(queries) > 20
    for query in queries:
        if any(name in query for name in NOT_IN_AN_IMAGE):
            continue
        expression = query
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        found = server.query(expression)
        assert any(not math.isnan(float(series["value"][1])) for series in found), query
    assert float(VARIABLES["$__rate_interval"].removesuffix("s")) > INTERVAL
