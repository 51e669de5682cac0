"""The questions of the manual, answered on a cache that a real Postfix filled.

The right answers come from Postfix's log, the daemon's statistics, and the rows of the tables.
"""

from __future__ import annotations

import math
import os
import pwd
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest

from scache import __version__
from tests.inspection.test_views import VIEWS
from tests.support.commands import SCACHE, run_command
from tests.support.datasette import Datasette, datasette
from tests.support.mail import (
    BRIEFLY_CACHED_FOR,
    CACHED_FOR,
    MESSAGES,
    ODD,
    ROUTES,
    Traffic,
    traffic,
)
from tests.support.manual import PAGES, blocks, commands, section
from tests.support.postfix_setup import MAIL_OWNER
from tests.support.sqlite_readers import Parameters, Row, ask, ask_scache, ask_sqlite3, shown

pytestmark = [pytest.mark.postfix, pytest.mark.slow]

SECTION = section(PAGES["sql"], "Questions")
TITLES = re.findall(r"^\*\*(.+?\?)\*\*", SECTION, re.MULTILINE)
STATEMENTS = re.findall(r"^```sql\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
QUESTIONS = dict(zip(TITLES, STATEMENTS, strict=True))
COMMANDS = [
    words
    for topic in ("sql", "datasette")
    for block in blocks(PAGES[topic], "sh")
    for words in commands(block.text)
]
FILE = "/var/lib/postfix/scache.db"
"""The database file in the manual."""

LATENESS = 60
"""Seconds that an expiry may be late on a busy machine."""

VOLATILE = {"remaining", "age"}
"""Columns of live views that change from query to query."""

ROWS_OF_DATASETTE = 1000
"""Rows that Datasette returns at once."""


@pytest.fixture(scope="module")
def filled() -> Iterator[Traffic]:
    """Have Postfix fill a cache."""
    with traffic() as filled:
        yield filled


@pytest.fixture(scope="module", params=["running", "stopped"])
def cache(request: pytest.FixtureRequest, filled: Traffic) -> Traffic:
    """Give the cache while the daemon runs, with connections in it, and when it has stopped."""
    if request.param == "stopped":
        filled.stop()
    assert filled.running == (request.param == "running")
    return filled


class Asked:
    """The statement of a question, and the cache that it is executed on."""

    def __init__(self, cache: Traffic, statement: str) -> None:
        self.cache = cache
        self._statement = statement

    def rows(self, **parameters: int | str) -> list[Row]:
        """Return the answer."""
        return ask(self.cache.database, self._statement, parameters)


Check = Callable[[Asked], None]
CHECKS: dict[str, Check] = {}
"""By the title of the question."""


def answers(title: str) -> Callable[[Check], Check]:
    """Register a check for the question with this title."""

    def register(check: Check) -> Check:
        assert CHECKS.setdefault(title, check) is check
        return check

    return register


def test_question_has_one_check() -> None:
    """Each question of the manual has one check, and each check has one question."""
    assert list(CHECKS) == TITLES
    assert len(TITLES) == len(set(TITLES)) == SECTION.count("```sql")


@pytest.mark.parametrize("title", TITLES)
def test_question_has_right_answer(cache: Traffic, title: str) -> None:
    """The SQL of the manual gives the answer that the log of Postfix implies."""
    CHECKS[title](Asked(cache, QUESTIONS[title]))


def test_audit_log_agrees_with_log_of_postfix(cache: Traffic) -> None:
    """Each delivery took the connection of the audit log, after the uses that Postfix logged."""
    assert Counter(step.delivery.domain for step in cache.steps) == MESSAGES
    uses: dict[int, int] = {}
    for step in cache.steps:
        before = 0 if step.taken is None else uses.pop(step.taken)
        assert step.delivery.uses == before + 1
        uses[step.saved] = step.delivery.uses
        route = ROUTES[step.delivery.domain]
        for part in (route.transport, f"[{route.host}]:{step.delivery.port}"):
            assert part.encode() in step.destination
    assert len(set(cache.destinations.values())) == len(ROUTES)
    assert cache.endpoints["one.example"] == cache.endpoints["same.example"]
    reused = sum(delivery.uses > 1 for delivery in cache.deliveries)
    kinds = Counter(event["kind"] for event in cache.events())
    assert reused == kinds[b"found"] > 0.7 * len(cache.deliveries)


def test_statistics_agree_with_audit_log(cache: Traffic) -> None:
    """Hits and misses in the daemon's log are those of the audit log and of Postfix's log."""
    counts = Counter((event["kind"], event["status"]) for event in cache.events())
    assert cache.lookups == {
        "domain": (counts[b"find_dest", 0], counts[b"find_dest", 2]),
        "address": (counts[b"find_endp", 0], counts[b"find_endp", 2]),
    }
    hits = cache.lookups["domain"][0] + cache.lookups["address"][0]
    reused = sum(delivery.uses > 1 for delivery in cache.deliveries)
    assert hits == reused + counts[b"put_back", None]
    assert counts[b"put_back", None] == 1


@answers("What is cached for a host, which client saved it, and when does it expire?")
def check_cached(asked: Asked) -> None:
    """Expect each connection to the host that Postfix opened, with its last saver."""
    cache = asked.cache
    rows = asked.rows(host="localhost")
    if not cache.running:
        assert rows == []
        return
    shared = cache.endpoints["same.example"]
    taken = {step.taken for step in cache.steps}
    left = {s.saved: s for s in cache.steps if s.endpoint == shared and s.saved not in taken}
    # Each connection that was ever opened to this server is cached again.
    ports = {d.port for d in cache.deliveries if d.domain == "same.example"}
    opened = sum(d.uses == 1 and d.port in ports for d in cache.deliveries)
    assert len(rows) == len(left) == opened > 0
    saved_at = {e["connection_id"]: e["at"] for e in cache.events() if e["kind"] == b"save_endp"}
    destinations = {cache.destinations[name] for name in ("one.example", "same.example")}
    for row, (number, step) in zip(rows, sorted(left.items()), strict=True):
        assert set(row.pop("destinations").split(b", ")) == destinations
        assert _seconds(row.pop("saved_at")) == pytest.approx(saved_at[number], abs=0.001)
        expires_at = saved_at[number] + CACHED_FOR
        assert _seconds(row.pop("expires_at")) == pytest.approx(expires_at, abs=0.001)
        assert row == {
            "endpoint": shared,
            "pid": step.delivery.pid,
            "program": b"smtp",
            "uid": _postfix_uid(),
        }
    assert not asked.rows(host="lonely")


@answers("Why did a connection leave the cache?")
def check_life(asked: Asked) -> None:
    """Check how long three kinds of connections lived: never found, found, and put back."""
    cache = asked.cache
    (lonely,) = (s for s in cache.steps if s.delivery.domain == "lonely.example")
    saved, gone = asked.rows(id=lonely.saved)
    assert BRIEFLY_CACHED_FOR <= gone["age"] < BRIEFLY_CACHED_FOR + LATENESS
    assert _life([saved, gone]) == [
        (b"save_endp", b"ok", lonely.delivery.pid),
        (b"expired", None, None),
    ]
    for step in cache.steps:
        if step.taken is not None:
            saver = next(s.delivery.pid for s in cache.steps if s.saved == step.taken)
            asked_for = b"find_endp" if step.asked_for_endpoint else b"find_dest"
            rows = asked.rows(id=step.taken)
            assert _life(rows) == [
                (b"save_endp", b"ok", saver),
                (asked_for, b"ok", step.delivery.pid),
                (b"found", None, step.delivery.pid),
            ]
            assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
    life = [(b"save_endp", b"ok"), (b"find_endp", b"ok"), (b"put_back", None)]
    odd = _life(asked.rows(id=cache.odd_connection))
    assert odd[:3] == [(*each, os.getpid()) for each in life]
    assert odd[3:] == ([] if cache.running else [(b"lost", None, None)])


def _life(rows: list[Row]) -> list[tuple[object, ...]]:
    return [(row["kind"], row["outcome"], row["pid"]) for row in rows]


@answers("Which connections are saved and never found?")
def check_never_found(asked: Asked) -> None:
    """Check that only connections that served one message were never found."""
    cache = asked.cache
    assert all(d.uses == 1 for d in cache.deliveries if d.domain == "lonely.example")
    rows = {row["endpoint"]: row for row in asked.rows()}
    lonely, odd = rows.pop(cache.endpoints["lonely.example"]), rows.pop(ODD)
    assert rows == {}  # Postfix found connections of all other endpoints
    assert (lonely["saved"], lonely["never_found"], lonely["live"]) == (1, 1, 0)
    assert (odd["saved"], odd["never_found"], odd["live"]) == (
        (1, 0, 1) if cache.running else (1, 1, 0)
    )
    saved = next(e for e in cache.events() if e["connection_id"] == cache.odd_connection)
    assert _seconds(odd["last_saved_at"]) == pytest.approx(saved["at"], abs=0.001)


@answers("Which destinations share an endpoint?")
def check_shared(asked: Asked) -> None:
    """Check that only the two names of one sink share an endpoint."""
    cache = asked.cache
    (row,) = asked.rows()
    assert row["endpoint"] == cache.endpoints["one.example"]
    both = {cache.destinations[name] for name in ("one.example", "same.example")}
    assert set(row["destinations"].split(b", ")) == both


@answers("Was a connection used for another destination than it was saved for?")
def check_handed_over(asked: Asked) -> None:
    """Expect the numbers of Postfix's log, and only the two names of one server."""
    cache = asked.cache
    saved_for = {step.saved: step.destination for step in cache.steps}
    expected = Counter(
        (step.endpoint, saved_for[step.taken], step.destination)
        for step in cache.steps
        if step.taken is not None and saved_for[step.taken] != step.destination
    )
    rows = asked.rows()
    assert {
        (row["endpoint"], row["saved_for"], row["found_for"]): row["connections"] for row in rows
    } == expected
    one, same = cache.destinations["one.example"], cache.destinations["same.example"]
    assert expected[cache.endpoints["one.example"], one, same] > 0
    counts = [row["connections"] for row in rows]
    assert counts == sorted(counts, reverse=True)


def test_handover_names_destinations_of_each_reuse(cache: Traffic) -> None:
    """For each delivery over a cached connection, the view has the destination before and now."""
    saved_for = {step.saved: step.destination for step in cache.steps}
    expected = {
        step.taken: (saved_for[step.taken], step.destination)
        for step in cache.steps
        if step.taken is not None
    }
    rows = cache.rows("SELECT connection_id, saved_for, found_for FROM handover")
    assert {row["connection_id"]: (row["saved_for"], row["found_for"]) for row in rows} == expected
    assert any(step.asked_for_endpoint for step in cache.steps if step.taken is not None)


@answers("How often is a connection found, by destination?")
def check_hit_rate(asked: Asked) -> None:
    """Check for one find of each delivery, and one hit of each that reused a connection."""
    cache = asked.cache
    hits = Counter(
        step.destination
        for step in cache.steps
        if step.delivery.uses > 1 and not step.asked_for_endpoint
    )
    finds = {cache.destinations[domain]: messages for domain, messages in MESSAGES.items()}
    rows = asked.rows()
    assert {row["destination"]: row for row in rows} == {
        name: {
            "destination": name,
            "finds": count,
            "hits": hits[name],
            "rate": pytest.approx(hits[name] / count, abs=0.0001),
        }
        for name, count in finds.items()
    }
    logged_hits, logged_misses = cache.lookups["domain"]
    assert sum(row["hits"] for row in rows) == logged_hits
    assert sum(row["finds"] for row in rows) == logged_hits + logged_misses


@answers("Why do finds miss?")
def check_reasons(asked: Asked) -> None:
    """Count the misses of each endpoint by the first word of their details."""
    expected = Counter(
        (event["endpoint"], event["detail"].split()[0].rstrip(b":"))
        for event in asked.cache.events()
        if event["kind"] == b"find_endp" and event["status"] == 2
    )
    rows = asked.rows()
    assert {(row["endpoint"], row["reason"]): row["misses"] for row in rows} == expected
    assert expected.total() == asked.cache.lookups["address"][1]


def test_delivery_hit_rate_counts_each_delivery_of_postfix_once(cache: Traffic) -> None:
    """A delivery that asks for the destination and for the endpoint is one delivery."""
    rows = cache.rows("SELECT destination, deliveries, hits FROM delivery_hit_rate")
    hits = Counter(step.destination for step in cache.steps if step.delivery.uses > 1)
    found = {row["destination"]: (row["deliveries"], row["hits"]) for row in rows}
    found.pop(None, None)  # finds of this process
    assert found == {
        cache.destinations[domain]: (messages, hits[cache.destinations[domain]])
        for domain, messages in MESSAGES.items()
    }


@answers("Which process did what?")
def check_processes(asked: Asked) -> None:
    """Check for one save of each delivery, and one find of each with ``conn_use``."""
    cache = asked.cache
    delivered = Counter(delivery.pid for delivery in cache.deliveries)
    reused = Counter(delivery.pid for delivery in cache.deliveries if delivery.uses > 1)
    rows = {row["pid"]: row for row in asked.rows()}
    ours = rows.pop(os.getpid())
    assert (ours["uid"], ours["saved"], ours["found"], ours["missed"]) == (os.geteuid(), 1, 1, 0)
    assert ours["program"] == Path("/proc/self/comm").read_bytes().rstrip(b"\n")
    assert rows.keys() == delivered.keys()
    for pid, row in rows.items():
        assert (row["program"], row["uid"]) == (b"smtp", _postfix_uid())
        assert (row["saved"], row["found"]) == (delivered[pid], reused[pid])
    missed = sum(row["missed"] for row in rows.values())
    assert missed == cache.lookups["domain"][1] + cache.lookups["address"][1]


@answers("How old are connections when they leave, by close reason?")
def check_lifetime(asked: Asked) -> None:
    """Compare the numbers with the reuse in Postfix's log, and the ages with the audit log."""
    cache = asked.cache
    rows = {row["way_out"]: row for row in asked.rows()}
    counts = {way: row["connections"] for way, row in rows.items()}
    reused = sum(delivery.uses > 1 for delivery in cache.deliveries)
    # Connections that were neither found nor expired are still cached, with that of this test.
    left = len(cache.deliveries) - reused - 1 + 1
    assert counts == {b"found": reused, b"expired": 1} | ({} if cache.running else {b"lost": left})
    if cache.running:
        assert cache.rows("SELECT count(*) AS left FROM connection") == [{"left": left}]
    saved_at = {e["connection_id"]: e["at"] for e in cache.events() if e["kind"] == b"save_endp"}
    for way, row in rows.items():
        ages = sorted(
            event["at"] - saved_at[event["connection_id"]]
            for event in cache.events()
            if event["kind"] == way and event["connection_id"] is not None
        )
        for name, percent in ("median", 50), ("p90", 90), ("max", 100):
            rank = math.ceil(len(ages) * percent / 100) - 1
            assert row[name] == pytest.approx(ages[rank], abs=0.001)


@answers("What happened in the last minute?")
def check_lately(asked: Asked) -> None:
    """Expect exactly the events that are not older than the given time."""
    events = asked.cache.events()
    outcomes = {0: b"ok", 1: b"bad", 2: b"fail", None: None}

    def counted(since: float) -> Counter[tuple[bytes, bytes | None]]:
        return Counter(
            (event["kind"], outcomes[event["status"]]) for event in events if event["at"] >= since
        )

    def answer(since: str) -> Counter[tuple[bytes, bytes | None]]:
        rows = asked.rows(since=since)
        return Counter({(row["kind"], row["outcome"]): row["events"] for row in rows})

    assert answer("-1 day") == counted(0)
    assert answer("-0 seconds") == Counter()
    for part in (2, 4, 8, 16):
        middle = events[len(events) // part]["at"]
        before = time.time()
        span = before - middle
        lately = answer(f"-{span:.3f} seconds")
        # The query itself took time, and the view rounds to milliseconds.
        assert counted(middle + time.time() - before + 0.002) <= lately <= counted(middle - 0.002)
        if lately:
            break  # on a busy machine the span may be over: try a longer one
    assert 0 < lately.total() < len(events)


@answers("Which requests were refused or malformed?")
def check_refused(asked: Asked) -> None:
    """Check that only the requests of this process were refused."""
    rows = asked.rows()
    assert {(row["pid"], row["uid"]) for row in rows} == {(os.getpid(), os.geteuid())}
    assert [(row["kind"], row["outcome"], row["detail"]) for row in rows] == [
        (b"unknown", b"bad", None),
        (b"save_endp", b"bad", None),
        (b"save_endp", b"fail", b"no descriptor"),
    ]


@answers("When did the daemon run, and did it crash?")
def check_runs(asked: Asked) -> None:
    """Check that there is one run, with the pid of the daemon."""
    cache = asked.cache
    (row,) = asked.rows()
    assert (row["pid"], row["version"]) == (cache.daemon.pid, __version__.encode())
    assert (row["stopped"] is None) == cache.running
    first, last = (cache.events()[at]["at"] for at in (0, -1))
    assert row["started"] <= _day_and_time(first)
    assert cache.running or row["stopped"] >= _day_and_time(last - 1)


def _seconds(shown: bytes) -> float:
    """Return the time in a view, which SQLite has rounded to milliseconds."""
    return datetime.fromisoformat(shown.decode()).timestamp()


def _day_and_time(at: float) -> bytes:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at)).encode()


def _postfix_uid() -> int:
    return pwd.getpwnam(MAIL_OWNER).pw_uid


def command(program: str) -> list[str]:
    """Return the command line of a program in the manual, without the file."""
    for words in COMMANDS:
        if words[0] == program and FILE in words:
            return [word for word in words if word != FILE]
    raise AssertionError(f"the manual does not say how to run {program}")


COMMAND_OF_SQLITE3 = command("sqlite3")
COMMAND_OF_DATASETTE = command("datasette")


def parameters(cache: Traffic, statement: str) -> Parameters:
    """Return values for the parameters of a statement."""
    known: Parameters = {"host": "localhost", "id": cache.odd_connection, "since": "-1 day"}
    return {name: known[name] for name in re.findall(r":(\w+)", statement)}


@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize(
    "asking", [ask_scache, partial(ask_sqlite3, COMMAND_OF_SQLITE3)], ids=["scache", "sqlite3"]
)
def test_scache_and_sqlite3_give_the_same_answer(
    cache: Traffic, title: str, asking: Callable[..., list[Row]]
) -> None:
    """Each answer is that of a direct query of the file."""
    question = (cache.database, QUESTIONS[title], parameters(cache, QUESTIONS[title]))
    assert asking(*question) == shown(ask(*question))


def test_datasette_gives_the_same_answers(cache: Traffic) -> None:
    """It answers each question, and shows each view, on the file of the daemon."""
    with datasette(COMMAND_OF_DATASETTE, cache.database) as server:
        for statement in QUESTIONS.values():
            given = parameters(cache, statement)
            answer = server.query(statement, given)
            assert answer == shown(ask(cache.database, statement, given))
        check_views(cache, server, cache.database)


def test_datasette_shows_a_dump_as_immutable(cache: Traffic, tmp_path: Path) -> None:
    """It neither changes the copy nor writes beside it."""
    copy = tmp_path / "copy.db"
    dump = ("dump", "--database", str(cache.database), "--output", str(copy))
    assert run_command(*SCACHE, *dump).returncode == 0
    before = copy.read_bytes()
    with datasette([*COMMAND_OF_DATASETTE, "-i"], copy) as server:
        check_views(cache, server, copy)
    assert copy.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["copy.db"]


def check_views(cache: Traffic, server: Datasette, database: Path) -> None:
    """Compare all views of a file as JSON with the output of sqlite3."""
    for view in VIEWS:
        statement = f"SELECT * FROM {view} LIMIT {ROWS_OF_DATASETTE}"
        expected = ask_sqlite3(COMMAND_OF_SQLITE3, database, statement, {})
        assert _lasting(view, server.rows(view)) == _lasting(view, expected)
        assert expected or (view == "live_connection" and not cache.running)


def _lasting(view: str, rows: list[Row]) -> list[Row]:
    """Return rows without columns that change, and with rounded numbers."""
    gone = VOLATILE if view.startswith("live_") else set()
    return [
        {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in row.items()
            if name not in gone
        }
        for row in rows
    ]
