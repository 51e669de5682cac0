"""Fixtures for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("scache", deadline=None)  # no test depends on how fast a machine is
settings.load_profile("scache")


def open_descriptors() -> dict[int, str]:
    """Return this process's open descriptors, and what each is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - Path.iterdir holds a descriptor
        try:
            found[int(name)] = str(Path(f"/proc/self/fd/{name}").readlink())
        except FileNotFoundError:  # the one that listed the directory
            continue
    return found


@pytest.fixture(autouse=True)
def no_descriptor_left_behind() -> Iterator[None]:
    """Fail a test after which the process of the tests holds another set of descriptors."""
    before = open_descriptors()
    yield
    assert open_descriptors() == before


@pytest.fixture(params=["memory", "file"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a database: none on disk, then a file."""
    return ":memory:" if request.param == "memory" else str(tmp_path / "cache.db")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a socket for a daemon, short enough for UNIX."""
    return tmp_path / "socket"
