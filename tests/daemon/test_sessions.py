"""Clients that stop in an exchange, the end of the daemon, and its statistics."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle, islice, product
from pathlib import Path

import anyio
import pytest

from scache import Client
from scache.model import Status
from scache.protocol.messages import (
    DESCRIPTOR_BYTE,
    DUMMY,
    FindDest,
    FindEndp,
    Request,
    SaveDest,
    SaveEndp,
    encode_reply,
    encode_request,
)
from scache.store.database import MEMORY
from tests.support.abort_points import (
    FIND_AFTER_DESCRIPTOR,
    FIND_BEFORE_DESCRIPTOR,
    SAVE_STOPS,
    after_half,
    after_nonsense,
)
from tests.support.daemon import Daemon
from tests.support.dialogue import DEADLINE, Dialogue, eventually, until
from tests.support.hostile import HELLO
from tests.support.slow_session import slow_session
from tests.support.store_fixture import Opened

CLIENTS = 100
LONG = ("--exchange-timeout", "600")
"""A time-out that no client exceeds during a test."""


@contextmanager
def parked(client: Dialogue, endpoint: bytes, ttl: int = 60) -> Iterator[socket.socket]:
    """Save one end of a connection; yield the other."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(DEADLINE)
        with theirs:
            assert client.park(endpoint, theirs.fileno(), ttl=ttl) is Status.OK
        yield ours


def do_every_exchange(path: Path, label: bytes = b"of another client") -> None:
    """Complete each kind of exchange with a client of its own."""
    with Dialogue(path) as client:
        assert client.bind(label, label) is Status.OK
        for find in (client.take_dest, client.take_endp):
            with parked(client, label):
                hit = find(label)
                assert hit is not None
                os.close(hit.descriptor)
            assert find(label) is None


ENDPOINT, DESTINATION = b"endpoint", b"destination"
BINDING = SaveDest(60, DESTINATION, b"", ENDPOINT)
SAVES: list[Request] = [SaveEndp(60, ENDPOINT, b""), BINDING]
FINDS: list[Request] = [FindEndp(ENDPOINT), FindDest(DESTINATION)]
STOPS = [
    *product(SAVES, SAVE_STOPS),
    *product(FINDS, [*FIND_BEFORE_DESCRIPTOR, *FIND_AFTER_DESCRIPTOR]),
]
"""All points of all exchanges at which a client may stop."""


def stop_everywhere(daemon: Daemon, stack: ExitStack) -> list[Dialogue]:
    """Return clients that have stopped at all points of all exchanges, one point after another."""
    first = stack.enter_context(Dialogue(daemon.path))
    assert first.bind(DESTINATION, ENDPOINT) is Status.OK
    clients = []
    for request, stop in islice(cycle(STOPS), CLIENTS):
        if request in FINDS:
            stack.enter_context(parked(first, ENDPOINT))
        clients.append(stack.enter_context(Dialogue(daemon.path)))
        stop(clients[-1], encode_request(request))
    return clients


def test_stopped_clients_delay_no_other_client(path: Path, database: str) -> None:
    """A hundred clients stop at all points of all exchanges."""
    with Daemon(path, *LONG, database=database) as daemon, ExitStack() as stack:
        clients = stop_everywhere(daemon, stack)
        do_every_exchange(daemon.path)
        assert len(clients) == CLIENTS


@pytest.mark.slow
def test_stopped_clients_are_disconnected(path: Path, database: str) -> None:
    """A client that stops in an exchange is disconnected after the exchange timeout."""
    with (
        Daemon(path, "--exchange-timeout", "3", database=database) as daemon,
        ExitStack() as stack,
    ):
        clients = stop_everywhere(daemon, stack)
        for (request, stop), client in zip(cycle(STOPS), clients, strict=False):
            # The other clients have completed their exchange.
            if stop is not after_nonsense and (request is not BINDING or stop is after_half):
                client.await_end()
        do_every_exchange(daemon.path)
        daemon.wait_for_log("stopped in the middle of an exchange: disconnected")


@pytest.mark.slow
def test_idle_clients_stay_connected(path: Path, database: str) -> None:
    """There is no time-out between two exchanges."""
    with (
        Daemon(path, "--exchange-timeout", "1", database=database) as daemon,
        Dialogue(daemon.path) as idle,
    ):
        with parked(idle, ENDPOINT):
            for _ in range(3):  # each takes an exchange timeout
                with Dialogue(daemon.path) as stopped:
                    stopped.send(b"request\0")
                    stopped.await_end()
            hit = idle.take_endp(ENDPOINT)
            assert hit is not None
            os.close(hit.descriptor)
        with Dialogue(daemon.path) as stopped:
            stopped.send(b"request\0")
            stopped.await_end()
        assert idle.take_endp(ENDPOINT) is None


def flood(client: Dialogue) -> None:
    """Send requests and read no reply, until the connection is shut down."""
    requests = encode_request(FindEndp(b"nothing")) * 100
    with suppress(BrokenPipeError, ConnectionResetError):
        while True:
            client.send(requests)


def test_client_that_never_reads_delays_no_other_client(path: Path, database: str) -> None:
    """A client sends without pause and reads no reply."""
    with (
        Daemon(path, *LONG, database=database) as daemon,
        Dialogue(daemon.path, timeout=600) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        flooding = thread.submit(flood, client)
        for _ in range(20):
            do_every_exchange(daemon.path)
        assert not flooding.done()
        client.shutdown()


def test_client_that_never_reads_is_disconnected(path: Path, database: str) -> None:
    """A reply that is not read counts as a stop in an exchange."""
    with (
        Daemon(path, "--exchange-timeout", "1.5", database=database) as daemon,
        Dialogue(daemon.path) as client,
    ):
        flood(client)
        daemon.wait_for_log("stopped in the middle of an exchange: disconnected")
        do_every_exchange(daemon.path)


# The end of the daemon


@pytest.mark.slow
def test_idle_exit_follows_the_last_client(path: Path, database: str) -> None:
    """The daemon exits with 0 after the last client has left, although connections are cached."""
    with Daemon(path, "--max-idle", "2", database=database) as daemon:
        with Dialogue(daemon.path) as client, parked(client, b"kept") as kept:
            for _ in range(2):
                with parked(client, ENDPOINT, ttl=3) as expiring:
                    assert expiring.recv(1) == b""  # longer than max_idle
            with Dialogue(daemon.path) as other:
                assert other.take_endp(ENDPOINT) is None
            client.close()
            assert kept.recv(1) == b""
        assert daemon.wait() == 0
        daemon.wait_for_log("no client for 2 s")
        assert not daemon.path.exists()


def test_idle_exit_counts_from_the_start(path: Path, database: str) -> None:
    """The idle time begins when the daemon starts. With 0 the daemon never exits."""
    with Daemon(path.with_suffix(".lasting"), "--max-idle", "0") as lasting:
        with Daemon(path, "--max-idle", "0.3", database=database) as daemon:
            assert daemon.wait() == 0
        do_every_exchange(lasting.path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_completes_exchanges_in_progress(
    path: Path, database: str, number: signal.Signals
) -> None:
    """A daemon that stops completes the exchanges in progress and accepts no others."""
    with Daemon(path, database=database, stop_timeout=DEADLINE) as daemon, ExitStack() as stack:
        finding, saving, idle = (stack.enter_context(Dialogue(daemon.path)) for _ in range(3))
        peer = stack.enter_context(parked(finding, ENDPOINT))
        finding.send(encode_request(FindEndp(ENDPOINT)))
        finding.expect(encode_reply(Status.OK, b""))
        saving.send(encode_request(SaveEndp(60, ENDPOINT, b"")))
        saving.expect(DUMMY)
        os.kill(daemon.pid, number)
        idle.await_end()
        assert not daemon.path.exists()
        saving.send(DESCRIPTOR_BYTE, [peer.fileno()])
        saving.expect(encode_reply(Status.OK))
        saving.await_end()
        finding.send(DUMMY)
        descriptor = finding.receive_descriptor()
        finding.send(DUMMY)
        finding.await_end()
        assert daemon.wait() == 0
        with socket.socket(fileno=descriptor) as found:
            found.sendall(b"alive")
            assert peer.recv(10) == b"alive"
        daemon.wait_for_log(f"stopping: received {number.name}")
        daemon.wait_for_log("statistics: address lookup hits=1 miss=0 success=100%")


@pytest.mark.slow
def test_stop_disconnects_stopped_clients(path: Path, database: str) -> None:
    """A client that does not complete its exchange cannot keep the daemon running."""
    with Daemon(path, *LONG, database=database) as daemon, ExitStack() as stack:
        stop_everywhere(daemon, stack)
        os.kill(daemon.pid, signal.SIGTERM)
        assert daemon.wait() == 0
        assert not daemon.path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_the_daemon_at_once(
    path: Path, database: str, number: signal.Signals
) -> None:
    """The exit status is that of a process killed by the signal."""
    running = Daemon(path, *LONG, database=database, stop_timeout=DEADLINE)
    with running as daemon, Dialogue(daemon.path) as client:
        client.send(b"request\0")
        do_every_exchange(daemon.path)
        os.kill(daemon.pid, number)
        daemon.wait_for_log("stopping")
        os.kill(daemon.pid, number)
        assert daemon.wait() == -number


@pytest.mark.root
def test_second_signal_ends_a_daemon_with_pid_1_at_once(path: Path) -> None:
    """The kernel drops a signal without a handler for this pid."""
    prefix = ("unshare", "--pid", "--fork", "--kill-child")
    running = Daemon(path, *LONG, prefix=prefix, stop_timeout=DEADLINE)
    with running as daemon, Dialogue(daemon.path) as client:
        client.send(b"request\0")
        do_every_exchange(daemon.path)
        (pid,) = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        os.kill(int(pid), signal.SIGTERM)
        daemon.wait_for_log("stopping")
        os.kill(int(pid), signal.SIGTERM)
        assert daemon.wait() == 128 + signal.SIGTERM


# Statistics

DATE = r"[A-Z][a-z]{2} [ 123][0-9] [0-2][0-9]:[0-5][0-9]:[0-5][0-9]"
START = rf"statistics: start interval {DATE}"


def statistics(daemon: Daemon) -> list[str]:
    """Return the statistics that the daemon has logged."""
    lines = [line.partition("]: ")[2] for line in daemon.log()]
    return [line for line in lines if line.startswith("statistics:")]


def expect_statistics(daemon: Daemon, *expected: str) -> None:
    """Wait for statistics; check that they are exactly these lines."""
    eventually(lambda: len(statistics(daemon)) >= len(expected))
    lines = statistics(daemon)
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern if pattern is START else re.escape(pattern), line)


def report(daemon: Daemon) -> None:
    """Make the daemon log its statistics (SIGUSR1)."""
    os.kill(daemon.pid, signal.SIGUSR1)


def test_sighup_logs_statistics(path: Path, database: str) -> None:
    """The lines are those of Postfix's scache(8), about the time since the last report."""
    with (
        Daemon(path, database=database) as daemon,
        Dialogue(daemon.path) as client,
        ExitStack() as stack,
    ):
        for number in range(3):
            assert client.bind(b"destination %d" % (number % 2), b"endpoint 1") is Status.OK
            stack.enter_context(parked(client, b"endpoint %d" % (number % 2)))
        for find, label in (
            (client.take_dest, b"destination 0"),
            (client.take_dest, b"destination 0"),
            (client.take_dest, b"nowhere"),
            (client.take_endp, b"endpoint 0"),
            (client.take_endp, b"endpoint 0"),
            (client.take_endp, b"nowhere"),
        ):
            if (hit := find(label)) is not None:
                os.close(hit.descriptor)
        report(daemon)
        lines = [
            START,
            "statistics: domain lookup hits=1 miss=2 success=33%",
            "statistics: address lookup hits=2 miss=1 success=66%",
            "statistics: max simultaneous domains=2 addresses=2 connection=3",
        ]
        expect_statistics(daemon, *lines)

        assert client.take_endp(b"nowhere") is None
        report(daemon)
        lines += [START, "statistics: address lookup hits=0 miss=1 success=0%"]
        expect_statistics(daemon, *lines)

        report(daemon)  # logs nothing, because nothing happened
        with Client(path) as looking:
            os.close(looking.snapshot())  # takes several iterations of the event loop
        stack.enter_context(parked(client, b"endpoint 2"))
        os.kill(daemon.pid, signal.SIGTERM)
        assert daemon.wait() == 0
        lines += [START, "statistics: max simultaneous domains=2 addresses=1 connection=1"]
        expect_statistics(daemon, *lines)


def test_idle_daemon_logs_no_statistics(path: Path, database: str) -> None:
    """There is nothing to report."""
    with Daemon(path, "--status-interval", "0.1", "--max-idle", "0.5", database=database) as daemon:
        assert daemon.wait() == 0
        assert statistics(daemon) == []


def test_status_interval_logs_statistics_regularly(path: Path, database: str) -> None:
    """Each report is about the time since the last one."""
    with (
        Daemon(path, "--status-interval", "0.2", database=database) as daemon,
        Dialogue(daemon.path) as client,
    ):
        lines: list[str] = []
        for _ in range(2):
            assert client.take_dest(b"nowhere") is None
            lines += [START, "statistics: domain lookup hits=0 miss=1 success=0%"]
            expect_statistics(daemon, *lines)


# Limits


def test_daemon_raises_its_descriptor_limit(path: Path) -> None:
    """The soft limit is raised to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(200, soft), hard))
        try:
            daemon = stack.enter_context(Daemon(path))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        limits = Path(f"/proc/{daemon.pid}/limits").read_text()
        assert f"Max open files {hard} {hard} files" in re.sub(" +", " ", limits)


def test_connection_is_put_back_if_its_reply_was_not_sent() -> None:
    """A reply that did not fit into the socket was not sent, and neither was its descriptor."""

    async def converse() -> None:
        with slow_session(opened) as slow:
            slow.save(b"p")
            slow.client.sendall(HELLO)
            await anyio.wait_readable(slow.client)
            slow.fill()
            slow.client.sendall(encode_request(FindEndp(b"e")))
            await until(lambda: slow.session.deliveries)
            slow.client.close()
            await until(lambda: not slow.session.deliveries)
        assert not slow.left

    with Opened(MEMORY) as opened:
        opened.run(converse())
        assert opened.rows("SELECT count(*) FROM connection") == [(1,)]
