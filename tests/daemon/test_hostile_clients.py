"""Hostile clients, each alone: when it has gone, the daemon serves, and holds nothing of it."""

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
    """Run a daemon, which nobody harms for good, for all tests: on memory, then on a file."""
    directory = tmp_path_factory.mktemp("hostile")
    database = ":memory:" if request.param == "memory" else directory / "cache.db"
    with Daemon(directory / "socket", database=database) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def at_rest(daemon: Daemon) -> int:
    """Count the descriptors of the daemon when it has one client and nothing is cached."""
    with Client(daemon.path) as client:
        assert client.find_endp("e") is None
        return len(descriptors_of(daemon.pid))


@pytest.mark.parametrize("behaviour", QUICK)
def test_hostile_client(daemon: Daemon, at_rest: int, behaviour: str, pair: Pair) -> None:
    """It disturbs nobody's connections, and leaves nothing open and no bug in the log."""
    ours, theirs = pair
    with Client(daemon.path) as client:
        client.purge([LABEL], [LABEL])
        assert client.save_endp(300, "e", "p", theirs)
        # Those of other tests have gone.
        eventually(lambda: len(descriptors_of(daemon.pid)) == at_rest + 1)
        for seed in range(ROUNDS):
            QUICK[behaviour](daemon.path, Random(seed))
        found = client.find_endp("e")
        assert found is not None
        assert found.endpoint_properties == b"p"
        expect_other_end(found, ours)
        # What it saved, under whatever name, is there until it expires or is purged.
        eventually(lambda: leftovers_are_cached(daemon, client, at_rest))
    assert not [line for line in daemon.log() if "report it" in line]


def leftovers_are_cached(daemon: Daemon, client: Client, before: int) -> bool:
    """Whether the daemon has open what it had before; whatever is cached is purged."""
    endpoints = [
        row[0] for row in snapshot(client, "SELECT CAST(endpoint AS BLOB) FROM connection")
    ]
    client.purge(endpoints, [])
    return len(descriptors_of(daemon.pid)) == before
