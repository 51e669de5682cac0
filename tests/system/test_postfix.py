"""A real Postfix that keeps its SMTP connections with us."""

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
    """Make the daemon, yet to be started, that is the cache of a Postfix."""
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
    """Check that nearly all messages went through a connection that was there already.

    And that no smtp(8) has said anything against its cache, least of all "disabling
    connection caching".
    """
    reused = sum("conn_use=" in delivery for delivery in postfix.deliveries())
    assert reused > 0.9 * MESSAGES
    of_smtp = [line for line in postfix.log() if line.startswith("postfix/smtp[")]
    assert not [line for line in of_smtp if "warning" in line or "disabling" in line]


def test_reuse_with_the_genuine_scache() -> None:
    """With the cache that it comes with, Postfix reuses connections in this setting."""
    with PrivatePostfix(with_scache=True) as postfix:
        postfix.send(MESSAGES, SESSIONS)
        postfix.wait_delivered(MESSAGES)
        check_all_sent(postfix)
        check_reuse(postfix)


def test_reuse(cache_for: CacheFor) -> None:
    """With us as its cache, Postfix reuses connections and has nothing to complain of."""
    with PrivatePostfix() as postfix, cache_for(postfix) as daemon:
        postfix.send(MESSAGES, SESSIONS)
        postfix.wait_delivered(MESSAGES)
        check_all_sent(postfix)
        check_reuse(postfix)
        assert daemon.terminate() == 0


def test_restart_under_load(cache_for: CacheFor) -> None:
    """While we are away and come back, mail goes on: all of it is delivered."""
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


def test_purge_finds_connections_by_the_address_and_the_label_that_postfix_gives_them() -> None:
    """An endpoint has the address as a field; a label that is pasted back as it is printed fits."""
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
