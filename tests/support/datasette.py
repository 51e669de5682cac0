"""Datasette on a database file, run as an administrator would run it."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode

from tests.support.commands import clean_environment
from tests.support.wire import DEADLINE

_ADDRESS = re.compile(r"Uvicorn running on http://127\.0\.0\.1:([0-9]+) ")


class Datasette:
    """A client of a running Datasette."""

    def __init__(self, port: int, database: str, timeout: float) -> None:
        self._port = port
        self._database = database
        self._timeout = timeout

    def rows(self, relation: str, **parameters: object) -> list[dict[str, Any]]:
        """Return the few rows of a table, a view or a query of the metadata."""
        rows = self._fetch(f"/{self._database}/{relation}.json", _size="max", **parameters)
        assert isinstance(rows, list)
        return rows

    def page(self, path: str) -> str:
        """Return a page as HTML."""
        return self._get(f"/{self._database}/{path}").decode()

    def query(self, sql: str, parameters: Mapping[str, object]) -> list[dict[str, Any]]:
        """Return the rows of a statement with named parameters."""
        rows = self._fetch(f"/{self._database}.json", sql=sql, **parameters)
        assert isinstance(rows, list), rows
        return rows

    def _fetch(self, path: str, **query: object) -> Any:  # noqa: ANN401 - any JSON
        return json.loads(self._get(f"{path}?{urlencode({**query, '_shape': 'array'})}"))

    def _get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._timeout)
        try:
            connection.request("GET", path)
            with connection.getresponse() as response:
                body = response.read()
            assert response.status == http.HTTPStatus.OK, body
            return body
        finally:
            connection.close()


@contextmanager
def datasette(command: Sequence[str], path: Path, timeout: float = DEADLINE) -> Iterator[Datasette]:
    """Run a command line of Datasette on a file and a free port of the loopback address."""
    program, *options = command
    assert program == "datasette"
    process = subprocess.Popen(
        # Port 0: the kernel chooses one, and Datasette says which.
        [sys.executable, "-m", "datasette", *options, path, "--host", "127.0.0.1", "--port", "0"],
        env=clean_environment(PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    log = _Log(process.stderr)
    try:
        yield Datasette(log.wait_for_port(timeout), _encoded(path.stem), timeout)
    finally:
        process.kill()
        process.wait()
        log.close()


def _encoded(name: str) -> str:
    """Return the name of a database as it is in an address."""
    return re.sub(
        r"[^A-Za-z0-9_+-]",
        lambda found: "".join(f"~{byte:02X}" for byte in found[0].encode()),
        name.replace(" ", "+"),
    )


class _Log:
    """A reader of the log of Datasette, so that Datasette never waits for it."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._port = 0
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for_port(self, timeout: float) -> int:
        """Return the port; raise RuntimeError if Datasette does not listen in time."""
        if not self._ready.wait(timeout) or not self._port:
            raise RuntimeError(f"Datasette does not listen: {self._lines}")
        return self._port

    def close(self) -> None:
        """Wait for the end of the log, after the end of the process."""
        self._reader.join()

    def _read(self) -> None:
        with self._stream:
            for line in self._stream:
                self._lines.append(line)
                if match := _ADDRESS.search(line):
                    self._port = int(match[1])
                    self._ready.set()
        self._ready.set()
