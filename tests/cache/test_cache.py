"""The cache against a model of scache(8) that fits on a page, and what the model leaves out."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from scache.cache import Cache
from scache.cache.expiry import GRAIN
from scache.cache.limits import Limits
from scache.clock import STEP
from scache.model import Delivery, Peer, Status
from scache.store import MEMORY
from tests.support.rig import TTL_LIMIT, Rig, rigged
from tests.support.store_fixture import NOW, Opened, locked, read


class ModelConnection(NamedTuple):
    """A connection, as scache(8) thinks of it."""

    endpoint: bytes
    properties: bytes
    descriptor: int
    age: int
    expires_at: float


class ModelBinding(NamedTuple):
    """A binding, as scache(8) thinks of it."""

    destination: bytes
    endpoint: bytes
    properties: bytes


class Model:
    """The semantics of scache(8): two collections in order, and nothing else."""

    def __init__(self) -> None:
        self.connections: list[ModelConnection] = []
        self.bindings: dict[ModelBinding, float] = {}
        self.saved = 0

    def expire(self, now: float) -> None:
        """Forget what has expired."""
        self.connections = [each for each in self.connections if each.expires_at > now]
        self.bindings = {each: expiry for each, expiry in self.bindings.items() if expiry > now}

    def save_endp(self, endpoint: bytes, properties: bytes, descriptor: int, expiry: float) -> None:
        """Add a connection; nothing is ever merged."""
        self.saved += 1
        saved = ModelConnection(endpoint, properties, descriptor, self.saved, expiry)
        self.connections.append(saved)

    def find_endp(self, endpoint: bytes) -> ModelConnection | None:
        """Take the oldest."""
        for each in self.connections:
            if each.endpoint == endpoint:
                self.connections.remove(each)
                return each
        return None

    def find_dest(self, destination: bytes) -> tuple[ModelConnection, bytes] | None:
        """Take the oldest of the first endpoint that has one."""
        for binding in self.bindings:
            if binding.destination == destination:
                found = self.find_endp(binding.endpoint)
                if found:
                    return found, binding.properties
        return None

    def put_back(self, found: ModelConnection) -> None:
        """Return a connection to its place."""
        self.connections = sorted([*self.connections, found], key=lambda each: each.age)

    def next_expiry(self) -> float:
        """Return when the next of all expires."""
        expiries = [each.expires_at for each in self.connections]
        return min([*expiries, *self.bindings.values()], default=math.inf)


labels = st.sampled_from([b"", b"a", b"a\n", b"\xff"])
properties = st.sampled_from([b"", b"p\n\xfe"])
ttls = st.integers(1, TTL_LIMIT + 2)
ticks = st.sampled_from([0.001, 0.5, 1, 1, 2, 5])
steps = st.sampled_from([-864_000, -3600, -2, -0.75, 0.75, 2, 3600, 864_000])
"""Seconds by which the wall clock is set; sums are exact in floating point."""


class Machine(RuleBasedStateMachine):
    """The cache and the model, doing the same things in any order."""

    path: str | None = MEMORY

    @initialize()
    def open(self) -> None:
        """Begin with an empty cache."""
        self.stack = ExitStack()
        path = self.path or self.stack.enter_context(tempfile.TemporaryDirectory()) + "/cache.db"
        self.rig = self.stack.enter_context(rigged(path))
        self.cache = self.rig.cache
        self.model = Model()
        self.deliveries: list[tuple[Delivery, ModelConnection]] = []
        self.expiry_of: dict[int, float] = {}
        self.lock = ExitStack()
        self.locked = False

    def teardown(self) -> None:
        """End without a descriptor left."""
        if hasattr(self, "stack"):
            self.lock.close()
            self.stack.close()

    @property
    def now(self) -> float:
        """The time, with a model that knows of it."""
        self.model.expire(self.rig.clock.time)
        return self.rig.clock.time

    @rule(ttl=ttls, endpoint=labels, properties=properties)
    def save_endp(self, ttl: int, endpoint: bytes, properties: bytes) -> None:
        """A connection is taken, and one that is refused is closed."""
        expiry = self.now + min(ttl, TTL_LIMIT)
        descriptor = self.rig.save(ttl, endpoint, properties)
        assert (descriptor is None) == self.locked
        if descriptor is not None:
            self.model.save_endp(endpoint, properties, descriptor, expiry)
            self.expiry_of[descriptor] = expiry

    @rule(ttl=ttls, destination=labels, properties=properties, endpoint=labels)
    def save_dest(self, ttl: int, destination: bytes, properties: bytes, endpoint: bytes) -> None:
        """A binding keeps its place and gets the new time, or is new."""
        expiry = self.now + min(ttl, TTL_LIMIT)
        status = self.cache.save_dest(ttl, destination, properties, endpoint, 1)
        assert status is (Status.FAIL if self.locked else Status.OK)
        if not self.locked:
            self.model.bindings[ModelBinding(destination, endpoint, properties)] = expiry

    @rule(endpoint=labels)
    def find_endp(self, endpoint: bytes) -> None:
        """The oldest comes back, exactly as it was saved."""
        assert self.now
        delivery = self.cache.find_endp(endpoint, 1)
        self.check(delivery, None if self.locked else self.model.find_endp(endpoint), b"")

    @rule(destination=labels)
    def find_dest(self, destination: bytes) -> None:
        """The oldest of the first endpoint comes back, with the properties of its binding."""
        assert self.now
        delivery = self.cache.find_dest(destination, 1)
        expected = None if self.locked else self.model.find_dest(destination)
        self.check(delivery, *(expected or (None, b"")))

    def check(
        self, delivery: Delivery | None, expected: ModelConnection | None, properties: bytes
    ) -> None:
        """Compare what a find gave."""
        if delivery is None or expected is None:
            assert delivery is None
            assert expected is None
            return
        row = delivery.connection
        assert (row.endpoint, row.properties) == (expected.endpoint, expected.properties)
        assert (delivery.descriptor, row.expires_at) == (expected.descriptor, expected.expires_at)
        assert delivery.destination_properties == properties
        self.deliveries.append((delivery, expected))

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data())
    def delivered(self, data: st.DataObject) -> None:
        """What its finder has is closed."""
        delivery, _ = self.deliveries.pop(data.draw(st.integers(0, len(self.deliveries) - 1)))
        self.cache.delivered(delivery)
        assert delivery.descriptor not in self.rig.descriptors.open

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        """What its finder never got is back in its place, unless its time is over."""
        delivery, expected = self.deliveries.pop(
            data.draw(st.integers(0, len(self.deliveries) - 1))
        )
        self.cache.put_back(delivery)
        if expected.expires_at > self.now:
            self.model.put_back(expected)
        else:
            assert delivery.descriptor not in self.rig.descriptors.open

    @rule(seconds=ticks)
    def wait(self, seconds: float) -> None:
        """Time passes, and nobody sweeps yet."""
        self.rig.clock.time += seconds

    @rule()
    def suspend(self) -> None:
        """The machine sleeps for a night."""
        self.rig.clock.time += 8 * 3600

    @rule(seconds=steps)
    def set_wall_clock(self, seconds: float) -> None:
        """Somebody sets the clock, and nothing looks at it yet."""
        self.rig.clock.set_by += seconds

    @rule()
    def sweep(self) -> None:
        """What has expired is closed, and the next round is before the next expires."""
        self.rig.clock.time += GRAIN
        assert self.now
        due = self.rig.sweep()
        assert due <= self.model.next_expiry() + GRAIN
        kept = self.descriptors() - {each.descriptor for each in self.model.connections}
        assert all(expires_at > self.now - GRAIN for expires_at in self.expiries(kept))
        assert abs(self.rig.clock.offset - self.rig.clock.set_by) <= STEP
        if not self.locked:
            assert self.table("binding") == len(self.model.bindings)

    @precondition(lambda self: not self.locked)
    @rule()
    def commit(self) -> None:
        """A batch ends."""
        assert self.rig.batch.commit()

    @precondition(lambda self: self.path is None and not self.locked)
    @rule()
    def begin_lock(self) -> None:
        """Another program begins to write to the file."""
        assert self.rig.batch.commit()
        self.lock.enter_context(locked(self.rig.path))
        self.locked = True

    @precondition(lambda self: self.locked)
    @rule()
    def end_lock(self) -> None:
        """The other program is done, and the next commit catches up."""
        self.lock.close()
        self.locked = False
        assert self.rig.batch.commit()

    def descriptors(self) -> set[int]:
        """Return what the cache has parked."""
        return set(self.parked().values())

    def parked(self) -> dict[int, int]:
        """Return the descriptors that are parked, by the ids of their rows."""
        lent = {delivery.connection.id for delivery, _ in self.deliveries}
        return {row: descriptor for row, descriptor in self.cache.descriptors() if row not in lent}

    def expiries(self, descriptors: set[int]) -> list[float]:
        """Return when what these descriptors belong to expired."""
        return [self.expiry_of[descriptor] for descriptor in descriptors]

    def table(self, name: str) -> int:
        """Return how many rows a table has."""
        ((rows,),) = self.rig.opened.rows(f"SELECT count(*) FROM {name}")
        return int(rows)

    @invariant()
    def descriptors_are_where_they_belong(self) -> None:
        """Open is what is parked or in delivery, and nothing that can be found is closed."""
        lent = {delivery.descriptor for delivery, _ in self.deliveries}
        assert self.rig.descriptors.open == self.descriptors() | lent
        self.model.expire(self.rig.clock.time)
        assert {each.descriptor for each in self.model.connections} <= self.descriptors()

    @invariant()
    def rows_and_descriptors_match(self) -> None:
        """Each row of a connection has its descriptor, and each descriptor its row."""
        if not self.locked:
            rows = self.rig.opened.rows("SELECT id FROM connection")
            assert {row_id for (row_id,) in rows} == set(self.parked())

    @invariant()
    def stamps_are_of_one_scale(self) -> None:
        """Every live row has the time of its expiry, by the clock as it was set when last seen."""
        if self.locked:
            return
        offset, parked = self.rig.clock.offset, self.parked()
        for row_id, expires_at in self.rig.opened.rows("SELECT id, expires_at FROM connection"):
            assert expires_at - offset == self.expiry_of[parked[row_id]]
        bindings = "SELECT destination, endpoint, properties, expires_at FROM binding"
        stamps = {
            ModelBinding(destination, endpoint, properties): expires_at - offset
            for destination, endpoint, properties, expires_at in self.rig.opened.rows(bindings)
        }
        assert stamps.items() >= self.model.bindings.items()
        assert self.rig.opened.rows("SELECT id FROM event WHERE age < 0") == []


class FileMachine(Machine):
    """The same on a file, which another program locks now and then."""

    path = None


@pytest.mark.parametrize("machine", [Machine, FileMachine])
def test_the_cache_does_what_the_model_does(machine: type[Machine]) -> None:
    """Any sequence of operations has the answers, order, rows and descriptors of scache(8)."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=80,
            stateful_step_count=50,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def counters(rig: Rig) -> dict[str, int]:
    """Return what has been counted so far, after a commit."""
    assert rig.batch.commit()
    found = rig.opened.rows("SELECT name, value FROM counter WHERE value > 0")
    return {str(name, "ascii"): value for name, value in found}


def test_a_connection_is_found_until_the_moment_of_its_expiry(rig: Rig) -> None:
    """A millisecond before its expiry a connection is found, at its expiry it is not."""
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


def test_a_binding_saved_again_after_its_expiry_goes_to_the_end(rig: Rig) -> None:
    """A binding that has expired is new when it is saved again, though nobody swept it yet."""
    rig.bind(ttl=2, endpoint=b"first")
    rig.bind(ttl=9, endpoint=b"second")
    rig.clock.time += 2
    rig.bind(ttl=9, endpoint=b"first")
    first, second = rig.save(endpoint=b"first"), rig.save(endpoint=b"second")
    found = [rig.cache.find_dest(b"d", 1), rig.cache.find_dest(b"d", 1)]
    assert [delivery and delivery.descriptor for delivery in found] == [second, first]
    assert counters(rig)["bindings_expired"] == 1


def test_a_binding_saved_again_before_its_expiry_keeps_its_place(rig: Rig) -> None:
    """A refresh moves nothing but the expiry, and that to sooner as well."""
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


def test_a_longer_ttl_is_lowered_to_the_limit(rig: Rig) -> None:
    """No row lives longer than the limit, whatever was asked for, and the answer is yes."""
    assert rig.save(ttl=10**12)
    assert rig.bind(ttl=10**12) is Status.OK
    for table in ("connection", "binding"):
        expiries = rig.opened.rows(f"SELECT expires_at - saved_at FROM {table}")
        assert expiries == [(TTL_LIMIT,)]


def test_a_connection_put_back_keeps_its_id_its_place_and_its_expiry(rig: Rig) -> None:
    """What was never sent is as if it had never been taken."""
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


def test_a_connection_put_back_is_swept_in_time(rig: Rig) -> None:
    """The expiry of a connection that comes back is watched as if it had never gone."""
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


def test_a_connection_that_expired_on_its_way_is_closed_when_put_back(rig: Rig) -> None:
    """What comes back too late is closed and counted as expired."""
    rig.save(ttl=2)
    delivery = rig.cache.find_endp(b"e", 1)
    assert delivery is not None
    rig.clock.time += 2
    rig.cache.put_back(delivery)
    assert delivery.descriptor not in rig.descriptors.open
    assert rig.opened.rows("SELECT * FROM connection") == []
    assert counters(rig)["connections_expired"] == 1


def test_a_connection_whose_peer_has_gone_is_passed_over() -> None:
    """It is never found, though thousands hang up at once and it has not had its turn."""
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


def test_a_save_without_a_descriptor_is_refused(rig: Rig) -> None:
    """A client that sends no descriptor gets a no, and leaves no row."""
    assert rig.cache.save_endp(5, b"e", b"p", None, 1) is Status.FAIL
    assert rig.opened.rows("SELECT * FROM connection") == []
    assert counters(rig) == {"save_endp_fail": 1}


def test_a_save_that_is_refused_closes_the_descriptor(file_rig: Rig) -> None:
    """While the database is locked a save is answered no, and its descriptor is closed."""
    file_rig.batch.commit()
    with locked(file_rig.path):
        assert file_rig.save() is None
        assert file_rig.descriptors.open == set()
        assert file_rig.bind() is Status.FAIL
    assert counters(file_rig) == {"save_endp_fail": 1, "save_dest_fail": 1}


def test_expiry_goes_on_while_the_database_is_locked(file_rig: Rig) -> None:
    """Descriptors are closed in time while their rows have to wait, each written off once."""
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
    """Put a connection back while another program writes to the file."""
    rig.save(ttl=5)
    delivery = rig.cache.find_endp(b"e", 1)
    assert delivery is not None
    assert rig.batch.commit()
    with locked(rig.path):
        rig.cache.put_back(delivery)
        yield delivery


def test_a_connection_put_back_while_locked_is_closed_in_time(file_rig: Rig) -> None:
    """A connection whose row has to wait expires like any other."""
    with put_back_while_locked(file_rig):
        assert file_rig.sweep() <= NOW + 5 + GRAIN
        file_rig.clock.time += 5 + GRAIN
        file_rig.sweep()
        assert file_rig.descriptors.open == set()
    assert file_rig.batch.commit()
    assert read(file_rig.path, "SELECT * FROM connection") == []


def test_a_connection_put_back_while_locked_is_not_lost(file_rig: Rig) -> None:
    """Its row is back as soon as the database can be written, by itself."""
    with put_back_while_locked(file_rig) as delivery:
        assert file_rig.cache.find_endp(b"e", 1) is None
    assert file_rig.cache.find_endp(b"e", 1) == delivery


def test_the_hook_is_called_when_something_expires_earlier(rig: Rig) -> None:
    """Only what expires before the next round does calls for an earlier one."""
    woken: list[bool] = []
    rig.cache.deadline.on_earlier = lambda: woken.append(True)
    assert rig.cache.expire() == math.inf
    rig.save(ttl=5)
    assert woken == [True]
    rig.bind(ttl=6)
    assert woken == [True]
    rig.bind(ttl=3, destination=b"x")
    assert woken == [True, True]


def test_a_slice_at_a_time_is_cleared_away(rig: Rig) -> None:
    """One round of expiry does no more than a slice, and says when there is more."""
    for _ in range(5):
        rig.save(ttl=1)
    rig.clock.time += 1 + GRAIN
    left = []
    while rig.cache.expire() <= rig.clock.time:
        left.append(len(rig.descriptors.open))
    assert left == [3, 1]
    assert rig.descriptors.open == set()


def test_the_statistics_are_those_of_the_original(rig: Rig) -> None:
    """The lines name what scache(8) counts, truncate, and start over after each report."""
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


def test_peaks_count_what_is_there_at_a_save(rig: Rig) -> None:
    """What has gone by then is not part of a peak, and a new interval begins with what is left."""
    for _ in range(3):
        rig.save(ttl=2)
    rig.cache.statistics.report()
    rig.clock.time += 2 + GRAIN
    rig.sweep()
    rig.save(endpoint=b"f")
    (_, line) = rig.cache.statistics.report()
    assert line == "statistics: max simultaneous domains=0 addresses=1 connection=1"


def test_clients_and_requests_are_counted(rig: Rig) -> None:
    """Every request and every way out raises its counter, and rows name their client."""
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
        "save_endp_ok": 1,
    }
    assert rig.opened.rows("SELECT * FROM client") == [
        (client_id, 7, 8, 9, NOW, NOW + 1, b"program")
    ]


def test_bindings_of_an_earlier_run_serve_this_one(tmp_path: Path) -> None:
    """A binding that outlived the daemon leads to connections that are saved later."""
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
