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

# No test depends on the speed of the machine.
settings.register_profile("scache", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(  # for tools/mutants, which needs no shrinking
    "mutants",
    settings.get_profile("scache"),
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("scache")


# pytest-xdist sets this variable for its processes, and tables in a pipe would be cut to it.
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
    """Set the default timeout of clients to that of the tests.

    On a busy machine a snapshot alone takes seconds.
    """
    for kind in (Client, AsyncClient):
        assert kind.__init__.__kwdefaults__
        kind.__init__.__kwdefaults__["timeout"] = DEADLINE


@pytest.fixture(autouse=True)
def no_descriptor_left_behind() -> Iterator[None]:
    """Fail a test that leaves a descriptor open in the process of the tests, or closes one."""
    before = descriptors_of(os.getpid())
    yield
    assert descriptors_of(os.getpid()) == before


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove settings of scache from the environment of the tests."""
    for name in os.environ:
        if name.startswith("SCACHE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Yield a stack that is closed at the end of the test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=["memory", "file"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the database to use: in memory, then a file."""
    return ":memory:" if request.param == "memory" else str(tmp_path / "cache.db")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a path for the socket of a daemon."""
    return tmp_path / "socket"


@pytest.fixture
def daemon(path: Path, database: str) -> Iterator[Daemon]:
    """Run a daemon with each kind of database."""
    with Daemon(path, database=database) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    """Connect a client to the daemon."""
    with Client(daemon.path) as client:
        yield client


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of a database file that does not exist yet."""
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
    """Run an event loop of each kind in a thread, shared by the tests of a module."""
    with start_blocking_portal("asyncio") as asyncio, start_blocking_portal("trio") as trio:
        yield {"asyncio": asyncio, "trio": trio}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Return the kind of client to use."""
    return str(request.param)


@pytest.fixture
def connect(portals: dict[str, BlockingPortal], kind: str) -> Iterator[Connect]:
    """Yield the function that connects clients of this kind."""
    with connecting(portals.get(kind)) as connect:
        yield connect


@pytest.fixture(params=["inline", "base"])
def inline(request: pytest.FixtureRequest) -> bool:
    """Return True if the client is to ask for inline mode."""
    return bool(request.param == "inline")


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Make a connection; yield the peer's end, and the end to save."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(DEADLINE)
        yield ours, theirs
