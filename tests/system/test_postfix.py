"""A real Postfix with this daemon as its connection cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon
from tests.support.postfix_setup import MAIL_OWNER, private_directory
from tests.support.private_postfix import PrivatePostfix, Route

MESSAGES = 1_000
SESSIONS = 20

pytestmark = [pytest.mark.postfix, pytest.mark.slow, pytest.mark.timeout(900)]

CacheFor = Callable[[PrivatePostfix], Daemon]


@pytest.fixture(params=["memory", "file"])
def cache_for(request: pytest.FixtureRequest) -> Iterator[CacheFor]:
    """Return a function that makes the daemon for a Postfix, not started yet."""
    with private_directory() as directory:

        def make(postfix: PrivatePostfix) -> Daemon:
            return Daemon(
                postfix.cache_socket,
                *("--socket-owner", MAIL_OWNER),
                *("--ttl-limit", str(postfix.cache_time_limit)),
                database=":memory:" if request.param == "memory" else directory / "database",
            )

        yield make


def check_all_sent(postfix: PrivatePostfix) -> None:
    """Check that each message was delivered at the first attempt."""
    deliveries = postfix.deliveries()
    assert len(deliveries) == MESSAGES
    assert all("status=sent" in delivery for delivery in deliveries)


def check_reuse(postfix: PrivatePostfix) -> None:
    """Check that nearly all messages used a cached connection, and smtp(8) logged no warning."""
    reused = sum("conn_use=" in delivery for delivery in postfix.deliveries())
    assert reused > 0.9 * MESSAGES
    of_smtp = [line for line in postfix.log() if line.startswith("postfix/smtp[")]
    assert not [line for line in of_smtp if "warning" in line or "disabling" in line]


def test_postfix_reuses_connections_with_its_own_cache() -> None:
    """The load of these tests reuses connections with Postfix's scache(8) too."""
    with PrivatePostfix(with_scache=True) as postfix:
        postfix.send(MESSAGES, SESSIONS)
        postfix.wait_delivered(MESSAGES)
        check_all_sent(postfix)
        check_reuse(postfix)


def test_postfix_reuses_connections(cache_for: CacheFor) -> None:
    """Nearly all messages use a cached connection, and smtp(8) logs no warning."""
    with PrivatePostfix() as postfix, cache_for(postfix) as daemon:
        postfix.send(MESSAGES, SESSIONS)
        postfix.wait_delivered(MESSAGES)
        check_all_sent(postfix)
        check_reuse(postfix)
        assert daemon.terminate() == 0


def test_postfix_delivers_all_mail_during_a_restart_of_the_daemon(cache_for: CacheFor) -> None:
    """Mail is delivered while the daemon is stopped, and after its restart."""
    with PrivatePostfix() as postfix, ThreadPoolExecutor() as pool:
        with cache_for(postfix) as daemon:
            sending = pool.submit(postfix.send, MESSAGES, SESSIONS)
            postfix.wait_delivered(MESSAGES // 4)
            assert daemon.terminate() == 0
        postfix.wait_delivered(MESSAGES // 2)
        with cache_for(postfix):
            sending.result()
            postfix.wait_delivered(MESSAGES)
        check_all_sent(postfix)


def test_purge_finds_connections_by_address_and_by_label() -> None:
    """The address is a field of the endpoint; a label works as it is printed."""
    with PrivatePostfix(routes={"named.example": Route(0, "localhost")}) as postfix:
        options = ("--socket-owner", MAIL_OWNER, "--ttl-limit", str(postfix.cache_time_limit))
        with Daemon(postfix.cache_socket, *options) as daemon:
            postfix.send(20, 2)
            postfix.send(20, 2, domain="named.example")
            postfix.wait_delivered(40)
            command = (*SCACHE, "purge", "--socket", str(daemon.path))
            listed = run_command(*command, "--dry-run", "--field", "127.0.0.1").stdout
            _, _, endpoint = listed.splitlines()[1].partition("  ")[2].partition("  ")
            assert re.fullmatch(r"smtp\\n127\.0\.0\.1\\n\d+\\n0\\n", endpoint)
            port = endpoint.split(r"\n")[2]
            listed = run_command(*command, "--dry-run", "--field", f"[localhost]:{port}").stdout
            assert rf"  smtp\n[localhost]:{port}\n > {endpoint}" in listed
            purged = run_command(*command, "--yes", "--endpoint", endpoint).stdout
            assert not purged.startswith("0 ")
            listed = run_command(*command, "--dry-run", "--field", "127.0.0.1").stdout
            assert listed.startswith("0 connections and ")
