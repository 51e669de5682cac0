"""Clients that disconnect in the middle of an exchange."""

from __future__ import annotations

import pytest

from scache import Client
from scache.model import Status
from scache.protocol.messages import (
    FindDest,
    FindEndp,
    SaveDest,
    encode_request,
)
from tests.support.abort_points import (
    FIND_AFTER_DESCRIPTOR,
    FIND_BEFORE_DESCRIPTOR,
    SAVE_STOPS,
    Stop,
    after_half,
    after_reply,
    after_request,
    with_reply_unread,
)
from tests.support.dialogue import (
    Dialogue,
    eventually,
)
from tests.support.save_ways import (
    SAVE_WAYS,
    SaveWay,
    save,
)
from tests.support.snapshots import snapshot
from tests.support.workbench import Workbench, client_count, expect_closed, leads_to


def vanish(bench: Workbench, stop: Stop, request: bytes) -> None:
    """Let a client stop in a request and disconnect; wait until the daemon has closed it."""
    clients = client_count(bench.daemon)
    with Dialogue(bench.daemon.path) as client:
        stop(client, request)
    eventually(lambda: client_count(bench.daemon) == clients)


@pytest.fixture(params=[FindEndp, FindDest])
def find(bench: Workbench, request: pytest.FixtureRequest) -> FindEndp | FindDest:
    """Return a find of either kind, for an endpoint of its own."""
    endpoint, destination = bench.label(), bench.label(b"destination")
    if request.param is FindEndp:
        return FindEndp(endpoint)
    assert bench.client().bind(destination, endpoint) is Status.OK
    return FindDest(destination)


@pytest.mark.parametrize("stop", FIND_BEFORE_DESCRIPTOR)
def test_connection_is_put_back_if_its_finder_leaves_before_the_descriptor(
    bench: Workbench, find: FindEndp | FindDest, stop: Stop
) -> None:
    """It returns to its place, before younger connections."""
    client, endpoint = bench.client(), bench.endpoints[0]
    peers = [bench.park(client, endpoint) for _ in range(2)]
    vanish(bench, stop, encode_request(find))
    for peer in peers:
        assert leads_to(client.take(find), peer)


@pytest.mark.parametrize("stop", FIND_AFTER_DESCRIPTOR)
def test_connection_is_closed_if_its_finder_leaves_after_the_descriptor(
    bench: Workbench, find: FindEndp | FindDest, stop: Stop
) -> None:
    """A connection whose descriptor was sent belongs to the finder."""
    client, endpoint = bench.client(), bench.endpoints[0]
    sent, kept = (bench.park(client, endpoint) for _ in range(2))
    vanish(bench, stop, encode_request(find))
    expect_closed(sent)
    assert leads_to(client.take(find), kept)
    assert client.take(find) is None


def test_connections_are_put_back_if_a_pipelining_finder_leaves(bench: Workbench) -> None:
    """Pipelined finds that were not answered remove nothing from the cache."""
    client, endpoint = bench.client(), bench.label()
    peers = [bench.park(client, endpoint) for _ in range(3)]
    vanish(bench, with_reply_unread, encode_request(FindEndp(endpoint)) * 3)
    for peer in peers:
        assert leads_to(client.take_endp(endpoint), peer)


@pytest.mark.slow
def test_connection_that_is_put_back_keeps_its_expiry_time(bench: Workbench) -> None:
    """A delivery that fails does not extend the lifetime of a connection."""
    client, endpoint = bench.client(), bench.label()
    peer = bench.park(client, endpoint, ttl=8)
    expect_closed(bench.park(client, endpoint, ttl=1))
    vanish(bench, after_reply, encode_request(FindEndp(endpoint)))
    with Client(bench.daemon.path) as looking:
        of_it = f"WHERE endpoint = '{endpoint.decode()}'"
        put_back = f"SELECT count(*) FROM event {of_it} AND kind = 'put_back'"
        assert snapshot(looking, put_back) == [(1,)]
        lifetime = f"SELECT expires_at - saved_at FROM connection {of_it}"
        assert snapshot(looking, lifetime) == [(pytest.approx(8),)]
    expect_closed(peer)


@pytest.mark.parametrize("size", [1, 20, -1])
def test_descriptor_of_an_incomplete_save_is_closed(bench: Workbench, size: int) -> None:
    """A client may leave before its request is complete."""
    endpoint = bench.label()
    ours, theirs = bench.pair()
    vanish(bench, lambda client, data: client.send(data[:size], [theirs.fileno()]), save(endpoint))
    theirs.close()
    expect_closed(ours)
    assert bench.client().take_endp(endpoint) is None


@pytest.mark.parametrize("stop", SAVE_STOPS)
def test_save_of_a_client_that_leaves_before_the_descriptor_has_no_effect(
    bench: Workbench, stop: Stop
) -> None:
    """A save needs its descriptor."""
    endpoint = bench.label()
    vanish(bench, stop, save(endpoint))
    assert bench.client().take_endp(endpoint) is None


@pytest.mark.parametrize("way", SAVE_WAYS)
def test_save_of_a_client_that_leaves_before_the_reply_is_done(
    bench: Workbench, way: SaveWay
) -> None:
    """A save is done when its descriptor is there."""
    endpoint = bench.label()
    ours, theirs = bench.pair()
    vanish(bench, lambda client, _: way(client, endpoint, [theirs.fileno()]), b"")
    theirs.close()
    assert leads_to(bench.client().take_endp(endpoint), ours)


@pytest.mark.parametrize(
    ("stop", "bound"),
    [(after_half, False), (after_request, True), (with_reply_unread, True), (after_reply, True)],
)
def test_binding_of_a_client_that_leaves_is_saved_if_its_request_was_complete(
    bench: Workbench, stop: Stop, bound: bool
) -> None:
    """The client need not read the reply."""
    client, endpoint, destination = bench.client(), bench.label(), bench.label(b"destination")
    vanish(bench, stop, encode_request(SaveDest(60, destination, b"", endpoint)))
    peer = bench.park(client, endpoint)
    if bound:
        assert leads_to(client.take_dest(destination), peer)
    else:
        assert client.take_dest(destination) is None
