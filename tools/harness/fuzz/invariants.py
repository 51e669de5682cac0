"""Code shared by the checks of both halves of the protocol, with the error for a violation."""

from __future__ import annotations

from collections.abc import Iterator

from scache.protocol.codec import decode


class InvariantError(AssertionError):
    """An invariant does not hold."""


def messages(data: bytes) -> Iterator[bytes]:
    """Yield the messages of an output; raise InvariantError if it ends in part of a message."""
    at = 0
    while at < len(data):
        message = decode(data, at)
        if message is None:
            raise InvariantError(f"the output has something that is no message: {data[at:]!r}")
        yield data[at : message[1]]
        at = message[1]
