"""Points in an exchange at which a client may stop."""

from __future__ import annotations

import os
from collections.abc import Callable

from scache.protocol.messages import DUMMY
from tests.support.dialogue import Dialogue

Stop = Callable[[Dialogue, bytes], None]
"""Makes a request, and stops at the point that its name describes."""


def after_half(client: Dialogue, request: bytes) -> None:
    """Send half of the request."""
    client.send(request[: len(request) // 2])


def after_request(client: Dialogue, request: bytes) -> None:
    """Send the request; do not wait for the reply."""
    client.send(request)


def with_reply_unread(client: Dialogue, request: bytes) -> None:
    """Wait for the reply; do not read it."""
    client.send(request)
    client.await_readable()


def after_reply(client: Dialogue, request: bytes) -> None:
    """Read the reply."""
    client.send(request)
    client.receive_message()


def after_half_a_dummy(client: Dialogue, request: bytes) -> None:
    """Read the reply; send half of a dummy."""
    after_reply(client, request)
    client.send(DUMMY[:3])


def after_nonsense(client: Dialogue, request: bytes) -> None:
    """Read the reply; send a message that is not a dummy."""
    after_reply(client, request)
    client.send(b"name\0value\0\0")


def with_descriptor_unread(client: Dialogue, request: bytes) -> None:
    """Wait for the descriptor; do not receive it."""
    after_reply(client, request)
    client.send(DUMMY)
    client.await_readable()


def after_descriptor(client: Dialogue, request: bytes) -> None:
    """Receive the descriptor; do not send the last dummy."""
    after_reply(client, request)
    client.send(DUMMY)
    os.close(client.receive_descriptor())


FIND_BEFORE_DESCRIPTOR: list[Stop] = [
    after_half,
    after_request,
    with_reply_unread,
    after_reply,
    after_half_a_dummy,
    after_nonsense,
]
FIND_AFTER_DESCRIPTOR: list[Stop] = [with_descriptor_unread, after_descriptor]

SAVE_STOPS: list[Stop] = [after_half, after_request, with_reply_unread, after_reply]
