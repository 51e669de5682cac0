"""The HTTP server of the exporter: what it answers, and slow clients."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from scache import Client
from scache.errors import SocketError
from scache.screens.exporter import web
from tests.support.daemon import Daemon
from tests.support.statistics import statistics
from tests.support.wire import DEADLINE

OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0"}


class Server:
    """A server in this process that has recorded statistics."""

    def __init__(self, place: str) -> None:
        self.place = place

    def get(
        self, path: str = web.PATH, headers: Mapping[str, str] | None = None
    ) -> tuple[int, str, str]:
        """Return the status, the type and the body of an answer."""
        port = int(self.place.rpartition(":")[2].partition("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        try:
            connection.request("GET", path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        """Return a connection."""
        port = int(self.place.rpartition(":")[2].partition("/")[0])
        return socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)


def recorded() -> dict[str, Any]:
    """Return the statistics that the server has."""
    return statistics(find_endp_ok=3)


@contextmanager
def served(where: tuple[str, int] | Path) -> Iterator[Server]:
    """Serve in a thread of this process."""
    with web.serving(where, recorded) as (place, server):
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Server(place)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    """Return a server on a free port."""
    with served(("127.0.0.1", 0)) as server:
        yield server


def test_metrics_come_in_the_form_that_the_client_asks_for(server: Server) -> None:
    """OpenMetrics ends with a line of its own."""
    status, kind, body = server.get()
    assert (status, kind.partition(";")[0]) == (200, "text/plain")
    assert "scache_up 1.0" in body
    status, kind, body = server.get(headers=OPENMETRICS)
    assert (status, kind.partition(";")[0]) == (200, "application/openmetrics-text")
    assert body.endswith("# EOF\n")


@pytest.mark.parametrize("path", ["/", "/metrics/x", "/favicon.ico"])
def test_unknown_path_is_not_found(server: Server, path: str) -> None:
    """The page says where the metrics are."""
    status, _, body = server.get(path)
    assert status == 404
    assert web.PATH in body


def test_clients_that_send_nothing_hold_up_no_scrape(server: Server) -> None:
    """With more of them than there may be connections, the oldest are closed."""
    with ExitStack() as stack:
        silent = [stack.enter_context(server.connect()) for _ in range(web.MAX_CONNECTIONS + 1)]
        assert server.get()[0] == 200
        assert silent[0].recv(1) == b"", "it was closed"


def test_client_is_disconnected_at_the_deadline(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that has sent half of a request is closed without an answer."""
    monkeypatch.setattr(web, "DEADLINE", 0.05)
    with server.connect() as slow:
        slow.sendall(b"GET /metrics HTTP/1.0\r\n")
        assert slow.recv(1) == b""


def test_unix_socket_that_is_in_use_is_refused(tmp_path: Path) -> None:
    """The socket of a daemon stays, and clients of it are served."""
    path = tmp_path / "socket"
    with Daemon(path), Client(path) as client:
        with pytest.raises(
            SocketError, match=r"another daemon listens on .* choose another --unix"
        ):
            web.serving(path, dict).__enter__()
        assert client.find_endp("e") is None
        with Client(path) as other:
            assert other.find_endp("e") is None


def test_unix_socket_serves_and_is_removed(tmp_path: Path) -> None:
    """A socket that an exporter left behind is replaced."""
    path = tmp_path / "metrics"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with served(path), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(str(path))
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.0 200"
    assert not path.exists()
