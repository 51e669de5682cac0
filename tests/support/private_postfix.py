"""A private instance of Postfix that relays mail to a sink and uses a connection cache."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from tests.support.postfix_setup import (
    MAIL_OWNER,
    PostfixLog,
    postfix_directories,
    private_directory,
    write_configuration,
)
from tests.support.wire import DEADLINE

_MAIN_CF = """\
relayhost = [127.0.0.1]:{port}
transport_maps = {routes}
smtp_dns_support_level = disabled
smtp_host_lookup = native
smtp_connection_cache_destinations = 127.0.0.1, localhost
smtp_connection_cache_time_limit = {cache_time_limit}s
connection_cache_ttl_limit = {cache_time_limit}s
initial_destination_concurrency = {concurrency}
default_destination_concurrency_limit = {concurrency}
default_process_limit = 100
in_flow_delay = 0s
fast_flush_domains =
smtpd_relay_restrictions = permit_mynetworks, reject
postlog_service_name = {log}
"""

_MASTER_CF = """\
smtpd     unix  n  -  n  -  -  smtpd
cleanup   unix  n  -  n  -  0  cleanup
qmgr      unix  n  -  n  300  1  qmgr
rewrite   unix  -  -  n  -  -  trivial-rewrite
bounce    unix  -  -  n  -  0  bounce
defer     unix  -  -  n  -  0  bounce
trace     unix  -  -  n  -  0  bounce
smtp      unix  -  -  n  -  -  smtp
brief     unix  -  -  n  -  -  smtp
  -o smtp_connection_cache_time_limit=1s
error     unix  -  -  n  -  -  error
retry     unix  -  -  n  -  -  error
postlog   unix-dgram n - n  -  1  postlogd
"""

_SCACHE = """\
scache    unix  -  -  n  -  {limit}  {command}
"""

_QUEUES = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming"),
    *("maildrop", "private", "public", "saved", "trace"),
)

_SUBMIT_GROUP = "postdrop"
_OF_SUBMIT_GROUP = {"maildrop", "public"}
"""Directories that must belong to setgid_group for `postfix check`."""

_LOG = "log"
"""The service that takes the log. `postfix check` reserves the name ``postlog`` for postlogd(8)."""

_LONGEST_LIFE = 600
"""Seconds after which master(8) ends by itself, in case the tests are killed."""


class Route(NamedTuple):
    """The route for the mail of a domain. To smtp(8), each route is a destination of its own."""

    sink: int
    """The number of the sink; routes to one sink share its endpoint."""
    host: str = "127.0.0.1"
    """The host name of the sink, a name of 127.0.0.1 in smtp_connection_cache_destinations."""
    transport: str = "smtp"
    """The service of master.cf; ``brief`` caches a connection for one second only."""


class PrivatePostfix:
    """A running instance of Postfix, as a context manager.

    Unless it runs ``with_scache``, the test must provide a connection cache on `cache_socket`.
    ``scache_command`` is the command in master.cf with its arguments, and ``scache_limit`` is the
    process limit there.
    """

    def __init__(
        self,
        *,
        with_scache: bool = False,
        scache_command: str = "scache",
        scache_limit: str = "1",
        concurrency: int = 20,
        cache_time_limit: int = 60,
        routes: Mapping[str, Route] | None = None,
        timeout: float = DEADLINE,
    ) -> None:
        self._scache = _SCACHE.format(command=scache_command, limit=scache_limit)
        self._with_scache = with_scache
        self._concurrency = concurrency
        self.cache_time_limit = cache_time_limit
        """Seconds for which smtp(8) keeps a connection in the cache."""
        self._routes = routes or {}
        self._timeout = timeout
        self._sent = 0
        self._counted = 0
        self.cache_socket: Path
        """The socket on which smtp(8) expects its connection cache."""
        self.queue_directory: Path
        self.data_directory: Path

    def __enter__(self) -> Self:
        with ExitStack() as cleanup:
            self._start(cleanup)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def send(
        self,
        messages: int = 1000,
        sessions: int = 20,
        timeout: float = 300,
        domain: str = "sink.example",
    ) -> None:
        """Send messages to a domain through smtpd(8), in parallel sessions."""
        subprocess.run(
            [
                *(self._commands / "smtp-source", "-d"),
                *("-m", str(messages), "-s", str(sessions)),
                *("-f", "sender@host.example", "-t", f"recipient@{domain}"),
                f"unix:{self._smtpd_socket}",
            ],
            check=True,
            timeout=timeout,
        )

    def wait_delivered(self, count: int, timeout: float = 300) -> None:
        """Wait until smtp(8) has delivered ``count`` messages since the start.

        Raises TimeoutError if that takes too long.
        """
        if not self._log.wait_for(lambda lines: self._count_sent(lines) >= count, timeout):
            others = (line for line in self.log() if "status=sent" not in line)
            text = "\n".join([*others][-60:])
            raise TimeoutError(f"{self._sent} of {count} messages were delivered:\n{text}")

    def _count_sent(self, lines: list[str]) -> int:
        self._sent += sum("status=sent" in line for line in _deliveries(lines[self._counted :]))
        self._counted = len(lines)
        return self._sent

    def deliveries(self) -> list[str]:
        """Return the lines of the log in which smtp(8) reports the result of a delivery."""
        return list(_deliveries(self.log()))

    def run(self, command: str, *, timeout: float = 60) -> str:
        """Run a shell command with the environment of this instance; return its output.

        Raises subprocess.CalledProcessError if it fails.
        """
        path = f"{self._commands}:{os.environ['PATH']}"
        configuration = {"MAIL_CONFIG": str(self._configuration), "PATH": path}
        return subprocess.run(
            ["sh", "-ec", command],
            env={**os.environ, **self._log.environment, **configuration},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
            timeout=timeout,
        ).stdout

    def wait_reloaded(self, times: int) -> None:
        """Wait until master(8) has reloaded its configuration ``times`` times since the start.

        Raises TimeoutError if that takes too long.
        """

        def reloaded(lines: list[str]) -> bool:
            return sum("]: reload -- version" in line for line in lines) >= times

        if not self._log.wait_for(reloaded, self._timeout):
            raise TimeoutError(f"Postfix has not reloaded: {self.log()[-9:]}")

    def log(self) -> list[str]:
        """Return the lines of the log, without time and host."""
        return self._log.lines()

    def whole_log(self) -> list[str]:
        """Return the lines of the log, as postlogd(8) writes them to the file."""
        return self._log.whole_lines()

    def _start(self, cleanup: ExitStack) -> None:
        self._commands, daemons = postfix_directories()
        directory = cleanup.enter_context(private_directory("queue/pid", "data"))
        self.queue_directory = queue = directory / "queue"
        self.data_directory = directory / "data"
        shutil.chown(self.data_directory, MAIL_OWNER)
        for name in _QUEUES:
            (queue / name).mkdir(mode=0o755 if name == "public" else 0o700)
            group = _SUBMIT_GROUP if name in _OF_SUBMIT_GROUP else None
            shutil.chown(queue / name, MAIL_OWNER, group)
        self.cache_socket = queue / "private/scache"
        self._smtpd_socket = queue / "public/smtpd"
        self._log = cleanup.enter_context(PostfixLog(queue / "public" / _LOG))
        sinks = {0, *(route.sink for route in self._routes.values())}
        ports = {
            sink: cleanup.enter_context(_smtp_sink(self._commands, self._timeout))
            for sink in sorted(sinks)
        }
        main_cf = _MAIN_CF.format(
            port=ports[0],
            routes=_transport_maps(self._routes, ports),
            concurrency=self._concurrency,
            cache_time_limit=self.cache_time_limit,
            log=_LOG,
        )
        master_cf = _MASTER_CF + (self._scache if self._with_scache else "")
        self._configuration = write_configuration(directory, main_cf, master_cf)
        cleanup.enter_context(self._master(daemons / "master"))

    @contextmanager
    def _master(self, program: Path) -> Iterator[None]:
        """Run master(8); at the end, stop it and all its processes."""
        master = subprocess.Popen(
            [program, "-c", self._configuration, "-s", "-e", str(_LONGEST_LIFE)],
            env={**os.environ, **self._log.environment},
            stdin=subprocess.DEVNULL,
            # All its processes inherit this pipe, which hangs up when the last of them has ended.
            stdout=subprocess.PIPE,
        )
        with master:
            try:
                if not self._log.wait_for(_names_start, self._timeout):
                    raise RuntimeError(f"Postfix did not start: {self.log()}")
                yield
            finally:
                self._stop(master)

    def _stop(self, master: subprocess.Popen[bytes]) -> None:
        assert master.stdout is not None
        master.terminate()
        ended = select.poll()
        ended.register(master.stdout, 0)
        if not ended.poll(self._timeout * 1000):
            os.killpg(master.pid, signal.SIGKILL)
            raise TimeoutError(f"Postfix did not stop within {self._timeout} s")


def _transport_maps(routes: Mapping[str, Route], ports: Mapping[int, int]) -> str:
    if not routes:
        return ""
    entries = (
        f"{domain}={route.transport}:[{route.host}]:{ports[route.sink]}"
        for domain, route in routes.items()
    )
    return f"inline:{{ {' '.join(entries)} }}"


def _deliveries(lines: list[str]) -> Iterator[str]:
    return (line for line in lines if line.startswith("postfix/smtp[") and " status=" in line)


def _names_start(lines: list[str]) -> bool:
    return any("daemon started" in line for line in lines)


@contextmanager
def _smtp_sink(commands: Path, timeout: float) -> Iterator[int]:
    """Run smtp-sink, which accepts mail and discards it; yield its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    address = ("127.0.0.1", port)
    command = [str(commands / "smtp-sink"), "-u", MAIL_OWNER, f"127.0.0.1:{port}", "1000"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as sink:
        try:
            deadline = time.monotonic() + timeout
            while not _accepts(address):
                if sink.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"smtp-sink does not listen on port {port}")
                time.sleep(0.01)  # smtp-sink does not report that it listens
            yield port
        finally:
            sink.kill()


def _accepts(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True
