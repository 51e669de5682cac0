"""Accounting invariants: each connection is live or has one close reason, and all is recorded.

The test keeps a ledger beside a cache under random requests, faults, crashes and restarts. After
each commit the database must equal the ledger in every column.
"""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from contextlib import ExitStack
from typing import Any, Self

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scache.cache.expiry import GRAIN
from scache.model import Connection, Delivery, Peer, Status
from scache.store import audit, event_writer
from scache.store.database import MEMORY
from scache.store.live_rows import Binding
from scache.vocabulary import MISS_COUNTERS
from tests.cache.ledger import Entry, Kept, Ledger
from tests.support.rig import TTL_LIMIT, Rig, rigged
from tests.support.store_fixture import NOW, locked, no_space, read

WAYS_OUT = ("found", "expired", "evicted", "hung_up", "purged", "lost")

labels = st.sampled_from([b"", b"a", b"\xff\n"])
ttls = st.integers(1, TTL_LIMIT + 2)
ticks = st.sampled_from([0.001, 0.001, 0.3, 1, 2])
limits = st.sampled_from([1000, 1000, 1000, 20, 3, 0])
numbers = st.integers(0, 5)

STEPS: dict[str, tuple[int, tuple[st.SearchStrategy[Any], ...]]] = {
    "save_endp": (24, (ttls, labels, numbers, st.sampled_from([True, True, True, False]))),
    "save_dest": (8, (ttls, labels, labels, numbers)),
    "find_endp": (12, (labels, numbers)),
    "find_dest": (12, (labels, numbers)),
    "delivered": (10, (numbers,)),
    "put_back": (4, (numbers,)),
    "malformed": (2, (st.sampled_from(["save_endp", "find_dest", "unknown"]), numbers)),
    "connect": (2, (st.integers(1, 1000),)),
    "disconnect": (2, (numbers,)),
    "wait": (4, (ticks,)),
    "sweep": (4, (st.sampled_from([GRAIN, 1, 5]),)),
    "commit": (5, ()),
    "begin_fault": (2, (st.booleans(),)),
    "end_fault": (2, ()),
    "restart": (2, (limits, ticks, st.booleans())),
}
"""Methods of `Accounts`: the weight of each, and its arguments."""

steps = st.sampled_from([name for name, (often, _) in STEPS.items() for _ in range(often)]).flatmap(
    lambda name: st.tuples(st.just(name), *STEPS[name][1])
)


class Accounts:
    """A cache and its ledger, with a method for each operation and fault."""

    def __init__(self, path: str, audit_rows: int) -> None:
        self.path = path
        self.in_file = path != MEMORY
        self.fault = ExitStack()
        self.locked = self.full = False
        self.time = NOW
        self.ledger = self.committed = Ledger()
        self.start(audit_rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.fault.close()
        self.run.close()

    def start(self, audit_rows: int) -> None:
        """Start the daemon's cache on the database."""
        self.audit_rows = audit_rows
        if not audit_rows:
            self.ledger.counters["runs_not_recorded"] += 1
        self.run = ExitStack()
        self.rig: Rig = self.run.enter_context(rigged(self.path, audit_rows, self.time))
        self.cache, self.batch = self.rig.cache, self.rig.batch
        self.deliveries: dict[int, Delivery] = {}
        self.descriptor_of: dict[int, int] = {}
        self.lookups: Counter[str] = Counter()
        self.connected: dict[int, Peer] = {}
        self.connect(1)
        self.commit()

    # The ledger

    @property
    def now(self) -> float:
        """The current time."""
        return self.rig.clock.time

    def record(self, entry: Entry) -> None:
        """Expect an event, unless the audit log is off."""
        if self.audit_rows:
            self.ledger.pending.append(entry)

    def removed(self, kind: str, row: Connection, client_id: int | None = None) -> None:
        """Expect the event and counter of a removed connection."""
        self.ledger.counters[f"connections_{kind}"] += 1
        age = self.now - row.saved_at
        entry = Entry(self.now, kind, None, None, row.endpoint, row.id, None, client_id, age=age)
        self.record(entry._replace(detailed=kind == "lost"))

    def binding_expired(self, row: Binding) -> None:
        """Remove an expired binding, and expect its event and counter."""
        del self.ledger.bindings[row.id]
        self.ledger.counters["bindings_expired"] += 1
        gone = Entry(self.now, "expired", None, row.destination, row.endpoint, binding_id=row.id)
        self.record(gone._replace(age=self.now - row.saved_at))

    def next_id(self) -> int:
        """Return the next id that the cache will use."""
        return self.rig.opened.database.ids.last + 1

    def client(self, number: int) -> int:
        """Return the id of a connected client."""
        return list(self.connected)[number % len(self.connected)]

    @property
    def refusing(self) -> bool:
        """True while the database refuses to grow."""
        return self.locked or self.batch.commit_failed

    # Requests of clients

    def connect(self, pid: int) -> None:
        """Connect a client; it is not recorded during a fault."""
        row_id, peer = self.next_id(), Peer(pid, pid + 1, pid + 2, b"p%d" % pid)
        refused = self.refusing
        assert self.cache.client_connected(peer) == row_id
        self.connected[row_id] = peer
        self.ledger.counters["clients_connected"] += 1
        if refused:
            self.ledger.counters["clients_not_recorded"] += 1
        else:
            self.ledger.clients[row_id] = peer

    def disconnect(self, number: int) -> None:
        """Disconnect a client that waits for no connection."""
        client_id = self.client(number)
        if len(self.connected) == 1 or client_id in {
            delivery.client_id for delivery in self.deliveries.values()
        }:
            return
        del self.connected[client_id]
        self.cache.client_disconnected(client_id)
        if client_id in self.ledger.clients:
            self.ledger.left[client_id] = self.now

    def save_endp(self, ttl: int, endpoint: bytes, number: int, with_descriptor: bool) -> None:
        """Save a connection, or expect a recorded refusal."""
        client_id, refused = self.client(number), self.refusing or not with_descriptor
        row_id, granted = self.next_id(), min(ttl, TTL_LIMIT)
        descriptor = self.rig.descriptors.new() if with_descriptor else None
        status = self.cache.save_endp(ttl, endpoint, b"p%d" % row_id, descriptor, client_id)
        assert status is (Status.FAIL if refused else Status.OK)
        if refused or descriptor is None:
            self.ledger.counters["save_endp_fail"] += 1
            refusal = Entry(self.now, "save_endp", 2, endpoint=endpoint, client_id=client_id)
            self.record(refusal._replace(detailed=True))
            return
        row = Connection(row_id, endpoint, b"p%d" % row_id, self.now, self.now + granted, client_id)
        self.ledger.live[row_id] = row
        self.descriptor_of[row_id] = descriptor
        self.ledger.counters["save_endp_ok"] += 1
        self.ledger.saved += 1
        entry = Entry(self.now, "save_endp", 0, None, endpoint, row_id, None, client_id, granted)
        self.record(entry)

    def save_dest(self, ttl: int, destination: bytes, endpoint: bytes, number: int) -> None:
        """Save a binding: a new one, a later expiry of the same one, or one that replaces it."""
        client_id, refused = self.client(number), self.refusing
        row_id, granted = self.next_id(), min(ttl, TTL_LIMIT)
        status = self.cache.save_dest(ttl, destination, b"q", endpoint, client_id)
        assert status is (Status.FAIL if refused else Status.OK)
        labels = (destination, endpoint)
        entry = Entry(self.now, "save_dest", 0, *labels, None, None, client_id, granted)
        if refused:
            self.ledger.counters["save_dest_fail"] += 1
            self.record(entry._replace(status=2, detailed=True))
            return
        expires_at = self.now + granted
        row = Binding(row_id, destination, endpoint, b"q", self.now, expires_at, client_id)
        for old in list(self.ledger.bindings.values()):
            if (old.destination, old.endpoint) == (destination, endpoint):
                if old.expires_at <= self.now:
                    self.binding_expired(old)
                else:
                    row = old._replace(expires_at=expires_at)
        self.ledger.bindings[row.id] = row
        self.ledger.counters["save_dest_ok"] += 1
        self.record(entry._replace(binding_id=row.id))

    def find_endp(self, endpoint: bytes, number: int) -> None:
        """Find the oldest connection of an endpoint, or expect a recorded miss."""
        client_id, expected = self.client(number), self.oldest(endpoint)
        delivery = self.cache.find_endp(endpoint, client_id)
        self.lookups["address_hits" if delivery else "address_misses"] += 1
        if delivery is None or expected is None:
            assert (delivery, expected) == (None, None)
            self.ledger.counters["find_endp_fail"] += 1
            miss = Entry(self.now, "find_endp", 2, endpoint=endpoint, client_id=client_id)
            self.record(miss._replace(detailed=True))
            return
        descriptor = self.descriptor_of[expected.id]
        assert delivery == Delivery(expected, descriptor, client_id, self.now)
        self.begin_delivery(delivery)

    def find_dest(self, destination: bytes, number: int) -> None:
        """Find the oldest connection of the first endpoint that has one, or expect a miss."""
        client_id, expected, binding = self.client(number), None, None
        for _, binding in sorted(self.ledger.bindings.items()):
            if binding.destination == destination and binding.expires_at > self.now:
                expected = self.oldest(binding.endpoint)
                if expected:
                    break
        delivery = self.cache.find_dest(destination, client_id)
        self.lookups["domain_hits" if delivery else "domain_misses"] += 1
        if delivery is None or expected is None:
            assert (delivery, expected) == (None, None)
            self.ledger.counters["find_dest_fail"] += 1
            miss = Entry(self.now, "find_dest", 2, destination, client_id=client_id)
            self.record(miss._replace(detailed=True))
            return
        assert binding is not None
        descriptor, led = self.descriptor_of[expected.id], (destination, b"q", binding.id)
        assert delivery == Delivery(expected, descriptor, client_id, self.now, *led)
        self.begin_delivery(delivery)

    def oldest(self, endpoint: bytes) -> Connection | None:
        """Return the connection of an endpoint that a find must return."""
        if self.locked:
            return None
        for _, row in sorted(self.ledger.live.items()):
            if row.endpoint == endpoint and row.expires_at > self.now:
                return row
        return None

    def begin_delivery(self, delivery: Delivery) -> None:
        """Move a connection from the live rows into delivery."""
        row = delivery.connection
        self.deliveries[row.id] = delivery
        self.ledger.in_delivery[row.id] = self.ledger.live.pop(row.id)

    def malformed(self, kind: str, number: int) -> None:
        """Record a malformed request."""
        client_id = self.client(number)
        self.cache.audit_log.request_malformed(kind, client_id)
        self.ledger.counters[f"{kind}_bad"] += 1
        self.record(Entry(self.now, kind, 1, client_id=client_id))

    def delivered(self, number: int) -> None:
        """Complete a delivery."""
        if not self.deliveries:
            return
        delivery, row = self.end_delivery(number)
        self.cache.delivered(delivery)
        self.hit(delivery)
        self.removed("found", row, delivery.client_id)

    def put_back(self, number: int) -> None:
        """Cancel a delivery; the connection is parked again, unless it has expired."""
        if not self.deliveries:
            return
        delivery, row = self.end_delivery(number)
        self.cache.put_back(delivery)
        self.hit(delivery)
        if row.expires_at <= self.now:
            self.removed("expired", row)
            return
        self.ledger.live[row.id] = row
        entry = Entry(self.now, "put_back", None, None, row.endpoint, row.id)
        self.record(entry._replace(client_id=delivery.client_id, age=self.now - row.saved_at))

    def end_delivery(self, number: int) -> tuple[Delivery, Connection]:
        """Remove one of the deliveries from the ledger and return it."""
        delivery = self.deliveries.pop(list(self.deliveries)[number % len(self.deliveries)])
        return delivery, self.ledger.in_delivery.pop(delivery.connection.id)

    def hit(self, delivery: Delivery) -> None:
        """Expect the hit of a delivery, which is recorded when the delivery has ended."""
        row = delivery.connection
        kind = "find_endp" if delivery.destination is None else "find_dest"
        self.ledger.counters[f"{kind}_ok"] += 1
        entry = Entry(delivery.found_at, kind, 0, delivery.destination, row.endpoint, row.id)
        entry = entry._replace(binding_id=delivery.binding_id, client_id=delivery.client_id)
        self.record(entry._replace(age=delivery.found_at - row.saved_at))

    # Time

    def wait(self, seconds: float) -> None:
        """Let time pass without removing expired rows."""
        self.rig.clock.time += seconds

    def sweep(self, seconds: float) -> None:
        """Remove expired rows; all others stay."""
        self.rig.clock.time += seconds
        self.rig.sweep()
        kept = dict(self.cache.descriptors())
        for row in list(self.ledger.live.values()):
            if row.id not in kept:
                assert row.expires_at <= self.now
                del self.ledger.live[row.id]
                self.removed("expired", row)
            else:
                assert row.expires_at > self.now - GRAIN
        for binding in list(self.ledger.bindings.values()):
            if binding.expires_at <= self.now and not self.locked:
                self.binding_expired(binding)

    # Commits, faults and restarts

    def commit(self) -> None:
        """Commit; readers see the whole batch if that succeeds, otherwise nothing of it."""
        if not self.batch.commit():
            assert self.locked or self.full
            assert self.audit_log() == self.committed.kept
            return
        self.check_audit_log()
        self.check_rows()
        self.committed = copy.deepcopy(self.ledger)

    def begin_fault(self, lock: bool) -> None:
        """Lock the database as another program does, or else fill the disk."""
        if self.locked or self.full or not self.in_file:
            return
        if lock:
            self.commit()
            self.fault.enter_context(locked(self.path))
            self.locked = True
        else:
            self.fault.enter_context(no_space())
            self.full = True

    def end_fault(self) -> None:
        """End the fault; the next commit writes everything."""
        self.fault.close()
        self.locked = self.full = False
        self.commit()

    def restart(self, audit_rows: int, seconds: float, crash: bool) -> None:
        """Stop or kill the daemon, and start it again."""
        if not self.in_file:
            return
        self.fault.close()
        self.locked = self.full = False
        if crash:
            self.ledger = copy.deepcopy(self.committed)
            self.start_again(audit_rows, seconds)
            return
        for number in range(len(self.deliveries)):
            self.put_back(number)
        self.rig.opened.run(self.rig.opened.database.stop(self.now))
        self.lose()
        self.check_audit_log()
        self.start_again(audit_rows, seconds)

    def start_again(self, audit_rows: int, seconds: float) -> None:
        """Start another run on the same file."""
        self.time = self.now + seconds
        self.rig.clock.time = self.time
        self.run.close()
        self.audit_rows = audit_rows
        self.lose()
        for binding in list(self.ledger.bindings.values()):
            if binding.expires_at <= self.now:
                self.binding_expired(binding)
        self.start(audit_rows)

    def lose(self) -> None:
        """Expect that all connections and clients end with the daemon."""
        ledger = self.ledger
        saves = [entry for _, entry in ledger.kept if entry.kind == "save_endp"]
        recorded = {entry.connection_id for entry in saves}
        for row in ledger.live.values():
            self.removed("lost", row)
        for row in ledger.in_delivery.values():
            if row.id in recorded:
                self.removed("lost", row)
            else:
                ledger.counters["connections_lost"] += 1
        ledger.live, ledger.in_delivery = {}, {}
        for client_id in ledger.clients:
            ledger.left.setdefault(client_id, self.now)

    # Invariants

    def select(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows that other processes see, or those in memory."""
        return read(self.path, sql) if self.in_file else self.rig.opened.rows(sql)

    def audit_log(self) -> list[Kept]:
        """Return the audit log of the database."""
        rows = self.select("SELECT * FROM event ORDER BY id")
        return [
            (row_id, Entry(at, kind.decode(), *rest)._replace(detailed=detail is not None))
            for row_id, at, kind, *rest, detail in rows
        ]

    def check_audit_log(self) -> None:
        """Check that the expected events were added, and the oldest above the limit trimmed."""
        ledger, actual = self.ledger, self.audit_log()
        latest = ledger.kept[-1][0] if ledger.kept else 0
        old = [each for each in actual if each[0] <= latest]
        new = Counter(entry for _, entry in actual[len(old) :])
        assert old == ledger.kept[len(ledger.kept) - len(old) :]
        missing = Counter(ledger.pending) - new
        assert not new - Counter(ledger.pending)
        assert not (old and missing)
        everything = len(ledger.kept) + len(ledger.pending)
        assert len(actual) == (min(self.audit_rows, everything) if self.audit_rows else everything)
        ledger.trimmed += everything - len(actual)
        counted = self.select("SELECT value FROM counter WHERE name = 'events_trimmed'")
        assert counted == ([(ledger.trimmed,)] if ledger.trimmed else [])
        ledger.kept, ledger.pending = actual, []

    def check_rows(self) -> None:
        """Check that the live rows are those of the ledger."""
        ledger = self.ledger
        rows = self.select("SELECT * FROM connection ORDER BY id")
        assert [Connection(*row) for row in rows] == [row for _, row in sorted(ledger.live.items())]
        rows = self.select("SELECT * FROM binding ORDER BY id")
        bindings = [row for _, row in sorted(ledger.bindings.items())]
        assert [Binding(*row) for row in rows] == bindings
        rows = self.select("SELECT id, pid, uid, gid, program, disconnected_at FROM client")
        assert {row_id: (Peer(*peer), left) for row_id, *peer, left in rows} == {
            row_id: (peer, ledger.left.get(row_id)) for row_id, peer in ledger.clients.items()
        }
        assert self.cache.statistics.size == ledger.size

    def check_descriptors(self) -> None:
        """Check that the open descriptors are those of live connections and of deliveries."""
        held = dict(self.cache.descriptors())
        rows = [*self.ledger.live, *self.ledger.in_delivery]
        assert held == {row: self.descriptor_of[row] for row in rows}
        assert self.rig.descriptors.open == set(held.values())

    def check_counters(self) -> None:
        """Check that each request and close reason is counted once.

        A commit that failed has moved counts out of `Batch.counts`, so they are checked later.
        """
        if self.batch.commit_failed:
            return
        total = Counter(dict(self.rig.opened.rows("SELECT CAST(name AS BLOB), value FROM counter")))
        counted = Counter({name.decode(): value for name, value in total.items()})
        counted += self.batch.counts
        del counted["events_trimmed"]  # see `check_audit_log`
        del counted["finds_continued"]  # see test_miss_reasons
        reasons = sum(counted.pop(name, 0) for name in MISS_COUNTERS.values())
        assert reasons == counted["find_endp_fail"] + counted["find_dest_fail"]
        assert counted == +self.ledger.counters
        left = sum(counted[f"connections_{way}"] for way in WAYS_OUT)
        here = len(self.ledger.live) + len(self.ledger.in_delivery)
        assert counted["save_endp_ok"] == left + here
        statistics = self.cache.statistics
        for name in ("address_hits", "address_misses", "domain_hits", "domain_misses"):
            assert getattr(statistics, name) == self.lookups[name]


@pytest.mark.parametrize(
    ("in_file", "examples"),
    [(False, 80), pytest.param(True, 50, marks=pytest.mark.slow)],
    ids=["memory", "file"],
)
def test_accounting_invariants_hold_after_any_history(in_file: bool, examples: int) -> None:
    """Compare live rows, descriptors, counters and audit log with the ledger at each step."""

    @settings(max_examples=examples, database=None, suppress_health_check=list(HealthCheck))
    @example(  # only a counter is pending while the disk is full
        history=[("find_endp", b"", 0), ("begin_fault", False), ("commit",), ("end_fault",)],
        audit_rows=0,
    )
    @given(history=st.lists(steps, min_size=30, max_size=150), audit_rows=limits)
    def check(history: list[tuple[Any, ...]], audit_rows: int) -> None:
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
            for module in (audit, event_writer):
                patch.setattr(module, "ROWS_AT_ONCE", 2)
            with Accounts(f"{directory}/cache.db" if in_file else MEMORY, audit_rows) as accounts:
                for name, *arguments in history:
                    getattr(accounts, name)(*arguments)
                    accounts.check_descriptors()
                    accounts.check_counters()
                accounts.end_fault()

    check()
