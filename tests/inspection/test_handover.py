"""The view handover: its destinations for clients that behave like smtp(8), and for others.

It guesses only where one request follows another directly, and is silent elsewhere.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.inspection.test_views import iso, seen
from tests.support.sample_database import NOW, Cached, filling

Event = dict[str, Any]
Handovers = dict[int, tuple[bytes | None, bytes | None]]
"""By the id of each found connection: the destinations for which it was saved and found."""

A, B, C = b"a.example", b"b.example", b"c.example"
X, Y = b"mx1.example:25", b"mx2.example:25"


def save(connection: int, endpoint: bytes = X, client: int = 1, **more: object) -> Event:
    """Save a connection."""
    one = {"kind": "save_endp", "endpoint": endpoint, "connection_id": connection}
    return {"status": 0, "client_id": client, **one, **more}


def bind(destination: bytes, endpoint: bytes = X, client: int = 1, **more: object) -> Event:
    """Bind a destination to an endpoint."""
    one = {"kind": "save_dest", "destination": destination, "endpoint": endpoint}
    return {"status": 0, "client_id": client, **one, **more}


def take(connection: int, endpoint: bytes = X, client: int = 2) -> Event:
    """Find a connection by its endpoint."""
    one = {"kind": "find_endp", "endpoint": endpoint, "connection_id": connection}
    return {"status": 0, "client_id": client, **one}


def miss(endpoint: bytes = X, client: int = 2) -> Event:
    """Request a connection of an endpoint; none is found."""
    return {"kind": "find_endp", "status": 2, "endpoint": endpoint, "client_id": client}


def seek(
    destination: bytes, connection: int | None = None, client: int = 2, status: int | None = None
) -> Event:
    """Request a connection by a destination; without ``connection``, none is found."""
    hit = {"connection_id": connection, "endpoint": X} if connection else {}
    outcome = status if status is not None else 0 if connection else 2
    one = {"kind": "find_dest", "status": outcome, "destination": destination}
    return {"client_id": client, **one, **hit}


def ends(how: str, connection: int, client: int = 2) -> Event:
    """End a find: ``found`` or ``put_back``."""
    return {
        "kind": how,
        "status": None,
        "endpoint": X,
        "connection_id": connection,
        "client_id": client,
        "age": 1.0,
    }


def other(kind: str = "unknown", client: int = 1, status: int = 1) -> Event:
    """Make any other request."""
    return {"kind": kind, "status": status, "client_id": client}


@pytest.fixture
def handovers(tmp_path: Path) -> Callable[..., Handovers]:
    """Return a function that returns the view of events, a second apart, and of clock steps."""

    def view(events: list[Event], *steps: tuple[float, float]) -> Handovers:
        def fill(cached: Cached) -> None:
            # Ids follow the order of time only roughly.
            ids = list(range(1, len(events) + 1))
            random.Random(len(events)).shuffle(ids)
            for number, event in enumerate(events):
                cached.event(**{"id": ids[number], "at": NOW + number, **event})
            for client in range(1, 5):
                cached.client(client, connected_at=NOW)
            for at, offset in steps:
                cached.insert("clock_step", at=at, offset=offset)

        (tmp_path / "cache.db").unlink(missing_ok=True)
        with seen(tmp_path / "cache.db", fill) as rows:
            found = rows("handover")
        assert len(found) == sum(event["kind"] == "found" for event in events)
        return {row["connection_id"]: (row["saved_for"], row["found_for"]) for row in found}

    return view


@pytest.mark.parametrize(
    ("requests", "saved_for"),
    [
        ([bind(A), save(1)], [A]),
        ([save(1), bind(A)], [A]),
        ([bind(A), save(1), bind(B), save(2)], [A, B]),
        ([save(1), bind(A), save(2), bind(B)], [A, B]),
        ([save(1), bind(A), save(2), bind(A), save(3), bind(A)], [A, A, A]),
        ([bind(A), save(1), save(2, Y), bind(B, Y)], [A, B]),
        ([save(1), save(2), bind(A)], [None, A]),
        ([bind(A), save(1), save(2)], [A, None]),
        ([bind(A), bind(A), save(1)], [A]),
        ([bind(A, status=2), save(1)], [A]),
        ([bind(A), bind(B, client=3), save(1), other(client=3)], [A]),
        ([bind(B, Y), bind(A), save(1), bind(C, Y)], [A]),
    ],
    ids=[
        *("smtp", "readme", "smtp twice", "readme twice", "readme three times"),
        *("either order", "one without", "another without", "bound again", "not bound"),
        *("another client in between", "another endpoint beside it"),
    ],
)
def test_saved_for_is_bound_directly_before_or_after(
    requests: list[Event], saved_for: list[bytes | None], handovers: Callable[..., Handovers]
) -> None:
    """The save_dest for the endpoint is directly before or after the save_endp."""
    found = [ends("found", number + 1) for number in range(len(saved_for))]
    assert [saved for saved, _ in handovers([*requests, *found]).values()] == saved_for


@pytest.mark.parametrize(
    "requests",
    [
        [save(1)],
        [bind(A, Y), save(1)],
        [save(1), bind(A, Y)],
        [bind(A), other(), save(1)],
        [save(1), other(), bind(A)],
        [bind(A), miss(client=1), save(1)],
        [save(1), seek(B, client=1), bind(A)],
        [bind(A, client=3), save(1), bind(A, client=3)],
        [bind(A), save(1), bind(B)],
        [save(1), bind(A), save(9)],
        [save(9), bind(A), save(1)],
        [bind(A), bind(B), save(1)],
        [save(1), bind(A), bind(B)],
        [save(1), bind(A), bind(B), save(9)],
        [other("save_dest", status=1), save(1), other("save_dest", status=1)],
        [other("save_dest", status=2), save(1)],
    ],
    ids=[
        *("nothing", "another endpoint", "another endpoint after it"),
        *("a request before it", "a request after it", "a miss", "a find"),
        *("another client", "one of two destinations", "one of two connections"),
        *("the other of two connections", "two destinations", "two destinations after it"),
        *("two destinations between two", "malformed", "refused"),
    ],
)
def test_saved_for_is_not_guessed(
    requests: list[Event], handovers: Callable[..., Handovers]
) -> None:
    """A save_dest that is not adjacent, or may belong to another save, is not used."""
    assert handovers([*requests, ends("found", 1)]) == {1: (None, None)}


@pytest.mark.parametrize(
    ("requests", "found_for"),
    [
        ([seek(A, 1)], A),
        ([seek(B), seek(A, 1)], A),
        ([seek(A), take(1)], A),
        ([seek(B), seek(A), take(1)], A),
        ([seek(A), miss(Y), miss(b"mx3"), take(1)], A),
        ([seek(A), seek(B, client=3), other(client=3), take(1)], A),
        ([take(1)], None),
        ([seek(A), other(client=2), take(1)], None),
        ([seek(A), save(9, client=2), take(1)], None),
        ([seek(A), miss(Y), bind(A, client=2), miss(Y), take(1)], None),
        ([seek(A), take(9), ends("found", 9), take(1)], None),
        ([seek(A, 9), ends("found", 9), take(1)], None),
        ([seek(A, client=3), take(1)], None),
        ([seek(A, client=1), take(1)], None),
        ([seek(A, 1, client=3), ends("put_back", 1, client=3)], None),
        ([seek(A, status=1), take(1)], None),
        ([take(1), seek(A)], None),
    ],
    ids=[
        *("by destination", "by another destination", "smtp", "the last", "several addresses"),
        *("another client in between", "nothing", "a request in between", "a save in between"),
        *("a binding in between", "the second find", "a hit", "another client"),
        *("an earlier client", "a find that was trimmed"),
        *("malformed", "afterwards"),
    ],
)
def test_found_for_is_that_of_the_request_before(
    requests: list[Event], found_for: bytes | None, handovers: Callable[..., Handovers]
) -> None:
    """A find_dest has its own; a find_endp has that of an unsuccessful find_dest before it."""
    assert handovers([*requests, ends("found", 1)])[1] == (None, found_for)


@pytest.mark.parametrize("again", [2, 3], ids=["the same client", "another client"])
@pytest.mark.parametrize("by", ["destination", "endpoint"])
def test_connection_put_back_is_found_for_the_last_find(
    again: int, by: str, handovers: Callable[..., Handovers]
) -> None:
    """A find whose connection was restored is not used, from the same client or another."""
    first = [seek(A), take(1)] if by == "endpoint" else [seek(A, 1)]
    last = [seek(B, 1, client=again)] if by == "endpoint" else [seek(B, client=again)]
    if by == "destination":
        last.append(take(1, client=again))
    events = [*first, ends("put_back", 1), *last, ends("found", 1, client=again)]
    assert handovers(events) == {1: (None, B)}
    # The last find names nothing, and inherits nothing.
    events = [*first, ends("put_back", 1), take(1, client=again), ends("found", 1, client=again)]
    assert handovers([*events[:-2], other(client=again), *events[-2:]]) == {1: (None, None)}


@pytest.mark.parametrize("kind", ["found", "put_back", "purged", "expired"])
def test_close_reasons_in_between_do_not_prevent_a_guess(
    kind: str, handovers: Callable[..., Handovers]
) -> None:
    """Events of other connections in between are no requests."""
    of_saver, of_finder = ends(kind, 8, client=1), ends(kind, 9)
    events = [bind(A), of_saver, save(1), seek(B), of_finder, take(1), ends("found", 1)]
    assert handovers(events)[1] == (A, B)


def test_handover_of_a_trimmed_save_has_null_columns(tmp_path: Path) -> None:
    """A connection whose save was trimmed has a row with its finder."""

    def fill(cached: Cached) -> None:
        cached.client(2)
        cached.event(at=NOW + 2, **seek(A))
        cached.event(at=NOW + 3, **take(1))
        cached.event(at=NOW + 4, **ends("found", 1))
        cached.event(at=NOW + 5, **ends("found", 7, client=4))

    with seen(tmp_path / "cache.db", fill) as rows:
        first, second = rows("handover")
    assert first == {
        "connection_id": 1,
        "endpoint": X,
        "saved_for": None,
        "found_for": A,
        "saved_at": None,
        "found_at": iso(NOW + 4),
        "age": 1.0,
        "saved_by": None,
        "found_by": 2,
        "saved_by_pid": None,
        "found_by_pid": 1002,
    }
    assert (second["connection_id"], second["found_by"], second["found_for"]) == (7, 4, None)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([(NOW + 2, 3600.0)], (A, B)),
        ([(NOW + 1, 0.5), (NOW + 3, 0.5)], (A, B)),
        ([(NOW + 100, -50.0)], (A, B)),
        ([(NOW - 9, -8.0)], (A, B)),
        ([(NOW - 9, -12.0)], (None, None)),
        ([(NOW + 1, -0.1)], (None, B)),
        ([(NOW + 2.5, -0.1)], (A, None)),
        ([(NOW - 9, -3600.0), (NOW - 9, -3600.0), (NOW + 1, 5.0)], (None, None)),
    ],
    ids=[
        *("forward", "forward in between", "later", "earlier"),
        *("reaches it", "its save", "its find", "several"),
    ],
)
def test_times_before_a_clock_step_back_give_no_order(
    steps: list[tuple[float, float]],
    expected: tuple[bytes | None, bytes | None],
    handovers: Callable[..., Handovers],
) -> None:
    """No destination is guessed then; that of a find_dest is no guess."""
    events = [bind(A), save(1), seek(B), take(1), ends("found", 1)]
    assert handovers(events, *steps) == {1: expected}
    events = [seek(C, 1), ends("found", 1)]
    assert handovers(events, *steps) == {1: (None, C)}


@pytest.mark.parametrize(
    ("connected_at", "trimmed", "expected"),
    [(NOW - 9, 0, B), (NOW - 9, 40, None), (NOW, 40, B), (None, 40, None)],
    ids=["whole", "trimmed", "connected later", "forgotten client"],
)
def test_trimmed_requests_prevent_a_guess(
    connected_at: float | None, trimmed: int, expected: bytes | None, tmp_path: Path
) -> None:
    """A save_dest whose save_endp was trimmed is not used for the next save_endp."""

    def fill(cached: Cached) -> None:
        if connected_at:
            cached.client(1, connected_at=connected_at)
        cached.count(events_trimmed=trimmed)
        cached.event(at=NOW - 2, **other("find_endp", client=3, status=2))
        for number, each in enumerate([bind(A), save(1), bind(B), save(2)]):
            cached.event(at=NOW + number, **each)
        cached.event(at=NOW + 5, **ends("found", 2))

    with seen(tmp_path / "cache.db", fill) as rows:
        (row,) = rows("handover")
    assert row["saved_for"] == expected


def test_order_within_the_oldest_commit_of_a_trimmed_audit_log_is_unknown(tmp_path: Path) -> None:
    """Requests between the remaining ones of that commit may have been trimmed."""

    def fill(cached: Cached) -> None:
        cached.client(1)
        cached.client(2)
        cached.count(events_trimmed=40)
        events = [other(), bind(A), save(1), seek(B), take(1), ends("found", 1)]
        for number, each in enumerate(events):
            cached.event(at=NOW + number * 0.01, **each)

    with seen(tmp_path / "cache.db", fill) as rows:
        (row,) = rows("handover")
    assert (row["saved_for"], row["found_for"]) == (None, None)


@pytest.mark.parametrize("order", ["smtp", "readme"])
@pytest.mark.parametrize("seed", range(3))
def test_handover_has_no_wrong_destination(
    order: str, seed: int, handovers: Callable[..., Handovers]
) -> None:
    """Several clients save and find in random order.

    saved_for is always known; found_for is known if the connection was found by destination.
    """
    choice = random.Random(seed)
    events: list[Event] = []
    cached: dict[int, bytes] = {}
    expected: Handovers = {}
    for number in range(1, 400):
        client = choice.randrange(1, 5)
        destination, endpoint = choice.choice([A, B, C]), choice.choice([X, Y])
        if cached and choice.random() < 0.5:
            connection = choice.choice(list(cached))
            asks = choice.random() < 0.5
            events += (
                [seek(destination, connection, client)] if asks else [take(connection, X, client)]
            )
            events.append(ends("found", connection, client))
            expected[connection] = (cached.pop(connection), destination if asks else None)
        else:
            pair = [bind(destination, endpoint, client), save(number, endpoint, client)]
            events += pair if order == "smtp" else pair[::-1]
            cached[number] = destination
    assert handovers(events) == expected


@pytest.mark.parametrize("view", ["handover", "client_activity"])
@pytest.mark.parametrize("clients", [1, 40, 10_000], ids="{} clients".format)
def test_view_takes_time_proportional_to_the_audit_log(
    view: str, clients: int, tmp_path: Path
) -> None:
    """Four times as many events take at most five times as many steps of SQLite."""

    def steps(size: int) -> int:
        path = tmp_path / f"{size}.db"
        with filling(path) as cached:
            for number in range(size // 5):
                saver, finder = number % clients + 1, (number + 1) % clients + 1
                endpoint = b"%d" % (number % 50)
                events = [
                    *(bind(A, endpoint, saver), save(number, endpoint, saver)),
                    *(seek(B, None, finder), take(number, endpoint, finder)),
                    ends("found", number, finder),
                ]
                for place, event in enumerate(events, 5 * number):
                    cached.event(**{"at": NOW + place, **event})
        taken = 0

        def count() -> None:
            nonlocal taken
            taken += 1

        with closing(sqlite3.connect(path)) as connection:
            connection.set_progress_handler(count, 100)
            connection.execute(f"SELECT * FROM {view}").fetchall()
        return taken

    assert steps(8_000) < 5 * steps(2_000)
