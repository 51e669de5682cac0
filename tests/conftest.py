"""Fixtures for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


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
