"""How a connection proves what it is: its other end was told, and whoever finds it reads that."""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import NamedTuple

from scache import Found

ENDPOINTS = 60
DESTINATIONS = 30
BOUND = 3
"""Endpoints of a destination."""

END = b"\n"


def endpoint(number: int) -> bytes:
    """Return a label: of any bytes but NUL."""
    return b"endpoint %d \xff" % number


def destination(number: int) -> bytes:
    """Return a label."""
    return b"destination %d" % number


def endpoints_of(number: int) -> list[int]:
    """Return which endpoints a destination is bound to, by whoever binds it."""
    return [(number * 7 + at * 13) % ENDPOINTS for at in range(BOUND)]


def binding(of: int, to: int) -> bytes:
    """Return the properties of a binding."""
    return b"%d to %d" % (of, to)


class Connection(NamedTuple):
    """One that is to be saved."""

    ours: int
    """The other end, which has been told; the caller's to close."""
    theirs: int
    """To be saved; the caller's to close."""


def connection(kind: str, label: bytes, properties: bytes, token: int) -> Connection:
    """Open a connection, and tell its other end what it is."""
    if kind == "pipe":
        theirs, ours = os.pipe()
    elif kind == "unix":
        ours, theirs = (each.detach() for each in socket.socketpair())
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname()).detach()
            theirs = listener.accept()[0].detach()
    os.write(ours, b"\0".join((label, properties, b"%d" % token)) + END)
    return Connection(ours, theirs)


class Proof(NamedTuple):
    """What a connection said of itself."""

    endpoint: bytes
    properties: bytes
    token: int
    hung_up: bool
    """Whether the other end had closed by then."""


class WrongHit(Exception):
    """What was found is not what was asked for."""


def read(found: Found) -> Proof:
    """Read the proof; raise WrongHit if there is none. The descriptor stays the caller's."""
    data = b""
    while not data.endswith(END):
        if not _readable(found.descriptor, milliseconds=1000):
            raise WrongHit(f"it says nothing more than {data!r}")
        more = os.read(found.descriptor, 4096)
        if not more:
            raise WrongHit(f"it says nothing more than {data!r}, and hung up")
        data += more
    label, properties, token = data.removesuffix(END).split(b"\0")
    return Proof(label, properties, int(token), _hung_up(found.descriptor))


def _readable(descriptor: int, *, milliseconds: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(milliseconds))


def _hung_up(descriptor: int) -> bool:
    if not _readable(descriptor, milliseconds=0):
        return False
    try:
        return not os.read(descriptor, 1)
    except OSError as error:
        return error.errno == errno.ECONNRESET


def check(found: Found, *, asked: int, is_destination: bool) -> Proof:
    """Return the proof of what was found; raise WrongHit if it is not what was asked for."""
    proof = read(found)
    if proof.properties != found.endpoint_properties:
        raise WrongHit(f"{proof} came with the properties {found.endpoint_properties!r}")
    if not is_destination:
        if proof.endpoint != endpoint(asked) or found.destination_properties:
            raise WrongHit(f"{proof} was found as endpoint {asked}: {found}")
        return proof
    for number in endpoints_of(asked):
        if proof.endpoint == endpoint(number):
            if found.destination_properties != binding(asked, number):
                raise WrongHit(f"{proof} came with the binding {found.destination_properties!r}")
            return proof
    raise WrongHit(f"{proof} was found for destination {asked}")
