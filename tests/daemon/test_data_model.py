"""Connections, endpoints, bindings and their ttl, over the wire."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from scache.model import Status
from tests.support.daemon import Daemon
from tests.support.workbench import Workbench, expect_closed, leads_to


def test_find_takes_the_oldest_connection(bench: Workbench) -> None:
    """A find takes the oldest connection of the endpoint out of the cache."""
    client, endpoint = bench.client(), bench.label()
    peers = [bench.park(client, endpoint, b"%d" % n) for n in range(3)]
    for number, peer in enumerate(peers):
        hit = client.take_endp(endpoint)
        assert leads_to(hit, peer)
        assert hit is not None
        assert hit.properties == (b"%d" % number,)
        expect_closed(peer)
    assert client.take_endp(endpoint) is None


def test_equal_connections_are_kept_apart(bench: Workbench) -> None:
    """Two connections with the same label and properties are two."""
    client, endpoint = bench.client(), bench.label()
    first, second = (bench.park(client, endpoint, b"same") for _ in range(2))
    assert leads_to(client.take_endp(endpoint), first)
    assert leads_to(client.take_endp(endpoint), second)


def test_connection_is_found_under_its_own_endpoint_only(bench: Workbench) -> None:
    """A similar label is another endpoint, and an endpoint is not a destination."""
    client, endpoint = bench.client(), bench.label()
    peer = bench.park(client, endpoint)
    for other in (b"", endpoint[:-1], endpoint + b" ", endpoint.upper()):
        assert client.take_endp(other) is None
    assert client.take_dest(endpoint) is None
    assert leads_to(client.take_endp(endpoint), peer)


def test_find_dest_takes_the_first_endpoint_with_a_connection(bench: Workbench) -> None:
    """A destination takes the oldest connection of its first endpoint that has one."""
    client, destination = bench.client(), bench.label(b"destination")
    empty, first, second = (bench.label() for _ in range(3))
    late = bench.park(client, second, b"late")
    for number, endpoint in enumerate([empty, first, second]):
        assert client.bind(destination, endpoint, b"binding %d" % number) is Status.OK
    older, newer = (bench.park(client, first, b"early") for _ in range(2))
    for peer, properties in [
        (older, (b"binding 1", b"early")),
        (newer, (b"binding 1", b"early")),
        (late, (b"binding 2", b"late")),
    ]:
        hit = client.take_dest(destination)
        assert leads_to(hit, peer)
        assert hit is not None
        assert hit.properties == properties
    assert client.take_dest(destination) is None


@pytest.mark.slow
def test_bindings_and_connections_are_independent(bench: Workbench) -> None:
    """A binding may precede its endpoint's connections, and outlives them."""
    client, destination, endpoint = bench.client(), bench.label(b"destination"), bench.label()
    assert client.bind(destination, endpoint) is Status.OK
    assert client.take_dest(destination) is None
    for find, label in ((client.take_dest, destination), (client.take_endp, endpoint)):
        peer = bench.park(client, endpoint)
        assert leads_to(find(label), peer)
    expect_closed(bench.park(client, endpoint, ttl=1))
    peer = bench.park(client, endpoint)
    assert leads_to(client.take_dest(destination), peer)


def test_binding_that_is_saved_again_keeps_its_place(bench: Workbench) -> None:
    """The order of the bindings of a destination does not change."""
    client, destination = bench.client(), bench.label(b"destination")
    first, second = bench.label(), bench.label()
    for endpoint in (first, second, first, second, first):
        assert client.bind(destination, endpoint, b"properties") is Status.OK
    late, early = bench.park(client, second), bench.park(client, first)
    assert leads_to(client.take_dest(destination), early)
    assert leads_to(client.take_dest(destination), late)


@pytest.mark.slow
def test_binding_that_is_saved_again_gets_the_new_ttl(bench: Workbench) -> None:
    """A binding with other properties is another one and keeps its ttl."""
    client, destination, endpoint = bench.client(), bench.label(b"destination"), bench.label()
    for properties, ttl in ((b"first", 60), (b"second", 60), (b"first", 3)):
        assert client.bind(destination, endpoint, properties, ttl) is Status.OK
    found = []
    for _ in range(2):
        bench.park(client, endpoint, b"connection")
        hit = client.take_dest(destination)
        assert hit is not None
        os.close(hit.descriptor)
        found.append(hit.properties)
        expect_closed(bench.park(client, bench.label(), ttl=3))  # by then three seconds are over
    assert found == [(b"first", b"connection"), (b"second", b"connection")]


@pytest.mark.slow
def test_ttl_limit_lowers_a_longer_ttl(path: Path) -> None:
    """A ttl above the limit is lowered to it, and the reply is status 0."""
    with Daemon(path, "--ttl-limit", "1") as daemon, closing(Workbench(daemon)) as bench:
        client = bench.client()
        assert client.bind(b"destination", b"endpoint", ttl=2**31 - 1) is Status.OK
        expect_closed(bench.park(client, b"endpoint", ttl=2**31 - 1))
        bench.park(client, b"endpoint")
        assert client.take_dest(b"destination") is None


@pytest.mark.parametrize(
    "label", [b"", b"\n", b"line\nline\n", bytes(range(1, 256)), b"\xff\xfe", b"x" * 3000]
)
def test_labels_and_properties_may_have_all_bytes_but_nul(bench: Workbench, label: bytes) -> None:
    """Labels and properties, empty ones included, are returned unchanged."""
    client = bench.client()
    assert client.bind(label, label, label) is Status.OK
    peer = bench.park(client, label, label)
    hit = client.take_dest(label)
    assert hit is not None
    assert hit.properties == (label, label)
    assert leads_to(hit, peer)
