"""The HTTP server of the exporter: deadlines, and few threads that slow clients cannot hold."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from scache.screens.exporter.families import families
from scache.unix.stale_socket import remove_stale

PATH: Final = "/metrics"

MAX_CONNECTIONS: Final = 16
"""Connections, each with a thread; one more closes the oldest."""

DEADLINE: Final = 5.0
"""Seconds from the begin of a connection to its end."""

Read = Callable[[], Mapping[str, Any] | None]
"""Returns the statistics of the daemon; None if it does not answer in time."""


class _Daemon(Collector):
    """A collector that asks the daemon once for each scrape."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        return families(self._read())

    def describe(self) -> list[Metric]:
        """Return no names, so that registering does not ask the daemon."""
        return []


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A server with at most `MAX_CONNECTIONS` connections, each of at most `DEADLINE` seconds."""

    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: Any, read: Read, family: int) -> None:  # noqa: ANN401
        self.address_family = family
        self.registry = CollectorRegistry()
        self.registry.register(_Daemon(read))
        self._lock = threading.Lock()
        self._began: dict[socket.socket, float] = {}
        """The time of each connection, the oldest first."""
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        with self._lock:
            if len(self._began) >= MAX_CONNECTIONS:
                _hang_up(next(iter(self._began)))
                self._began.pop(next(iter(self._began)))
            self._began[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        with self._lock:
            self._began.pop(request, None)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Close the listening socket and the connections; wait for their threads."""
        with self._lock:
            for request in self._began:
                _hang_up(request)
        super().server_close()

    def service_actions(self) -> None:
        """Close the connections that have reached `DEADLINE`; called every half second."""
        with self._lock:
            for request, began in self._began.items():
                if time.monotonic() - began > DEADLINE:
                    _hang_up(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Say nothing: a client has left or was too slow."""


def _hang_up(request: socket.socket) -> None:
    """End a connection; the thread that serves it notices and closes it."""
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """One request, after which the connection is closed."""

    server: _Server
    timeout = DEADLINE

    def do_GET(self) -> None:
        """Answer with the metrics, in the form that the client asks for."""
        if self.path.partition("?")[0] != PATH:
            self.send_error(404, explain=f"The metrics are at {PATH}.")
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        body = encode(self.server.registry)
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - called by the base class

    def log_message(self, *_: object) -> None:
        """Log no requests."""

    def address_string(self) -> str:
        """Return no address: a UNIX socket has none."""
        return "-"


@contextlib.contextmanager
def serving(
    where: tuple[str, int] | Path, read: Read
) -> Iterator[tuple[str, socketserver.BaseServer]]:
    """Listen on an address, or on a UNIX socket whose path is removed at the end.

    Yield the place as text, with the number of a port that was 0, and the server, which serves in
    its `serve_forever`. Raises OSError, and SocketError for a path that is in use.
    """
    if isinstance(where, Path):
        remove_stale(where, "--unix")
        with _Server(str(where), read, socket.AF_UNIX) as server:
            try:
                yield f"the socket {where}", server
            finally:
                where.unlink(missing_ok=True)
        return
    host, port = where
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with _Server((host, port), read, family) as server:
        port = server.server_address[1]
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{port}{PATH}", server
