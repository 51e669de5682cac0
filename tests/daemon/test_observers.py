"""The requests ``stats`` and ``follow``, and the conversations that send nothing else."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scache import Client, Refused
from scache.daemon.admission import MAX_OBSERVERS
from scache.protocol.observation import Event, decode_observation
from scache.vocabulary import COUNTERS
from tests.support.daemon import Daemon
from tests.support.dialogue import eventually
from tests.support.snapshots import snapshot
from tests.support.wire import Wire, encode

HELLO = encode([(b"request", b"hello"), (b"features", b"follow stats")])
STATS = encode([(b"request", b"stats")])
REFUSED = (b"status", b"2")


def follow(**wanted: bytes) -> bytes:
    """Return the request to follow these events."""
    names = ("kind", "status", "endpoint", "destination")
    fields = [(name.encode(), wanted.get(name, b"")) for name in names]
    return encode([(b"request", b"follow"), *fields])


@contextmanager
def observing(path: Path, request: bytes) -> Iterator[Wire]:
    """Yield a conversation that has sent this request, and not read the reply."""
    with Wire(path) as wire:
        wire.announcement()
        wire.send(HELLO)
        wire.receive_message()
        wire.send(request)
        yield wire


def cycle(client: Client, endpoint: bytes = b"e") -> None:
    """Save a connection, find it, and miss one."""
    with socket.socket() as saved:
        assert client.save_endp(60, endpoint, "", saved)
    found = client.find_endp(endpoint)
    assert found is not None
    found.close()
    assert client.find_endp(endpoint) is None


def event_of(wire: Wire) -> Event:
    """Receive one event."""
    event = decode_observation(wire.receive_message())
    assert isinstance(event, Event)
    return event


def test_stats_has_every_counter_and_the_gauges(daemon: Daemon) -> None:
    """A counter is exact before it is written, also one of this moment."""
    with Client(daemon.path) as client, Client(daemon.path) as observer:
        cycle(client)
        figures = observer.stats()
        assert set(figures["counters"]) == set(COUNTERS)
        assert figures["counters"]["find_endp_fail"] == {"total": 1, "since_start": 1}
        assert figures["pid"] == daemon.pid
        assert figures["gauges"]["clients"] == 1
        assert figures["gauges"]["observers"] == 1
        assert figures["limits"]["clients"]["used"] == 1


def test_total_of_a_counter_persists_in_a_file(path: Path, file: Path) -> None:
    """The part since the start begins anew."""
    for total in (1, 2):
        with Daemon(path, database=file) as daemon, Client(path) as client:
            cycle(client)
            count = client.stats()["counters"]["find_endp_ok"]
            assert count == {"total": total, "since_start": 1}
            assert daemon.terminate() == 0


def test_observers_are_not_recorded(daemon: Daemon) -> None:
    """They leave no row, no event and no count."""
    for _ in range(3):
        with Client(daemon.path) as observer:
            observer.stats()
            observer.ping()
    with observing(daemon.path, follow()) as follower:
        assert follower.receive_message() == [(b"status", b"0")]
    with Client(daemon.path) as client:
        assert snapshot(client, "SELECT count(*) FROM client") == [(1,)]
        assert snapshot(client, "SELECT count(*) FROM event WHERE kind <> 'snapshot'") == [(0,)]
        assert client.stats()["counters"]["clients_connected"]["total"] == 1


def test_observers_take_no_place_of_a_client(path: Path) -> None:
    """A client is served although an observer connected before it."""
    with Daemon(path, "--max-clients", "1"), Client(path) as observer, Client(path) as client:
        observer.stats()
        assert client.save_dest(60, "d", "", "e")
        assert observer.stats()["counters"]["limit_clients"]["total"] == 0
        assert not observer.save_dest(60, "d", "", "e")  # it becomes a client


def test_observers_hold_off_no_idle_exit(path: Path) -> None:
    """The daemon ends while they are connected."""
    with Daemon(path, "--max-idle", "1") as daemon, observing(path, follow()) as follower:
        assert follower.receive_message() == [(b"status", b"0")]
        assert daemon.wait() == 0


def test_observer_beyond_the_limit_is_refused(path: Path) -> None:
    """The next one is served when one has left."""
    with Daemon(path):
        clients = [Client(path) for _ in range(MAX_OBSERVERS + 1)]
        try:
            for client in clients[:-1]:
                client.stats()
            with pytest.raises(Refused, match="observers are connected already"):
                clients[-1].stats()
        finally:
            for client in clients[:-1]:
                client.close()
        eventually(lambda: clients[-1].stats()["gauges"]["observers"] == 1)
        clients[-1].close()


@pytest.mark.parametrize("audit_rows", ["100000", "0"])
def test_follower_gets_each_event(path: Path, database: str, audit_rows: str) -> None:
    """The events are those of the audit log, in the order of time, also if none is recorded."""
    label = b"\xff\n*"
    with (
        Daemon(path, "--audit-rows", audit_rows, database=database),
        observing(path, follow()) as follower,
        Client(path) as client,
    ):
        assert follower.receive_message() == [(b"status", b"0")]
        for _ in range(100):
            cycle(client, label)
        events = [event_of(follower) for _ in range(400)]
        kinds = ["save_endp", "find_endp", "found", "find_endp"]
        assert [event.kind for event in events] == 100 * kinds
        assert {event.endpoint for event in events} == {label}
        assert [event.at for event in events] == sorted(event.at for event in events)
        if audit_rows != "0":
            names = ("at", "kind", "status", "connection_id", "client_id", "ttl", "age", "detail")
            sql = f"SELECT {', '.join(names)} FROM event ORDER BY at, id LIMIT 400"
            sent = [tuple(getattr(event, name) for name in names) for event in events]
            assert sent == snapshot(client, sql)


def test_follow_selects_events(daemon: Daemon) -> None:
    """All fields must fit; a pattern is one of GLOB."""
    wanted = follow(kind=b"find_endp", status=b"2", endpoint=b"mx?.[a-e]*")
    with observing(daemon.path, wanted) as follower, Client(daemon.path) as client:
        assert follower.receive_message() == [(b"status", b"0")]
        for label in (b"mx1.example", b"mx1.net", b"mx12.example", b"mx2.de\n25\n"):
            cycle(client, label)
        assert [event_of(follower).endpoint for _ in range(2)] == [b"mx1.example", b"mx2.de\n25\n"]


@pytest.mark.parametrize("wrong", [{"kind": b"x"}, {"status": b"3"}, {"endpoint": b"[z-a]"}])
def test_follow_refuses_what_it_cannot_select(daemon: Daemon, wrong: dict[str, bytes]) -> None:
    """The conversation can go on."""
    with observing(daemon.path, follow(**wrong)) as wire:
        assert wire.receive_message()[0] == REFUSED
        wire.send(STATS)
        assert json.loads(dict(wire.receive_message())[b"stats"])["pid"] == daemon.pid
