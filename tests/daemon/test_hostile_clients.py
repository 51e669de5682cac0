"""One hostile client at a time: the daemon goes on and keeps nothing after it disconnects."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random

import pytest

from scache import Client
from tests.support.clients import Pair, expect_other_end
from tests.support.daemon import Daemon
from tests.support.descriptors import descriptors_of
from tests.support.dialogue import eventually
from tests.support.hostile import BEHAVIOURS, LABEL, Round, byte_by_byte, read_nothing
from tests.support.snapshots import snapshot

ROUNDS = 3

QUICK: dict[str, Round] = BEHAVIOURS | {
    "read nothing": partial(read_nothing, patience=0.1),
    "byte by byte": partial(byte_by_byte, pause=0.01),
}


@pytest.fixture(scope="module", params=["memory", "file"])
def daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """Run one daemon for all tests, in memory and then on a file."""
    directory = tmp_path_factory.mktemp("hostile")
    database = ":memory:" if request.param == "memory" else directory / "cache.db"
    with Daemon(directory / "socket", database=database) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def at_rest(daemon: Daemon) -> int:
    """Return the number of open descriptors with one client and an empty cache."""
    with Client(daemon.path) as client:
        assert client.find_endp("e") is None
        return len(descriptors_of(daemon.pid))


@pytest.mark.parametrize("behaviour", QUICK)
def test_hostile_client(daemon: Daemon, at_rest: int, behaviour: str, pair: Pair) -> None:
    """Connections of other clients stay; no descriptor stays open, and the log reports no bug."""
    ours, theirs = pair
    with Client(daemon.path) as client:
        client.purge([LABEL], [LABEL])
        assert client.save_endp(300, "e", "p", theirs)
        # The connections of other tests are closed.
        eventually(lambda: len(descriptors_of(daemon.pid)) == at_rest + 1)
        for seed in range(ROUNDS):
            QUICK[behaviour](daemon.path, Random(seed))
        found = client.find_endp("e")
        assert found is not None
        assert found.endpoint_properties == b"p"
        expect_other_end(found, ours)
        # What the hostile client saved stays until it expires or is purged.
        eventually(lambda: leftovers_are_cached(daemon, client, at_rest))
    assert not [line for line in daemon.log() if "report it" in line]


def leftovers_are_cached(daemon: Daemon, client: Client, before: int) -> bool:
    """Purge all connections; return True if the daemon has as many descriptors as before."""
    endpoints = [
        row[0] for row in snapshot(client, "SELECT CAST(endpoint AS BLOB) FROM connection")
    ]
    client.purge(endpoints, [])
    return len(descriptors_of(daemon.pid)) == before
