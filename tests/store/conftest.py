"""Fixtures of the tests of the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.store_fixture import Opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Name a database file, alone in its directory, that does not exist yet."""
    directory = tmp_path / "data"
    directory.mkdir()
    return directory / "cache.db"


@pytest.fixture
def opened(database: str) -> Iterator[Opened]:
    """Open a new database of each kind."""
    with Opened(database) as opened:
        yield opened
