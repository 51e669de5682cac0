"""The cache: expiry, put-backs, refusals, database faults, statistics and counters."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from scache.cache import Cache
from scache.cache.expiry import GRAIN
from scache.cache.limits import Limits
from scache.model import Delivery, Peer, Status
from scache.store.database import MEMORY
from tests.support.rig import TTL_LIMIT, Rig, rigged
from tests.support.store_fixture import NOW, Opened, locked, read


def counters(rig: Rig) -> dict[str, int]:
    """Commit, and return the counters that are not 0."""
    assert rig.batch.commit()
    found = rig.opened.rows("SELECT name, value FROM counter WHERE value > 0")
    return {str(name, "ascii"): value for name, value in found}


def test_find_until_expiry_hits(rig: Rig) -> None:
    """Find a connection one millisecond before its expiry, and miss at its expiry."""
    first, second = rig.save(ttl=5), rig.save(ttl=5)
    rig.clock.time += 4.999
    delivery = rig.cache.find_endp(b"e", 1)
    assert delivery is not None
    assert delivery.descriptor == first
    rig.clock.time += 0.001
    assert rig.cache.find_endp(b"e", 1) is None
    assert second in rig.descriptors.open
    rig.clock.time += GRAIN
    assert rig.sweep() == math.inf
    assert second not in rig.descriptors.open
    rig.cache.delivered(delivery)


def test_binding_saved_again_after_expiry_is_new(rig: Rig) -> None:
    """Put it behind the other bindings, also if the expired row was not removed yet."""
    rig.bind(ttl=2, endpoint=b"first")
    rig.bind(ttl=9, endpoint=b"second")
    rig.clock.time += 2
    rig.bind(ttl=9, endpoint=b"first")
    first, second = rig.save(endpoint=b"first"), rig.save(endpoint=b"second")
    found = [rig.cache.find_dest(b"d", 1), rig.cache.find_dest(b"d", 1)]
    assert [delivery and delivery.descriptor for delivery in found] == [second, first]
    assert counters(rig)["bindings_expired"] == 1


def test_binding_saved_again_before_expiry_keeps_its_place(rig: Rig) -> None:
    """Change only the expiry time, also to an earlier one."""
    rig.bind(ttl=9, endpoint=b"first")
    rig.bind(ttl=9, endpoint=b"second")
    rig.bind(ttl=2, endpoint=b"first")
    first, second = rig.save(endpoint=b"first"), rig.save(endpoint=b"second")
    delivery = rig.cache.find_dest(b"d", 1)
    assert delivery is not None
    assert delivery.descriptor == first
    rig.cache.put_back(delivery)
    rig.clock.time += 2
    delivery = rig.cache.find_dest(b"d", 1)
    assert delivery is not None
    assert delivery.descriptor == second


def test_longer_ttl_is_lowered_to_the_limit(rig: Rig) -> None:
    """Accept the save, and expire its row after the limit."""
    assert rig.save(ttl=10**12)
    assert rig.bind(ttl=10**12) is Status.OK
    for table in ("connection", "binding"):
        expiries = rig.opened.rows(f"SELECT expires_at - saved_at FROM {table}")
        assert expiries == [(TTL_LIMIT,)]


def test_connection_put_back_keeps_id_place_and_expiry(rig: Rig) -> None:
    """Restore the row of a connection that was not sent."""
    rig.save(ttl=5)
    rig.save(ttl=9)
    before = rig.opened.rows("SELECT * FROM connection")
    rig.clock.time += 1
    delivery = rig.cache.find_endp(b"e", 1)
    assert delivery is not None
    assert len(rig.opened.rows("SELECT * FROM connection")) == 1
    rig.cache.put_back(delivery)
    assert rig.opened.rows("SELECT * FROM connection") == before
    assert rig.cache.find_endp(b"e", 1) == delivery


def test_connection_put_back_expires_in_time(rig: Rig) -> None:
    """Schedule the expiry of a connection that is parked again."""
    woken: list[bool] = []
    rig.cache.deadline.on_earlier = lambda: woken.append(True)
    rig.save(ttl=5)
    delivery = rig.cache.find_endp(b"e", 1)
    assert delivery is not None
    planned = rig.sweep()
    woken.clear()
    rig.cache.put_back(delivery)
    assert woken or planned <= NOW + 5 + GRAIN
    assert rig.sweep() <= NOW + 5 + GRAIN
    rig.clock.time += 5 + GRAIN
    rig.sweep()
    assert rig.descriptors.open == set()


def test_connection_that_expired_in_delivery_is_closed_when_put_back(rig: Rig) -> None:
    """Count the connection as expired."""
    rig.save(ttl=2)
    delivery = rig.cache.find_endp(b"e", 1)
    assert delivery is not None
    rig.clock.time += 2
    rig.cache.put_back(delivery)
    assert delivery.descriptor not in rig.descriptors.open
    assert rig.opened.rows("SELECT * FROM connection") == []
    assert counters(rig)["connections_expired"] == 1


def test_find_skips_dead_connections() -> None:
    """Find no dead connection, also if epoll has not reported its hang-up yet."""
    with Opened(MEMORY) as opened, ExitStack() as stack:
        cached = Cache(opened.database, opened.clock, Limits(TTL_LIMIT))
        stack.callback(cached.closer.finish, 20)
        stack.callback(cached.close)
        peers, descriptors = [], []
        for _ in range(3):
            reader, writer = os.pipe()
            peers.append(stack.enter_context(os.fdopen(writer, "wb")))
            descriptors.append(reader)
            assert cached.save_endp(5, b"e", b"", descriptors[-1], 1) is Status.OK
        assert cached.save_dest(5, b"d", b"", b"e", 1) is Status.OK
        while cached.watch():
            pass
        peers[0].close()
        delivery = cached.find_endp(b"e", 1)
        assert delivery is not None
        assert delivery.descriptor == descriptors[1]
        cached.delivered(delivery)
        peers[2].close()
        assert cached.find_dest(b"d", 1) is None
        assert opened.database.batch.counts["connections_hung_up"] == 2


def test_save_without_descriptor_is_refused(rig: Rig) -> None:
    """Count the refusal, and add no row."""
    assert rig.cache.save_endp(5, b"e", b"p", None, 1) is Status.FAIL
    assert rig.opened.rows("SELECT * FROM connection") == []
    assert counters(rig) == {"save_endp_fail": 1}


def test_refused_save_closes_the_descriptor(file_rig: Rig) -> None:
    """Refuse saves while the database is locked."""
    file_rig.batch.commit()
    with locked(file_rig.path):
        assert file_rig.save() is None
        assert file_rig.descriptors.open == set()
        assert file_rig.bind() is Status.FAIL
    assert counters(file_rig) == {"save_endp_fail": 1, "save_dest_fail": 1}


def test_expiry_continues_while_the_database_is_locked(file_rig: Rig) -> None:
    """Close descriptors in time, and remove and record each row once, after the lock."""
    for ttl in (2, 2, 3, 4, 5):
        file_rig.save(ttl)
        file_rig.bind(ttl, destination=b"%d" % ttl)
    assert file_rig.batch.commit()
    with locked(file_rig.path):
        for left in (3, 2, 1, 0):
            file_rig.clock.time = NOW + 5 - left + GRAIN
            for _ in range(20):
                file_rig.sweep()
            assert len(file_rig.descriptors.open) == left
    assert file_rig.batch.commit()
    assert file_rig.sweep() == math.inf
    assert counters(file_rig)["connections_expired"] == 5
    assert file_rig.batch.commit()
    written_off = "SELECT count(connection_id) FROM event WHERE kind = 'expired'"
    assert read(file_rig.path, written_off) == [(5,)]
    assert read(file_rig.path, "SELECT * FROM connection") == []
    assert read(file_rig.path, "SELECT * FROM binding") == []


@contextmanager
def put_back_while_locked(rig: Rig) -> Iterator[Delivery]:
    """Put a connection back while another program has locked the database."""
    rig.save(ttl=5)
    delivery = rig.cache.find_endp(b"e", 1)
    assert delivery is not None
    assert rig.batch.commit()
    with locked(rig.path):
        rig.cache.put_back(delivery)
        yield delivery


def test_connection_put_back_while_locked_expires_in_time(file_rig: Rig) -> None:
    """Close its descriptor during the lock, and remove its row after the lock."""
    with put_back_while_locked(file_rig):
        assert file_rig.sweep() <= NOW + 5 + GRAIN
        file_rig.clock.time += 5 + GRAIN
        file_rig.sweep()
        assert file_rig.descriptors.open == set()
    assert file_rig.batch.commit()
    assert read(file_rig.path, "SELECT * FROM connection") == []


def test_connection_put_back_while_locked_is_found_after_the_lock(file_rig: Rig) -> None:
    """Restore its row as soon as the database can be written."""
    with put_back_while_locked(file_rig) as delivery:
        assert file_rig.cache.find_endp(b"e", 1) is None
    assert file_rig.cache.find_endp(b"e", 1) == delivery


def test_deadline_is_brought_forward_by_an_earlier_expiry(rig: Rig) -> None:
    """Call the hook only for a row that expires before the next round."""
    woken: list[bool] = []
    rig.cache.deadline.on_earlier = lambda: woken.append(True)
    assert rig.cache.expire() == math.inf
    rig.save(ttl=5)
    assert woken == [True]
    rig.bind(ttl=6)
    assert woken == [True]
    rig.bind(ttl=3, destination=b"x")
    assert woken == [True, True]


def test_expire_removes_one_slice_at_a_time(rig: Rig) -> None:
    """Return a time that has passed if more rows have expired."""
    for _ in range(5):
        rig.save(ttl=1)
    rig.clock.time += 1 + GRAIN
    left = []
    while rig.cache.expire() <= rig.clock.time:
        left.append(len(rig.descriptors.open))
    assert left == [3, 1]
    assert rig.descriptors.open == set()


def test_statistics_are_those_of_postfix(rig: Rig) -> None:
    """Log the lines of scache(8), which round down, and start over after each report."""
    rig.bind(destination=b"d", endpoint=b"e")
    rig.bind(destination=b"d", endpoint=b"f")
    rig.bind(destination=b"x", endpoint=b"f")
    for endpoint in (b"e", b"f", b"f"):
        rig.save(endpoint=endpoint)
    for _ in range(4):
        delivery = rig.cache.find_dest(b"d", 1)
        if delivery:
            rig.cache.delivered(delivery)
    for endpoint in (b"e", b"f", b"f"):
        assert rig.cache.find_endp(endpoint, 1) is None
    lines = rig.cache.statistics.report()
    assert lines[0].startswith("statistics: start interval ")
    assert len(lines[0]) == len("statistics: start interval Nov 23 17:47:34")
    assert lines[1:] == [
        "statistics: domain lookup hits=3 miss=1 success=75%",
        "statistics: address lookup hits=0 miss=3 success=0%",
        "statistics: max simultaneous domains=2 addresses=2 connection=3",
    ]
    assert rig.cache.statistics.report() == []


def test_statistics_peaks_are_taken_at_saves(rig: Rig) -> None:
    """Leave out removed connections, and begin a new interval with those that are left."""
    for _ in range(3):
        rig.save(ttl=2)
    rig.cache.statistics.report()
    rig.clock.time += 2 + GRAIN
    rig.sweep()
    rig.save(endpoint=b"f")
    (_, line) = rig.cache.statistics.report()
    assert line == "statistics: max simultaneous domains=0 addresses=1 connection=1"


def test_clients_and_requests_are_counted(rig: Rig) -> None:
    """Count each request and each close reason, and refer to the client in the rows."""
    client_id = rig.cache.client_connected(Peer(7, 8, 9, b"program"))
    rig.cache.save_endp(5, b"e", b"p", rig.descriptors.new(), client_id)
    delivery = rig.cache.find_endp(b"e", client_id)
    assert delivery is not None
    assert delivery.connection.client_id == client_id
    rig.cache.delivered(delivery)
    rig.cache.find_dest(b"d", client_id)
    rig.cache.audit_log.request_malformed("find_dest", client_id)
    rig.clock.time += 1
    rig.cache.client_disconnected(client_id)
    assert counters(rig) == {
        "clients_connected": 1,
        "connections_found": 1,
        "find_dest_bad": 1,
        "find_dest_fail": 1,
        "find_endp_ok": 1,
        "find_misses_unknown": 1,
        "save_endp_ok": 1,
    }
    assert rig.opened.rows("SELECT * FROM client") == [
        (client_id, 7, 8, 9, NOW, NOW + 1, b"program")
    ]


def test_bindings_outlive_the_daemon(tmp_path: Path) -> None:
    """Find connections that are saved later by a binding of an earlier run."""
    path = tmp_path / "cache.db"
    with rigged(path) as rig:
        rig.bind(ttl=9)
        rig.save(ttl=9)
        rig.batch.commit()
    with rigged(path) as rig:
        assert rig.cache.find_dest(b"d", 1) is None
        saved = rig.save()
        delivery = rig.cache.find_dest(b"d", 1)
        assert delivery is not None
        assert (delivery.descriptor, delivery.destination_properties) == (saved, b"q")
        lines = rig.cache.statistics.report()
        assert lines[-1].endswith("domains=1 addresses=1 connection=1")
