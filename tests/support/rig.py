"""A cache in the process of the tests, with a manual clock and fake descriptors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scache.cache import Cache, cache
from scache.cache.limits import Limits
from scache.model import Status
from scache.unix.closing import Closer
from tests.support.clocks import HandClock
from tests.support.store_fixture import NOW, Opened

TTL_LIMIT = 10


class FakeDescriptors(Closer):
    """Numbers in place of descriptors; closing one that is not open is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.open: set[int] = set()
        self._last = 1_000_000

    def new(self) -> int:
        """Return a new descriptor."""
        self._last += 1
        self.open.add(self._last)
        return self._last

    def close(self, descriptors: Iterable[int], **_: bool) -> None:
        """Close descriptors that have no other owner."""
        for descriptor in descriptors:
            self.open.remove(descriptor)

    def close_shared(self, descriptor: int, **_: bool) -> None:
        """Close a descriptor that its finder has too."""
        self.open.remove(descriptor)


class Rig:
    """A cache, with its database, clock and descriptors."""

    def __init__(
        self,
        path: Path | str,
        opened: Opened,
        limits: Limits,
    ) -> None:
        self.path = path
        self.opened = opened
        self.batch = opened.database.batch
        self.clock = opened.clock
        self.descriptors = FakeDescriptors()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cache, "Closer", lambda: self.descriptors)
            self.cache = Cache(opened.database, self.clock, limits)

    def save(self, ttl: float = 5, endpoint: bytes = b"e", properties: bytes = b"p") -> int | None:
        """Save a connection; return its descriptor, or None if the cache refused it."""
        descriptor = self.descriptors.new()
        status = self.cache.save_endp(ttl, endpoint, properties, descriptor, 1)
        return descriptor if status is Status.OK else None

    def bind(self, ttl: float = 5, destination: bytes = b"d", endpoint: bytes = b"e") -> Status:
        """Save a binding."""
        return self.cache.save_dest(ttl, destination, b"q", endpoint, 1)

    def sweep(self) -> float:
        """Expire everything that is due, as the daemon does; return the time of the next expiry."""
        for _ in range(100):
            due = self.cache.expire()
            if due > self.clock.time:
                return due
        raise AssertionError("expiry does not end")


@contextmanager
def rigged(
    path: Path | str,
    audit_rows: int = 1000,
    now: float | HandClock = NOW,
    limits: Limits = Limits(TTL_LIMIT),  # noqa: B008 - it never changes
) -> Iterator[Rig]:
    """Yield a cache on a database; fail if it leaves a descriptor open."""
    with (
        pytest.MonkeyPatch.context() as patch,
        Opened(path, now, audit_rows=audit_rows) as opened,
    ):
        patch.setattr(cache, "EXPIRY_SLICE", 2)
        rig = Rig(path, opened, limits)
        yield rig
        rig.cache.close()
        assert rig.descriptors.open == set()
