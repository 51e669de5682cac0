"""The limit on the bytes of all labels and properties."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scache.cache.cache import EVICTIONS
from scache.cache.limits import Limits
from scache.model import Status
from tests.support.rig import TTL_LIMIT, Rig, rigged
from tests.support.store_fixture import NOW

LIMIT = 1000


@pytest.fixture
def rig(database: str) -> Iterator[Rig]:
    """Return a cache with a limit of LIMIT bytes."""
    with rigged(database, limits=Limits(TTL_LIMIT, size=LIMIT)) as each:
        yield each


def kinds(rig: Rig) -> list[tuple[bytes, int]]:
    """Return the kind of each event that is no request, and the bytes of its endpoint."""
    rig.batch.commit()
    return rig.opened.rows("SELECT kind, length(endpoint) FROM event WHERE status IS NULL")


def counted(rig: Rig, name: str) -> int:
    """Return a counter."""
    rig.batch.commit()
    sql = f"SELECT ifnull(sum(value), 0) FROM counter WHERE name = '{name}'"
    ((value,),) = rig.opened.rows(sql)
    return int(value)


def test_save_endp_evicts_the_connections_that_expire_first(rig: Rig) -> None:
    """The new connection is cached, and no more than necessary are closed."""
    for ttl in (7, 3, 9, 5):
        assert rig.save(ttl, b"%d" % ttl, b"p" * 249)
    assert rig.cache.statistics.size == LIMIT
    assert rig.save(1, b"new", b"p" * 247)
    assert kinds(rig) == [(b"evicted", 1)]
    assert rig.cache.find_endp(b"3", 1) is None
    assert rig.save(1, b"newer", b"p" * 300)
    found = [rig.cache.find_endp(each, 1) for each in (b"new", b"5", b"7", b"9", b"newer")]
    assert [each is not None for each in found] == [False, False, True, True, True]
    for each in found:
        if each is not None:
            rig.cache.delivered(each)
    assert counted(rig, "connections_evicted") == 3
    assert rig.cache.statistics.size == 0


def test_saves_evict_bindings_and_connections_alike(rig: Rig) -> None:
    """The row that expires first gives way, whatever its kind is and the kind of the new row."""
    assert rig.bind(2, b"d" * 298, b"e") is Status.OK
    assert rig.save(4, b"c" * 299)
    assert rig.bind(6, b"b" * 298, b"e") is Status.OK
    assert rig.save(8, b"a" * 299)
    assert (counted(rig, "bindings_evicted"), counted(rig, "connections_evicted")) == (1, 0)
    assert rig.bind(9, b"x" * 298, b"e") is Status.OK
    assert (counted(rig, "bindings_evicted"), counted(rig, "connections_evicted")) == (1, 1)
    assert rig.cache.statistics.size == 900
    assert rig.bind(9, b"y" * 298, b"e") is Status.OK
    assert (counted(rig, "bindings_evicted"), counted(rig, "connections_evicted")) == (2, 1)


def test_binding_that_expires_first_is_not_evicted_by_its_own_save(rig: Rig) -> None:
    """The next one gives way, so that what a client has saved can be found."""
    assert rig.save(9, b"e" * 899)
    assert rig.bind(1, b"d" * 298, b"e") is Status.OK
    assert kinds(rig) == [(b"evicted", 899)]
    assert rig.opened.rows("SELECT count(*) FROM binding") == [(1,)]


def test_binding_that_is_saved_again_evicts_nothing(rig: Rig) -> None:
    """Only its time changes, so it needs no more room."""
    assert rig.bind(3, b"d" * 498, b"e") is Status.OK
    assert rig.bind(2, b"f" * 498, b"e") is Status.OK
    assert rig.bind(9, b"d" * 498, b"e") is Status.OK
    assert kinds(rig) == []
    assert rig.cache.statistics.size == LIMIT


def test_row_above_the_limit_is_refused(rig: Rig) -> None:
    """Nothing is evicted for it; the limit is counted and named."""
    assert rig.save(9, b"kept")
    assert rig.save(9, b"e", b"p" * LIMIT) is None
    assert rig.bind(9, b"d" * LIMIT, b"e") is Status.FAIL
    assert kinds(rig) == []
    assert counted(rig, "limit_bytes") == 2
    details = rig.opened.rows("SELECT DISTINCT detail FROM event WHERE status = 2")
    assert details == [(b"limit: bytes",)]


@pytest.mark.parametrize("what", ["connection", "binding"])
def test_one_save_evicts_a_limited_number_of_rows(rig: Rig, what: str) -> None:
    """It is refused, and leaves nothing, if they are too small; a later one goes on."""
    for number in range(500):
        assert rig.save(5, b"%d" % (number % 10), b"p")
    size = rig.cache.statistics.size
    assert size == LIMIT

    def save() -> bool:
        if what == "connection":
            return rig.save(9, b"e", b"p" * 299) is not None
        return rig.bind(9, b"d" * 298, b"e") is Status.OK

    assert [save(), save(), save()] == [False, False, True]
    assert counted(rig, "limit_bytes") == 2
    assert counted(rig, "connections_evicted") == 150
    assert EVICTIONS < 150
    assert rig.cache.statistics.size == LIMIT


def test_bindings_of_an_earlier_run_count(tmp_path: Path) -> None:
    """They outlive the daemon, so the account begins with them."""
    path = str(tmp_path / "cache.db")
    with rigged(path) as rig:
        assert rig.bind(9, b"destination", b"endpoint") is Status.OK
        assert rig.save(9, b"connection") is not None
        rig.opened.run(rig.opened.database.stop(NOW))
    with rigged(path) as rig:
        assert rig.cache.statistics.size == len("destinationendpointq")
