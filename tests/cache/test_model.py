"""The cache against a model of scache(8): any sequence of operations has the same results."""

from __future__ import annotations

import math
import tempfile
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from scache.cache.expiry import GRAIN
from scache.clock import STEP
from scache.model import Delivery, Status
from scache.store.database import MEMORY
from tests.support.machines import run_machine
from tests.support.rig import TTL_LIMIT, rigged
from tests.support.store_fixture import locked


class ModelConnection(NamedTuple):
    """A connection of the model."""

    endpoint: bytes
    properties: bytes
    descriptor: int
    age: int
    expires_at: float


class ModelBinding(NamedTuple):
    """A binding of the model."""

    destination: bytes
    endpoint: bytes
    properties: bytes


class Model:
    """The semantics of scache(8) with two ordered collections."""

    def __init__(self) -> None:
        self.connections: list[ModelConnection] = []
        self.bindings: dict[ModelBinding, float] = {}
        self.saved = 0

    def expire(self, now: float) -> None:
        """Remove expired connections and bindings."""
        self.connections = [each for each in self.connections if each.expires_at > now]
        self.bindings = {each: expiry for each, expiry in self.bindings.items() if expiry > now}

    def save_endp(self, endpoint: bytes, properties: bytes, descriptor: int, expiry: float) -> None:
        """Add a connection; equal ones are not merged."""
        self.saved += 1
        saved = ModelConnection(endpoint, properties, descriptor, self.saved, expiry)
        self.connections.append(saved)

    def find_endp(self, endpoint: bytes) -> ModelConnection | None:
        """Take the oldest connection of an endpoint."""
        for each in self.connections:
            if each.endpoint == endpoint:
                self.connections.remove(each)
                return each
        return None

    def find_dest(self, destination: bytes) -> tuple[ModelConnection, bytes] | None:
        """Take the oldest connection of the first endpoint that has one."""
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
        """Return the time of the next expiry."""
        expiries = [each.expires_at for each in self.connections]
        return min([*expiries, *self.bindings.values()], default=math.inf)


labels = st.sampled_from([b"", b"a", b"a\n", b"\xff"])
properties = st.sampled_from([b"", b"p\n\xfe"])
ttls = st.integers(1, TTL_LIMIT + 2)
ticks = st.sampled_from([0.001, 0.5, 1, 1, 2, 5])
steps = st.sampled_from([-864_000, -3600, -2, -0.75, 0.75, 2, 3600, 864_000])
"""Seconds by which the wall clock is set; sums are exact in floating point."""


class Machine(RuleBasedStateMachine):
    """A cache and a model to which the same operations are applied, in any order."""

    path: str | None = MEMORY

    @initialize()
    def open(self) -> None:
        """Open an empty cache."""
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
        """Close the cache; the rig checks that no descriptor is left open."""
        if hasattr(self, "stack"):
            self.lock.close()
            self.stack.close()

    @property
    def now(self) -> float:
        """The current time, after expiring the connections and bindings of the model."""
        self.model.expire(self.rig.clock.time)
        return self.rig.clock.time

    @rule(ttl=ttls, endpoint=labels, properties=properties)
    def save_endp(self, ttl: int, endpoint: bytes, properties: bytes) -> None:
        """Save a connection; it is refused only while the database is locked."""
        expiry = self.now + min(ttl, TTL_LIMIT)
        descriptor = self.rig.save(ttl, endpoint, properties)
        assert (descriptor is None) == self.locked
        if descriptor is not None:
            self.model.save_endp(endpoint, properties, descriptor, expiry)
            self.expiry_of[descriptor] = expiry

    @rule(ttl=ttls, destination=labels, properties=properties, endpoint=labels)
    def save_dest(self, ttl: int, destination: bytes, properties: bytes, endpoint: bytes) -> None:
        """Save a binding; the same one keeps its place and gets the new expiry time."""
        expiry = self.now + min(ttl, TTL_LIMIT)
        status = self.cache.save_dest(ttl, destination, properties, endpoint, 1)
        assert status is (Status.FAIL if self.locked else Status.OK)
        if not self.locked:
            self.model.bindings[ModelBinding(destination, endpoint, properties)] = expiry

    @rule(endpoint=labels)
    def find_endp(self, endpoint: bytes) -> None:
        """Find the oldest connection of an endpoint, as it was saved."""
        assert self.now
        delivery = self.cache.find_endp(endpoint, 1)
        self.check(delivery, None if self.locked else self.model.find_endp(endpoint), b"")

    @rule(destination=labels)
    def find_dest(self, destination: bytes) -> None:
        """Find the oldest connection of the first endpoint, with the properties of its binding."""
        assert self.now
        delivery = self.cache.find_dest(destination, 1)
        expected = None if self.locked else self.model.find_dest(destination)
        self.check(delivery, *(expected or (None, b"")))

    def check(
        self, delivery: Delivery | None, expected: ModelConnection | None, properties: bytes
    ) -> None:
        """Compare the result of a find with that of the model."""
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
        """Complete a delivery, which closes the descriptor."""
        delivery, _ = self.deliveries.pop(data.draw(st.integers(0, len(self.deliveries) - 1)))
        self.cache.delivered(delivery)
        assert delivery.descriptor not in self.rig.descriptors.open

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        """Cancel a delivery; the connection is back in its place, unless it has expired."""
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
        """Let time pass without removing expired rows."""
        self.rig.clock.time += seconds

    @rule()
    def suspend(self) -> None:
        """Let the machine sleep for eight hours."""
        self.rig.clock.time += 8 * 3600

    @rule(seconds=steps)
    def set_wall_clock(self, seconds: float) -> None:
        """Set the wall clock; the cache has not noticed it yet."""
        self.rig.clock.set_by += seconds

    @rule()
    def sweep(self) -> None:
        """Remove expired rows; the next round is due no later than the next expiry."""
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
        """Commit the batch."""
        assert self.rig.batch.commit()

    @precondition(lambda self: self.path is None and not self.locked)
    @rule()
    def begin_lock(self) -> None:
        """Lock the database, as another program does that writes to it."""
        assert self.rig.batch.commit()
        self.lock.enter_context(locked(self.rig.path))
        self.locked = True

    @precondition(lambda self: self.locked)
    @rule()
    def end_lock(self) -> None:
        """Unlock the database; the next commit writes everything."""
        self.lock.close()
        self.locked = False
        assert self.rig.batch.commit()

    def descriptors(self) -> set[int]:
        """Return the parked descriptors."""
        return set(self.parked().values())

    def parked(self) -> dict[int, int]:
        """Return the parked descriptors by row id."""
        in_delivery = {delivery.connection.id for delivery, _ in self.deliveries}
        return {
            row: descriptor
            for row, descriptor in self.cache.descriptors()
            if row not in in_delivery
        }

    def expiries(self, descriptors: set[int]) -> list[float]:
        """Return the expiry times of the connections of these descriptors."""
        return [self.expiry_of[descriptor] for descriptor in descriptors]

    def table(self, name: str) -> int:
        """Return the number of rows of a table."""
        ((rows,),) = self.rig.opened.rows(f"SELECT count(*) FROM {name}")
        return int(rows)

    @invariant()
    def open_descriptors_are_parked_or_in_delivery(self) -> None:
        """Check that only these are open, and that those of the model are parked."""
        in_delivery = {delivery.descriptor for delivery, _ in self.deliveries}
        assert self.rig.descriptors.open == self.descriptors() | in_delivery
        self.model.expire(self.rig.clock.time)
        assert {each.descriptor for each in self.model.connections} <= self.descriptors()

    @invariant()
    def rows_and_descriptors_match(self) -> None:
        """Check that each row of a connection has a descriptor, and the reverse."""
        if not self.locked:
            rows = self.rig.opened.rows("SELECT id FROM connection")
            assert {row_id for (row_id,) in rows} == set(self.parked())

    @invariant()
    def stamps_follow_the_wall_clock(self) -> None:
        """Check the expiry time of each live row, by the offset of the clock at the last round."""
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
    """The same machine on a file, which another program locks at times."""

    path = None


@pytest.mark.parametrize(("machine", "examples"), [(Machine, 80), (FileMachine, 40)])
def test_cache_behaves_as_the_model(machine: type[Machine], examples: int) -> None:
    """Compare replies, order, rows and descriptors after any sequence of operations."""
    run_machine(machine, examples)
