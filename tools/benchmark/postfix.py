"""Mail through a private Postfix, with the genuine scache or with ours in its place."""

from __future__ import annotations

import time
from contextlib import ExitStack

from benchmark.errors import NotRun

SESSIONS = 20
TIMEOUT = 120
"""Seconds that the mail may take."""


def deliver(messages: int, *, genuine_scache: bool) -> float:
    """Return the seconds that a Postfix of our own takes to deliver so many messages.

    Raises NotRun where there is no Postfix, or where it may not be started.
    """
    from tests.support.daemon import Daemon
    from tests.support.genuine import MAIL_OWNER
    from tests.support.postfix import PrivatePostfix

    with ExitStack() as stack:
        try:
            postfix = stack.enter_context(PrivatePostfix(genuine_scache=genuine_scache))
        except (OSError, RuntimeError) as error:
            raise NotRun(str(error)) from None
        if not genuine_scache:
            limit = str(postfix.cache_time_limit)
            options = ("--socket-owner", MAIL_OWNER, "--ttl-limit", limit)
            stack.enter_context(Daemon(postfix.cache_socket, *options))
        start = time.perf_counter()
        postfix.send(messages, SESSIONS, TIMEOUT)
        postfix.wait_delivered(messages, TIMEOUT)
        return time.perf_counter() - start
