"""The ways in which a client of the base protocol can send the descriptors of a save."""

from __future__ import annotations

from collections.abc import Callable

from scache.protocol.messages import (
    DESCRIPTOR_BYTE,
    DUMMY,
    SaveEndp,
    encode_request,
)
from tests.support.dialogue import (
    Dialogue,
)


def save(label: bytes) -> bytes:
    """Return a request to save a connection."""
    return encode_request(SaveEndp(60, label, b""))


SaveWay = Callable[[Dialogue, bytes, list[int]], None]


def on_its_byte(client: Dialogue, label: bytes, descriptors: list[int]) -> None:
    """Send the descriptors with the byte after the request."""
    client.send(save(label))
    client.expect(DUMMY)
    client.send(DESCRIPTOR_BYTE, descriptors)


def on_the_message(client: Dialogue, label: bytes, descriptors: list[int]) -> None:
    """Send the descriptors with the request, and no byte for them."""
    client.send(save(label), descriptors)
    client.expect(DUMMY)


def on_the_message_with_a_byte(client: Dialogue, label: bytes, descriptors: list[int]) -> None:
    """Send the descriptors with the request, and then the byte that should have carried them."""
    on_the_message(client, label, descriptors)
    client.send(DESCRIPTOR_BYTE)


def glued(client: Dialogue, label: bytes, descriptors: list[int]) -> None:
    """Send the request and the byte in one message."""
    client.send(save(label) + DESCRIPTOR_BYTE, descriptors)
    client.expect(DUMMY)


def ahead(client: Dialogue, label: bytes, descriptors: list[int]) -> None:
    """Send the request, and the byte without waiting for the reply."""
    client.send(save(label))
    client.send(DESCRIPTOR_BYTE, descriptors)
    client.expect(DUMMY)


def on_another_byte(client: Dialogue, label: bytes, descriptors: list[int]) -> None:
    """Send the descriptors with a byte that is not NUL."""
    client.send(save(label))
    client.expect(DUMMY)
    client.send(b"x", descriptors)


def byte_by_byte(client: Dialogue, label: bytes, descriptors: list[int]) -> None:
    """Send each byte of the request alone."""
    for byte in save(label):
        client.send(bytes([byte]))
    client.expect(DUMMY)
    client.send(DESCRIPTOR_BYTE, descriptors)


SAVE_WAYS = [
    on_its_byte,
    on_the_message,
    on_the_message_with_a_byte,
    glued,
    ahead,
    on_another_byte,
    byte_by_byte,
]
