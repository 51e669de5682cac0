"""A daemon that all tests of a module share, and a check of its descriptors after each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.daemon import Daemon
from tests.support.descriptors import descriptors_of
from tests.support.dialogue import (
    eventually,
)
from tests.support.workbench import Workbench, client_count


@pytest.fixture(scope="module", params=["memory", "file"])
def shared_daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """Run one daemon for all tests of a module: with a database in memory, then in a file."""
    directory = tmp_path_factory.mktemp("exchanges")
    database = directory / "cache.db" if request.param == "file" else ":memory:"
    with Daemon(directory / "socket", "--max-idle", "0", database=database) as running:
        yield running


@pytest.fixture(scope="module")
def baseline(shared_daemon: Daemon) -> int:
    """Return the number of descriptors of a daemon without clients and connections."""
    with closing(Workbench(shared_daemon)) as bench:
        bench.park(bench.client(), bench.label())  # opens what is opened once
        bench.empty()
    eventually(lambda: client_count(shared_daemon) == 0)
    return len(descriptors_of(shared_daemon.pid))


@pytest.fixture
def bench(shared_daemon: Daemon, baseline: int) -> Iterator[Workbench]:
    """Return a workbench; check after the test that the daemon has closed all its descriptors."""
    with closing(Workbench(shared_daemon)) as bench:
        yield bench
        bench.close()
        bench.empty()
    eventually(lambda: len(descriptors_of(shared_daemon.pid)) == baseline)
