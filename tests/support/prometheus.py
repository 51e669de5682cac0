"""A private Prometheus, and an exporter of a daemon."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.commands import SCACHE, default_signals, started
from tests.support.wire import DEADLINE

INTERVAL = 1
"""Seconds between two scrapes."""


@contextmanager
def exporting(path: Path) -> Iterator[str]:
    """Run an exporter on a free port; yield its URL."""
    command = (*SCACHE, "exporter", "--socket", str(path), "--listen", "127.0.0.1:0")
    with started(*command) as process:
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        found = re.search(r"http://127\.0\.0\.1:\d+/metrics", line)
        assert found is not None, line
        yield found[0]
        process.terminate()
        assert process.wait(DEADLINE) == 0


class Prometheus:
    """The API of a running Prometheus."""

    def __init__(self, address: str) -> None:
        self._address = address

    def query(self, expression: str, **parameters: str) -> list[dict[str, Any]]:
        """Return the result of an instant query."""
        words = urllib.parse.urlencode({"query": expression, **parameters})
        url = f"http://{self._address}/api/v1/query?{words}"
        with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found

    def value(self, expression: str) -> float | None:
        """Return the value of the only series of a query; None if there is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None


@contextmanager
def prometheus(directory: Path, exporter: str) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes an exporter every INTERVAL seconds, on a free port."""
    target = exporter.removeprefix("http://").removesuffix("/metrics")
    scrape = {"job_name": "scache", "static_configs": [{"targets": [target]}]}
    times = {"scrape_interval": f"{INTERVAL * 1000:g}ms", "scrape_timeout": "1s"}
    file = directory / "prometheus.yml"
    file.write_text(json.dumps({"global": times, "scrape_configs": [scrape]}))
    command = (
        *("prometheus", f"--config.file={file}", "--web.listen-address=127.0.0.1:0"),
        f"--storage.tsdb.path={directory / 'data'}",
    )
    with (
        default_signals(),
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stderr is not None
        try:
            lines = iter(process.stderr.readline, "")
            found = (re.search(r'msg="Listening on" address=(\S+)', line) for line in lines)
            address = next(match[1] for match in found if match)
            # Its log must not fill the pipe.
            reader = threading.Thread(target=process.stderr.read)
            reader.start()
            yield Prometheus(address)
        finally:
            process.terminate()
            process.wait(DEADLINE)
            reader.join()
