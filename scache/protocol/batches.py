"""Requests that are sent ahead of their replies, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scache.protocol.messages import Request, encode_request

MAX_BATCH = 128
"""Most requests sent ahead of their replies; their descriptors fit into one sendmsg(2)."""

MAX_BATCH_SIZE = 32768
"""Most bytes sent ahead of their replies. They fit into any socket's buffer, so the two sides
cannot deadlock while each waits for the other to read."""


def batches(requests: Sequence[Request], most: int) -> Iterator[tuple[range, bytes]]:
    """Split requests into batches; yield the indices and the encoded messages of each batch."""
    start, size = 0, 0
    messages: list[bytes] = []
    for at, request in enumerate(requests):
        message = encode_request(request)
        if messages and (len(messages) == most or size + len(message) > MAX_BATCH_SIZE):
            yield range(start, at), b"".join(messages)
            start, size = at, 0
            messages = []
        messages.append(message)
        size += len(message)
    if messages:
        yield range(start, len(requests)), b"".join(messages)
