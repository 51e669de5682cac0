"""The views, compared with the same numbers counted in Python."""

from __future__ import annotations

import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from scache.inspection.image import Image
from scache.vocabulary import REQUESTS, WAYS_OUT
from tests.support.sample_database import NOW, ODD, Cached, filling

Event = dict[str, Any]
Row = dict[str, Any]

VIEWS = {
    "live_connection",
    "live_binding",
    "event_log",
    "destination_hit_rate",
    "endpoint_hit_rate",
    "delivery_hit_rate",
    "find_miss",
    "destination_misses",
    "endpoint_misses",
    "saved_never_found",
    "lifetime",
    "handover",
    "client_activity",
}
LABELS = [*ODD.values(), b"a", b"b", b"c"]
OUTCOMES = {0: b"ok", 1: b"bad", 2: b"fail", None: None}


def iso(at: float | None) -> bytes | None:
    """Return a time as the views show it."""
    if at is None:
        return None
    moment = datetime.fromtimestamp(round(at, 3), UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()


@contextmanager
def seen(path: Path, fill: Callable[[Cached], None]) -> Iterator[Callable[[str], list[Row]]]:
    """Fill a database; yield a function that returns the rows of a view of it."""
    with filling(path) as cached:
        fill(cached)
    with Image.from_file(path) as image:

        def rows(view: str) -> list[Row]:
            result = image.all_of(view)
            return [dict(zip(result.columns, row, strict=True)) for row in result.rows]

        yield rows


def history(seed: int, size: int) -> list[Event]:
    """Return random events, in the order of their ids."""
    choice = random.Random(seed)
    events: list[Event] = []
    for number in range(1, size + 1):
        kind = choice.choice([*REQUESTS, *WAYS_OUT, *WAYS_OUT, "put_back"])
        of_binding = kind in ("expired", "evicted", "purged") and choice.random() < 0.4
        event: Event = {
            "id": number,
            "at": NOW + number * 0.25,
            "kind": kind,
            "status": choice.choice([0, 0, 1, 2]) if kind in REQUESTS else None,
            "destination": choice.choice(LABELS) if "dest" in kind or of_binding else None,
            "endpoint": None if kind == "find_dest" else choice.choice(LABELS),
            "client_id": choice.randrange(1, 8) if kind in (*REQUESTS, "found") else None,
        }
        leaves = kind in WAYS_OUT and not of_binding
        if leaves or (kind == "save_endp" and event["status"] == 0):
            event["connection_id"] = number
        if kind in WAYS_OUT:
            event["age"] = choice.choice([0.0, 0.125, float(number), choice.random() * 300])
        events.append(event)
    return events


def insert(cached: Cached, events: list[Event]) -> None:
    """Insert events."""
    for event in events:
        cached.event(**event)


@pytest.fixture(params=[(1, 0), (2, 1), (3, 40), (4, 400), (5, 4000)], ids=str)
def events(request: pytest.FixtureRequest) -> list[Event]:
    """Return histories of several sizes."""
    return history(*request.param)


def test_views_of_an_empty_cache_are_empty(tmp_path: Path) -> None:
    """The database has these views and no others."""
    with (
        seen(tmp_path / "cache.db", lambda _: None) as rows,
        Image.from_file(tmp_path / "cache.db") as image,
    ):
        assert {each.name for each in image.relations() if each.is_view} == VIEWS
        assert all(rows(view) == [] for view in VIEWS)


@pytest.mark.parametrize(
    ("view", "kind", "label"),
    [
        ("destination_hit_rate", "find_dest", "destination"),
        ("endpoint_hit_rate", "find_endp", "endpoint"),
    ],
)
def test_hit_rate_views_count_hits_and_misses(
    events: list[Event], tmp_path: Path, view: str, kind: str, label: str
) -> None:
    """A find is a hit or a miss; a malformed request is neither. The most requested comes first."""
    finds = [e for e in events if e["kind"] == kind and e["status"] != 1]
    wanted = Counter(e[label] for e in finds)
    hits = Counter(e[label] for e in finds if e["status"] == 0)
    latest = {e[label]: e["at"] for e in finds}
    with seen(tmp_path / "cache.db", lambda cached: insert(cached, events)) as rows:
        found = rows(view)
    assert found == [
        {
            label: name,
            "finds": count,
            "hits": hits[name],
            "misses": count - hits[name],
            "rate": round(hits[name] / count, 4),
            "last_at": iso(latest[name]),
        }
        for name, count in sorted(wanted.items(), key=lambda item: (-item[1], item[0]))
    ]


def test_saved_never_found_has_unused_endpoints(events: list[Event], tmp_path: Path) -> None:
    """The rows are endpoints with connections that left the cache, or are cached, and unfound."""
    live = [(1_000_000 + number, b"%d" % (number % 3)) for number in range(7)]
    counts: dict[bytes, Counter[str]] = defaultdict(Counter)
    saved_at: dict[bytes, float] = {}
    for event in events:
        kind, endpoint = event["kind"], event["endpoint"]
        if kind == "save_endp" and event["status"] == 0:
            counts[endpoint]["saved"] += 1
            saved_at[endpoint] = event["at"]
        elif kind in WAYS_OUT and "connection_id" in event:
            counts[endpoint][kind] += 1
            counts[endpoint]["never_found"] += kind != "found"
    for _, endpoint in live:
        counts[endpoint]["live"] += 1
        saved_at[endpoint] = max(saved_at.get(endpoint, 0), NOW)
    columns = ("saved", "found", "never_found", *WAYS_OUT[1:], "live")
    expected = {
        endpoint: {name: count[name] for name in columns}
        | {"last_saved_at": iso(saved_at.get(endpoint))}
        for endpoint, count in counts.items()
        if count["never_found"] or not count["found"]
    }

    def fill(cached: Cached) -> None:
        insert(cached, events)
        for row_id, endpoint in live:
            cached.connection(row_id, endpoint)

    with seen(tmp_path / "cache.db", fill) as rows:
        found = rows("saved_never_found")
    order = [(row["found"] > 0, -row["never_found"], -row["saved"]) for row in found]
    assert order == sorted(order)
    assert {row.pop("endpoint"): row for row in found} == expected


def test_saved_never_found_begins_with_an_endpoint_that_clients_do_not_ask_for(
    tmp_path: Path,
) -> None:
    """LMTP clients of some versions save and find under different labels."""

    def fill(cached: Cached) -> None:
        for number in range(1, 51):
            smtp: Event = {"endpoint": b"mx.example.org:25", "connection_id": 1000 + number}
            lmtp: Event = {"endpoint": b"unix:/lmtp", "connection_id": 2000 + number}
            cached.event("save_endp", 0, **smtp)
            cached.event("find_endp", 0, **smtp)
            cached.event("found", age=1.0, **smtp)
            cached.event("save_endp", 0, **lmtp)
            cached.event("find_endp", 2, endpoint=b"unix:/lmtp:24")
            cached.event("expired", age=2.0, **lmtp)

    with seen(tmp_path / "cache.db", fill) as rows:
        (row,) = rows("saved_never_found")
    assert row["endpoint"] == b"unix:/lmtp"
    assert (row["saved"], row["found"], row["never_found"], row["expired"]) == (50, 0, 50, 50)


def test_saved_never_found_counts_a_restored_connection_once(tmp_path: Path) -> None:
    """The first finder disconnected before the delivery."""

    def fill(cached: Cached) -> None:
        one: Event = {"endpoint": b"e", "connection_id": 7}
        cached.event("save_endp", 0, **one)
        for kind in ("found", "put_back", "found"):
            cached.event(kind, age=1.0, **one)
        cached.event("expired", endpoint=b"e", connection_id=8, age=2.0)

    with seen(tmp_path / "cache.db", fill) as rows:
        (row,) = rows("saved_never_found")
    assert (row["saved"], row["found"], row["never_found"]) == (1, 1, 1)


def test_lifetime_has_percentiles_of_ages(events: list[Event], tmp_path: Path) -> None:
    """A percentile is an age that occurred, by nearest rank."""
    ages: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event["kind"] in WAYS_OUT and "connection_id" in event:
            ages[event["kind"]].append(event["age"])

    def rank(sorted_ages: list[float], percent: int) -> float:
        return sorted_ages[math.ceil(len(sorted_ages) * percent / 100) - 1]

    with seen(tmp_path / "cache.db", lambda cached: insert(cached, events)) as rows:
        found = {row.pop("way_out").decode(): row for row in rows("lifetime")}
    assert found == {
        way: pytest.approx(
            {
                "connections": len(each),
                "mean": sum(each) / len(each),
                "min": each[0],
                "median": rank(each, 50),
                "p90": rank(each, 90),
                "p99": rank(each, 99),
                "max": each[-1],
            },
            abs=0.001,
        )
        for way, each in ((way, sorted(each)) for way, each in ages.items())
    }


CLIENTS: dict[int, Row] = {
    number: {
        "pid": 1000 + number,
        "uid": number,
        "gid": 90,
        "connected_at": NOW + number,
        "disconnected_at": None if number % 2 else NOW + number + 0.5,
        "program": ODD["escape"] if number == 2 else None if number == 3 else b"smtp",
    }
    for number in (1, 2, 3, 4, 9)
}
"""Some clients of a history, and one without a request."""


def insert_clients(cached: Cached) -> None:
    """Insert the clients whose rows were not deleted."""
    for number, columns in CLIENTS.items():
        cached.client(number, **columns)


def test_client_activity_counts_requests(events: list[Event], tmp_path: Path) -> None:
    """There is a row for each client in the table client or in the audit log."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    latest: dict[int, float] = {}
    for event in events:
        if event["status"] is not None:
            outcome = "bad" if event["status"] == 1 else f"{event['kind']}_{_word(event)}"
            counts[event["client_id"]][outcome] += 1
            latest[event["client_id"]] = event["at"]

    def fill(cached: Cached) -> None:
        insert(cached, events)
        insert_clients(cached)

    with seen(tmp_path / "cache.db", fill) as rows:
        found = rows("client_activity")
    counted = [f"{kind}_{each}" for kind in REQUESTS[:-1] for each in ("ok", "fail")]
    assert [row["client_id"] for row in found] == sorted(counts.keys() | CLIENTS.keys())
    for row in found:
        number = row["client_id"]
        known = CLIENTS.get(number, dict.fromkeys(CLIENTS[1]))
        assert {name: row[name] for name in ("pid", "uid", "gid", "program")} == {
            name: known[name] for name in ("pid", "uid", "gid", "program")
        }
        assert row["connected_at"] == iso(known["connected_at"])
        assert row["disconnected_at"] == iso(known["disconnected_at"])
        assert {name: row[name] for name in (*counted, "bad")} == {
            name: counts[number][name] for name in (*counted, "bad")
        }
        assert row["last_at"] == iso(latest.get(number))


def test_client_activity_counts_purges_by_id(tmp_path: Path) -> None:
    """Successful and failed requests are counted separately."""

    def fill(cached: Cached) -> None:
        for status in (0, 0, 1, 2):
            cached.event("purge_id", status, client_id=1)

    with seen(tmp_path / "cache.db", fill) as rows:
        (row,) = rows("client_activity")
    assert (row["purge_id_ok"], row["purge_id_fail"], row["bad"]) == (2, 1, 1)


def _word(event: Event) -> str:
    return "ok" if event["status"] == 0 else "fail"


def test_event_log_has_every_event(events: list[Event], tmp_path: Path) -> None:
    """Each row has the outcome as a word, and the client if its row exists."""

    def fill(cached: Cached) -> None:
        insert(cached, events)
        insert_clients(cached)

    with seen(tmp_path / "cache.db", fill) as rows:
        found = rows("event_log")
    unknown = dict.fromkeys(CLIENTS[1])
    for event, row in zip(events, found, strict=True):
        client = CLIENTS.get(event["client_id"], unknown)
        assert row == {
            "id": event["id"],
            "at": iso(event["at"]),
            "kind": event["kind"].encode(),
            "outcome": OUTCOMES[event["status"]],
            "destination": event["destination"],
            "endpoint": event["endpoint"],
            "connection_id": event.get("connection_id"),
            "binding_id": None,
            "client_id": event["client_id"],
            **{name: client[name] for name in ("pid", "uid", "gid", "program")},
            "ttl": None,
            "age": event.get("age"),
            "detail": None,
        }


class TestHandover:
    def test_handover_takes_destinations_from_earlier_requests(self, tmp_path: Path) -> None:
        """smtp(8) names the destination in the request before that for an endpoint."""

        def fill(cached: Cached) -> None:
            insert_clients(cached)
            requests: list[Event] = [
                {"kind": "save_dest", "destination": b"a.org", "endpoint": b"mx", "client_id": 1},
                {"kind": "save_endp", "endpoint": b"mx", "connection_id": 7, "client_id": 1},
                {"kind": "find_dest", "status": 2, "destination": b"b.org", "client_id": 2},
                # Another client in between.
                {"kind": "find_dest", "status": 2, "destination": b"other", "client_id": 4},
                {"kind": "find_endp", "status": 2, "endpoint": b"mx1", "client_id": 2},
                {"kind": "find_endp", "endpoint": b"mx", "connection_id": 7, "client_id": 2},
            ]
            for number, request in enumerate(requests):
                # Ids follow the order of time only roughly.
                cached.event(**{"id": 50 - number, "status": 0, "at": NOW + number, **request})
            found: Event = {"endpoint": b"mx", "connection_id": 7, "client_id": 2}
            cached.event("found", at=NOW + 5.5, age=4.5, **found)

        with seen(tmp_path / "cache.db", fill) as rows:
            (row,) = rows("handover")
        assert row == {
            "connection_id": 7,
            "endpoint": b"mx",
            "saved_for": b"a.org",
            "found_for": b"b.org",
            "saved_at": iso(NOW + 1),
            "found_at": iso(NOW + 5.5),
            "age": 4.5,
            "saved_by": 1,
            "found_by": 2,
            "saved_by_pid": 1001,
            "found_by_pid": 1002,
        }

    def test_handover_does_not_guess_destinations(self, tmp_path: Path) -> None:
        """A destination that was named for another endpoint, or later, is not used."""

        def fill(cached: Cached) -> None:
            one: Event = {"client_id": 1, "connection_id": 7, "endpoint": b"mx"}
            cached.event("save_dest", 0, destination=b"a.org", endpoint=b"other", client_id=1)
            cached.event("save_endp", 0, at=NOW + 1, **one)
            cached.event("find_endp", 0, at=NOW + 2, **one)
            cached.event("found", at=NOW + 2, age=1.0, **one)
            cached.event("save_dest", 0, at=NOW + 3, destination=b"b.org", client_id=1)
            forgotten: Event = {"client_id": 5, "connection_id": 3, "endpoint": b"old"}
            cached.event("found", at=NOW + 4, age=9.0, **forgotten)

        with seen(tmp_path / "cache.db", fill) as rows:
            found = rows("handover")
        assert [(row["connection_id"], row["saved_by"], row["found_by"]) for row in found] == [
            (7, 1, 1),
            (3, None, 5),
        ]
        assert all(row["saved_for"] is row["found_for"] is None for row in found)

    def test_handover_has_every_found_connection_once(
        self, events: list[Event], tmp_path: Path
    ) -> None:
        """The history is random."""
        with seen(tmp_path / "cache.db", lambda cached: insert(cached, events)) as rows:
            found = rows("handover")
        expected = [event["connection_id"] for event in events if event["kind"] == "found"]
        assert [row["connection_id"] for row in found] == expected


class TestLive:
    def test_live_connection_has_client_destinations_and_peer(self, tmp_path: Path) -> None:
        """The destinations are those bound to the endpoint, each once."""
        before = round(time.time(), 3)  # half a millisecond is rounded up by one, down by another

        def fill(cached: Cached) -> None:
            insert_clients(cached)
            times = {"saved_at": before - 10, "expires_at": before + 50}
            cached.connection(5, b"mx", client_id=1, **times)
            cached.connection(3, b"other", client_id=77, **times)
            for number, name in enumerate([b"b.org", b"a.org", b"b.org"]):
                cached.binding(number, name, b"mx", properties=b"%d" % number)
            cached.insert(
                "descriptor",
                connection_id=5,
                fd=9,
                kind="tcp",
                peer=b"[::1]:25",
                tcp_state="LISTEN",
            )

        with seen(tmp_path / "cache.db", fill) as rows:
            orphan, row = rows("live_connection")
        after = time.time()
        assert before + 50 - after - 0.01 <= row.pop("remaining") <= 50.01
        assert 9.99 <= row.pop("age") <= after - before + 10.01
        assert row == {
            "id": 5,
            "endpoint": b"mx",
            "properties": b"p",
            "saved_at": iso(before - 10),
            "expires_at": iso(before + 50),
            "client_id": 1,
            "pid": 1001,
            "uid": 1,
            "program": b"smtp",
            "destinations": b"a.org, b.org",
            "peer": b"[::1]:25",
            "tcp_state": b"LISTEN",
        }
        for name in ("pid", "uid", "program", "destinations", "peer", "tcp_state"):
            assert orphan[name] is None

    def test_live_binding_counts_connections(self, tmp_path: Path) -> None:
        """Bindings are in the order in which a find tries them."""

        def fill(cached: Cached) -> None:
            insert_clients(cached)
            for number in range(3):
                cached.connection(number, b"second")
            cached.binding(8, b"d", b"second")
            cached.binding(7, b"d", b"first")
            cached.binding(9, b"c", b"second", client_id=77)

        with seen(tmp_path / "cache.db", fill) as rows:
            found = rows("live_binding")
        assert [(row["destination"], row["endpoint"], row["connections"]) for row in found] == [
            (b"c", b"second", 3),
            (b"d", b"first", 0),
            (b"d", b"second", 3),
        ]
        assert [row["pid"] for row in found] == [None, 1001, 1001]
        assert found[0]["expires_at"] == b"2023-11-14T22:14:20.000Z"
        assert found[0]["age"] - 60 == pytest.approx(-found[0]["remaining"], abs=0.01)

    def test_views_return_labels_byte_for_byte(self, tmp_path: Path) -> None:
        """The labels have difficult bytes."""

        def fill(cached: Cached) -> None:
            for number, label in enumerate(ODD.values()):
                cached.connection(number, label, properties=label)
                cached.binding(100 + number, label, label, properties=label)

        with seen(tmp_path / "cache.db", fill) as rows:
            for row, label in zip(rows("live_connection"), ODD.values(), strict=True):
                assert (row["endpoint"], row["properties"], row["destinations"]) == (label,) * 3
            bound = {row["destination"]: row for row in rows("live_binding")}
        assert bound.keys() == set(ODD.values())
        assert all(row["connections"] == 1 for row in bound.values())


def test_views_do_not_scan_events_for_each_row(tmp_path: Path) -> None:
    """No view's plan has a correlated subquery or a scan inside a scan."""
    with filling(tmp_path / "cache.db"):
        pass
    with Image.from_file(tmp_path / "cache.db") as image:
        for view in VIEWS:
            steps = image.execute(f"EXPLAIN QUERY PLAN SELECT * FROM {view}").rows
            plan = [step[3] for step in steps if isinstance(step[3], bytes)]
            assert not [step for step in plan if b"CORRELATED" in step]
