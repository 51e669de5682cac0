"""Saves for which there is no memory."""

from __future__ import annotations

import pytest

from scache.cache.descriptors import Descriptors
from scache.cache.expiry import ExpiryQueue
from scache.cache.statistics import Statistics
from tests.support.rig import Rig


@pytest.mark.parametrize(
    ("where", "method"),
    [(Descriptors, "park"), (ExpiryQueue, "add"), (Statistics, "connection_added")],
    ids=["descriptors", "expiry", "statistics"],
)
def test_save_without_memory_is_refused_and_changes_nothing(
    rig: Rig, where: type, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor is closed; nothing is left that expires, is found or is counted."""
    assert rig.save(5, b"kept", b"p")
    size = rig.cache.statistics.size

    def full(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(where, method, full)
        assert rig.save(3, b"e", b"p") is None
    assert rig.cache.statistics.size == size
    assert rig.cache.statistics.connections == len(rig.descriptors.open) == 1
    assert rig.cache.find_endp(b"e", 1) is None
    rig.batch.commit()
    assert rig.opened.rows("SELECT endpoint FROM connection") == [(b"kept",)]
    refused = "SELECT detail FROM event WHERE kind = 'save_endp' AND status = 2"
    assert rig.opened.rows(refused) == [(b"out of memory",)]
    assert rig.save(3, b"e", b"p")
    rig.clock.time += 10
    rig.sweep()
    assert rig.descriptors.open == set()
