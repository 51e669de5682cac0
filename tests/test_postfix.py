"""A real Postfix that keeps its SMTP connections with us."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.daemon import Daemon
from tests.support.genuine import MAIL_OWNER, private_directory
from tests.support.postfix import PrivatePostfix

MESSAGES = 1_000
SESSIONS = 20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

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
    with PrivatePostfix(genuine_scache=True) as postfix:
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
