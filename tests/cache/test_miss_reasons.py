"""The reason of each miss, against a model: any close reason, in any order, in both databases."""

from __future__ import annotations

import re
import select
import socket
import tempfile
from collections import Counter
from contextlib import ExitStack

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)

from scache.cache import Cache
from scache.cache.limits import Limits
from scache.model import Delivery, Status
from scache.store.database import MEMORY
from scache.vocabulary import MISS_COUNTERS, MISS_REASONS
from tests.support.machines import run_machine
from tests.support.store_fixture import Opened, locked

TICK = 2**-10
"""Seconds between two operations, so that no two endings have the same time."""

LIMITS = Limits(
    ttl=10, connections=4, connections_per_endpoint=2, bindings_per_destination=2, bindings=3
)

labels = st.sampled_from([b"a", b"b\n", b"\xff"])
"""Endpoints and destinations have the same labels, because they must not be taken for another."""
ttls = st.sampled_from([1, 2, 5])
clients = st.sampled_from([1, 2])


class Kept:
    """A connection of the model."""

    def __init__(self, endpoint: bytes, expires_at: float, peer: socket.socket) -> None:
        self.endpoint = endpoint
        self.expires_at = expires_at
        self.peer = peer


class Reasons(RuleBasedStateMachine):
    """A cache, and a list of all that has ended, from which the model finds the reason."""

    path: str | None = MEMORY
    audit_rows = 1000

    @initialize()
    def open(self) -> None:
        """Open an empty cache of real sockets."""
        self.stack = ExitStack()
        directory = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.file = self.path or f"{directory}/cache.db"
        opened = Opened(self.file, audit_rows=self.audit_rows)
        self.opened = self.stack.enter_context(opened)
        self.clock, self.batch = opened.clock, opened.database.batch
        self.cache = Cache(opened.database, self.clock, LIMITS)
        self.stack.callback(self.cache.close)
        self.kept: dict[int, Kept] = {}
        """The parked connections, by id."""
        self.deliveries: list[tuple[Delivery, Kept]] = []
        self.bindings: dict[tuple[bytes, bytes], float] = {}
        """Expiry times by destination and endpoint, in the order of their first save."""
        self.ended: list[tuple[float, str, str, bytes]] = []
        """Time, reason, column and label of all that has ended."""
        self.misses: Counter[str] = Counter()
        self.details: list[tuple[str, float | None]] = []
        """Reasons of all misses, and the seconds since what ended."""
        self.continued = 0
        self.asking: set[int] = set()
        self.lock = ExitStack()
        self.locked = False

    def teardown(self) -> None:
        """Compare the audit log and the counters, and close everything."""
        if not hasattr(self, "stack"):
            return
        self.lock.close()
        with self.stack:
            assert self.batch.commit()
            self.check_counters()
            self.check_events()

    # The model

    def tick(self) -> float:
        """Let a little time pass; return the time."""
        self.clock.time += TICK
        return self.clock.time

    def left(self, reason: str) -> None:
        """Record the reason for which connections are no longer parked."""
        parked = {row_id for row_id, _ in self.cache.descriptors()}
        for row_id in self.kept.keys() - parked:
            gone = self.kept.pop(row_id)
            self.end(gone, reason)

    def end(self, gone: Kept, reason: str) -> None:
        """Record how a connection ended; one that has expired ended at that time."""
        at = gone.expires_at if reason == "expired" else self.clock.time
        self.ended.append((at, reason, "endpoint", gone.endpoint))
        gone.peer.close()

    def ends_of(self, column: str, label: bytes) -> list[tuple[float, str]]:
        """Return what has ended of a label, also what has expired and is still there."""
        now = self.clock.time
        ends = [(at, why) for at, why, of, ended in self.ended if (of, ended) == (column, label)]
        if column == "endpoint":
            expiries = [each.expires_at for each in self.kept.values() if each.endpoint == label]
        else:
            expiries = [
                at for (destination, _), at in self.bindings.items() if destination == label
            ]
        return ends + [(at, "expired") for at in expiries if at <= now]

    def missed(self, column: str, label: bytes, client: int) -> None:
        """Expect a miss, for the reason that ended last."""
        ends: list[tuple[float, str]] = []
        if column == "destination":
            for (destination, endpoint), expires_at in self.bindings.items():
                if destination == label and expires_at > self.clock.time:
                    ends += self.ends_of("endpoint", endpoint)
        at, reason = max(ends or self.ends_of(column, label), default=(None, "unknown"))
        if self.locked:
            at, reason = None, "fault"
        if column == "destination":
            self.asking.add(client)
        elif client in self.asking:
            self.continued += 1
        self.expect(reason, None if at is None else self.clock.time - at)

    def expect(self, reason: str, since: float | None) -> None:
        """Expect that a miss was counted for this reason."""
        self.misses[reason] += 1
        self.details.append((reason, since))
        self.check_counters()

    def check_counters(self) -> None:
        """Compare the counters with the misses, those of the open batch included."""
        rows = self.opened.rows("SELECT CAST(name AS BLOB), value FROM counter")
        counted = Counter({name.decode(): value for name, value in rows}) + self.batch.counts
        found = {why: counted[MISS_COUNTERS[why]] for why in MISS_REASONS}
        assert found == {why: self.misses[why] for why in MISS_REASONS}
        assert counted["finds_continued"] == self.continued

    def check_events(self) -> None:
        """Compare the details in the audit log with the misses."""
        sql = """
            SELECT detail FROM event WHERE kind IN ('find_endp', 'find_dest') AND status = 2
            ORDER BY at, id
        """
        details = [detail.decode() for (detail,) in self.opened.rows(sql)]
        assert len(details) == (len(self.details) if self.audit_rows else 0)
        for detail, (reason, since) in zip(details, self.details, strict=False):
            word, separator, rest = re.fullmatch(r"(\w+)(: | |)(.*)", detail).groups()  # type: ignore[union-attr]
            assert word == reason
            if since is None:
                assert (separator, bool(rest)) == ((": ", True) if word == "fault" else ("", False))
            else:
                assert float(rest.removesuffix(" s ago")) == pytest.approx(since, abs=0.051)

    # Requests

    @rule(ttl=ttls, endpoint=labels, client=clients, sends=st.sampled_from([True] * 4 + [False]))
    def save_endp(self, ttl: int, endpoint: bytes, client: int, sends: bool) -> None:
        """Save a connection, which may evict another one; or have it refused."""
        now = self.tick()
        self.asking.discard(client)
        ours, peer = socket.socketpair()
        self.stack.callback(peer.close)
        with ours:
            descriptor = ours.detach() if sends else None
        before = {row_id for row_id, _ in self.cache.descriptors()}
        status = self.cache.save_endp(ttl, endpoint, b"", descriptor, client)
        self.left("limit")
        if status is Status.FAIL:
            self.ended.append((now, "refused", "endpoint", endpoint))
            return
        ((row_id, _),) = (each for each in self.cache.descriptors() if each[0] not in before)
        self.kept[row_id] = Kept(endpoint, now + ttl, peer)

    @rule(ttl=ttls, destination=labels, endpoint=labels, client=clients)
    def save_dest(self, ttl: int, destination: bytes, endpoint: bytes, client: int) -> None:
        """Save a binding, which may replace an expired one; or have it refused."""
        now = self.tick()
        self.asking.discard(client)
        status = self.cache.save_dest(ttl, destination, b"", endpoint, client)
        if status is Status.FAIL:
            self.ended.append((now, "refused", "destination", destination))
            return
        before = self.bindings.get((destination, endpoint))
        if before is not None and before <= now:
            self.ended.append((before, "expired", "destination", destination))
        self.bindings[destination, endpoint] = now + ttl

    @rule(label=labels, client=clients)
    def find_endp(self, label: bytes, client: int) -> None:
        """Find a connection of an endpoint."""
        self.tick()
        self.found(self.cache.find_endp(label, client), "endpoint", label, client)

    @rule(label=labels, client=clients)
    def find_dest(self, label: bytes, client: int) -> None:
        """Find a connection for a destination."""
        self.tick()
        self.found(self.cache.find_dest(label, client), "destination", label, client)

    def found(self, delivery: Delivery | None, column: str, label: bytes, client: int) -> None:
        """Begin a delivery, or expect a miss; dead connections were closed before."""
        self.left("hung_up")
        if delivery is None:
            self.missed(column, label, client)
            return
        if client in self.asking:
            self.asking.remove(client)
            self.continued += column == "endpoint"
        kept = self.kept.pop(delivery.connection.id)
        self.ended.append((self.clock.time, "none_left", "endpoint", kept.endpoint))
        self.deliveries.append((delivery, kept))

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data(), how=st.sampled_from(["delivered", "put_back", "deny"]))
    def end_delivery(self, data: st.DataObject, how: str) -> None:
        """Complete a delivery, cancel it, or deny it, which is a miss of its finder."""
        delivery, kept = self.deliveries.pop(
            data.draw(st.integers(0, len(self.deliveries) - 1), label="delivery")
        )
        now = self.tick()
        if how == "delivered":
            self.cache.delivered(delivery)
            kept.peer.close()
            return
        if how == "put_back":
            self.cache.put_back(delivery)
        else:
            self.cache.deny(delivery, "descriptor not sent: out of memory")
            if delivery.destination is not None:
                self.asking.add(delivery.client_id)
            elif delivery.client_id in self.asking:
                self.continued += 1
            self.expect("fault", None)
        if kept.expires_at > now:
            self.kept[delivery.connection.id] = kept
        else:
            self.end(kept, "expired")

    # What ends without a request of a client

    @rule(seconds=st.sampled_from([0.25, 1, 3]))
    def wait(self, seconds: float) -> None:
        """Let time pass without removing expired rows."""
        self.clock.time += seconds

    @rule()
    def sweep(self) -> None:
        """Remove expired rows."""
        now = self.tick() + 0.02
        self.clock.time = now
        while self.cache.expire() <= now:
            pass
        self.left("expired")
        if not self.locked:
            for (destination, endpoint), at in list(self.bindings.items()):
                if at <= now:
                    del self.bindings[destination, endpoint]
                    self.ended.append((at, "expired", "destination", destination))

    @rule(endpoint=labels, noticed=st.booleans())
    def hang_up(self, endpoint: bytes, noticed: bool) -> None:
        """Let the peers of an endpoint hang up; the daemon notices now, or when it finds them."""
        for each in self.kept.values():
            if each.endpoint == endpoint:
                each.peer.close()
        if noticed:
            self.tick()
            while self.cache.watch():
                pass
            while select.select([self.cache.hang_ups()], [], [], 0)[0]:
                self.cache.close_hung_up()
            self.left("hung_up")

    @rule(label=labels, limit=st.sampled_from([1, 9]))
    def purge_endp(self, label: bytes, limit: int) -> None:
        """Purge connections of an endpoint."""
        self.tick()
        self.cache.purge_endp(label, limit, 3)
        self.left("purged")

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def purge_id(self, data: st.DataObject) -> None:
        """Purge a connection."""
        self.tick()
        self.cache.purge_id(data.draw(st.sampled_from(sorted(self.kept)), label="id"), 3)
        self.left("purged")

    @rule(label=labels)
    def purge_dest(self, label: bytes) -> None:
        """Purge the bindings of a destination."""
        now = self.tick()
        if self.cache.purge_dest(label, 9, 3) is not None:
            for destination, endpoint in list(self.bindings):
                if destination == label:
                    del self.bindings[destination, endpoint]
                    self.ended.append((now, "purged", "destination", destination))

    # The database

    @precondition(lambda self: not self.locked)
    @rule()
    def commit(self) -> None:
        """Commit the batch."""
        assert self.batch.commit()

    @precondition(lambda self: self.path is None and not self.locked)
    @rule()
    def begin_lock(self) -> None:
        """Lock the database, as another program does that writes to it."""
        assert self.batch.commit()
        self.lock.enter_context(locked(self.file))
        self.locked = True

    @precondition(lambda self: self.locked)
    @rule()
    def end_lock(self) -> None:
        """Unlock the database."""
        self.lock.close()
        self.locked = False
        assert self.batch.commit()


class InFile(Reasons):
    """The same machine on a file, which another program locks at times."""

    path = None


class WithoutAuditLog(Reasons):
    """The same machine without an audit log."""

    audit_rows = 0


@pytest.mark.parametrize(
    ("machine", "examples"), [(Reasons, 120), (InFile, 60), (WithoutAuditLog, 40)]
)
def test_miss_has_the_reason_of_the_model(machine: type[Reasons], examples: int) -> None:
    """Compare counters at each miss, and the audit log at the end."""
    run_machine(machine, examples)
