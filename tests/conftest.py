"""Fixtures for every test."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, Phase, settings

from scache import AsyncClient, Client
from tests.support.clients import KINDS, Connect, Pair, connecting
from tests.support.daemon import Daemon
from tests.support.descriptors import descriptors_of
from tests.support.rig import Rig, rigged
from tests.support.wire import DEADLINE

# No test depends on how fast a machine is.
settings.register_profile("scache", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(  # for tools/mutants, which asks only whether there is a failure
    "mutants",
    settings.get_profile("scache"),
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("scache")


# pytest-xdist sets it for its processes, and tables in a pipe would be cut to it.
os.environ.pop("COLUMNS", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that runs every test."""
    parser.addoption("--all", action="store_true", help="run the tests marked `long` as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests marked `root` for other users; leave out those marked `long`, unless --all."""
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))
    # Slow tests first: parallel processes then end at about the same time.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if config.getoption("all"):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if not item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(autouse=True, scope="session")
def patient_clients() -> None:
    """Let clients that are given no timeout wait as long as the tests do.

    On a machine whose processors are all busy a snapshot alone takes seconds.
    """
    for kind in (Client, AsyncClient):
        assert kind.__init__.__kwdefaults__
        kind.__init__.__kwdefaults__["timeout"] = DEADLINE


@pytest.fixture(autouse=True)
def no_descriptor_left_behind() -> Iterator[None]:
    """Fail a test after which the process of the tests holds another set of descriptors."""
    before = descriptors_of(os.getpid())
    yield
    assert descriptors_of(os.getpid()) == before


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test see settings of those who run it."""
    for name in os.environ:
        if name.startswith("SCACHE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close at the end of the test what it opened."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=["memory", "file"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a database: none on disk, then a file."""
    return ":memory:" if request.param == "memory" else str(tmp_path / "cache.db")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a socket for a daemon, short enough for UNIX."""
    return tmp_path / "socket"


@pytest.fixture
def daemon(path: Path, database: str) -> Iterator[Daemon]:
    """Run a daemon with each kind of database."""
    with Daemon(path, database=database) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    """Make a client of the daemon."""
    with Client(daemon.path) as client:
        yield client


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Name a database file that does not exist yet."""
    return tmp_path / "cache.db"


@pytest.fixture
def rig(database: str) -> Iterator[Rig]:
    """Make a cache on each kind of database."""
    with rigged(database) as rig:
        yield rig


@pytest.fixture
def file_rig(file: Path) -> Iterator[Rig]:
    """Make a cache on a file, which can be locked."""
    with rigged(file) as rig:
        yield rig


@pytest.fixture(scope="module")
def portals() -> Iterator[dict[str, BlockingPortal]]:
    """Run a loop of each kind in a thread of its own, for clients of all tests of a module."""
    with start_blocking_portal("asyncio") as asyncio, start_blocking_portal("trio") as trio:
        yield {"asyncio": asyncio, "trio": trio}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Name a kind of client."""
    return str(request.param)


@pytest.fixture
def connect(portals: dict[str, BlockingPortal], kind: str) -> Iterator[Connect]:
    """Give what makes clients of this kind."""
    with connecting(portals.get(kind)) as connect:
        yield connect


@pytest.fixture(params=["inline", "base"])
def inline(request: pytest.FixtureRequest) -> bool:
    """Say whether a client asks for inline mode."""
    return bool(request.param == "inline")


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Make a connection: our end, and the one to be saved."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(DEADLINE)
        yield ours, theirs
