"""The traffic of real smtp(8) processes: the database of the daemon, and the log of Postfix."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from tests.support.daemon import Daemon
from tests.support.dialogue import eventually
from tests.support.postfix_setup import MAIL_OWNER, private_directory
from tests.support.private_postfix import PrivatePostfix, Route
from tests.support.sqlite_readers import Row
from tests.support.wire import DUMMY, Wire, encode

ROUTES = {
    "one.example": Route(sink=1),
    "same.example": Route(sink=1, host="localhost"),
    "two.example": Route(sink=2),
    "lonely.example": Route(sink=3, transport="brief"),
}
MESSAGES = {"one.example": 120, "same.example": 120, "two.example": 100, "lonely.example": 1}
"""Messages for each domain, sent in this order: connections of one domain serve the next. The
connection of the lonely domain serves no other."""
SESSIONS = 5

CACHED_FOR = 300
"""Seconds: longer than the tests last."""
BRIEFLY_CACHED_FOR = 1

ODD = b"\xff\xfe \xe9\n"
"""A label that is not UTF-8."""

_DELIVERY = re.compile(
    r"postfix/smtp\[(?P<pid>\d+)\]: \w+: to=<recipient@(?P<domain>[\w.]+)>, "
    r"relay=[^:]*:(?P<port>\d+), (?:conn_use=(?P<uses>\d+), )?.* status=sent "
)
_LOOKUPS = re.compile(r"statistics: (domain|address) lookup hits=(\d+) miss=(\d+) success=\d+%")
_EVENTS = "SELECT * FROM event ORDER BY at, id"


class Delivery(NamedTuple):
    """A delivery in the log of smtp(8)."""

    pid: int
    domain: str
    """The domain of the recipient."""
    port: int
    """The port of the sink."""
    uses: int
    """Messages sent over the connection, this one included (``conn_use``)."""


class Step(NamedTuple):
    """The requests of one delivery, from the audit log."""

    delivery: Delivery
    destination: bytes
    """The destination of its find_dest."""
    asked_for_endpoint: bool
    """True if it also sent a find_endp."""
    taken: int | None
    """The id of the connection that it found."""
    saved: int
    """The id of the connection that it saved."""
    endpoint: bytes


@dataclass
class Traffic:
    """The traffic, recorded in a file; the daemon runs on the file until it is stopped."""

    database: Path
    daemon: Daemon
    deliveries: list[Delivery]
    lookups: dict[str, tuple[int, int]]
    """Hits and misses in the log of the daemon, of ``domain`` and ``address``."""
    odd_connection: int
    """The connection that this process saved, found without fetching it, and left there."""
    running: bool = True

    def stop(self) -> None:
        """Stop the daemon, if it runs."""
        if self.running:
            self.running = False
            assert self.daemon.terminate() == 0

    def rows(self, sql: str) -> list[Row]:
        """Return the rows of a statement in the file."""
        return _rows(self.database, sql)

    def events(self) -> list[Row]:
        """Return the rows of the audit log, by time."""
        return self.rows(_EVENTS)

    @cached_property
    def steps(self) -> list[Step]:
        """The deliveries with their requests, by the time at which they ended.

        A process delivers one message after the other. Its n-th delivery made its n-th find_dest,
        its n-th save_endp, and any find_endp in between.
        """
        pids = {row["id"]: row["pid"] for row in self.rows("SELECT id, pid FROM client")}
        deliveries: dict[int, list[Delivery]] = defaultdict(list)
        for delivery in self.deliveries:
            deliveries[delivery.pid].append(delivery)
        requests: dict[int, list[Row]] = defaultdict(list)
        for event in self.events():
            if event["status"] is not None and pids[event["client_id"]] in deliveries:
                requests[pids[event["client_id"]]].append(event)
        ended = []
        for pid, of_process in deliveries.items():
            parts = list(_parts(requests[pid]))
            for delivery, part in zip(of_process, parts, strict=True):
                ended.append((part[-1]["at"], _step(delivery, part)))
        return [step for _, step in sorted(ended, key=itemgetter(0))]

    @cached_property
    def destinations(self) -> dict[str, bytes]:
        """The destination in the requests of smtp(8), for each domain of recipients."""
        return {step.delivery.domain: step.destination for step in self.steps}

    @cached_property
    def endpoints(self) -> dict[str, bytes]:
        """The endpoint in the requests of smtp(8), for each domain of recipients."""
        return {step.delivery.domain: step.endpoint for step in self.steps}


def _parts(requests: list[Row]) -> Iterator[list[Row]]:
    """Split the requests of a process into deliveries: from find_dest to save_endp."""
    part: list[Row] = []
    for request in requests:
        part.append(request)
        if request["kind"] == b"save_endp":
            yield part
            part = []
    assert not part


def _step(delivery: Delivery, requests: list[Row]) -> Step:
    find, *find_again, save_dest, save_endp = requests
    assert [each["kind"] for each in requests] == [
        b"find_dest",
        *[b"find_endp"] * (find["status"] != 0),
        b"save_dest",
        b"save_endp",
    ]
    assert find["destination"] == save_dest["destination"]
    taken = (find_again or [find])[0]
    return Step(
        delivery,
        find["destination"],
        bool(find_again),
        taken["connection_id"] if taken["status"] == 0 else None,
        save_endp["connection_id"],
        save_endp["endpoint"],
    )


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Run a private Postfix with a daemon, deliver mail, and add some bad requests."""
    with (
        private_directory() as directory,
        PrivatePostfix(routes=ROUTES, cache_time_limit=CACHED_FOR) as postfix,
        Daemon(
            postfix.cache_socket,
            *("--socket-owner", MAIL_OWNER),
            *("--ttl-limit", str(2 * CACHED_FOR)),
            *("--max-idle", "0"),
            *("--status-interval", "0"),
            database=directory / "cache.db",
        ) as daemon,
    ):
        database = directory / "cache.db"
        for domain, messages in MESSAGES.items():
            postfix.send(messages, SESSIONS, domain=domain)
        total = sum(MESSAGES.values())
        postfix.wait_delivered(total)
        odd_connection = _misbehave(postfix.cache_socket, database)

        def is_quiet() -> bool:
            events = Counter((event["kind"], event["status"]) for event in _rows(database, _EVENTS))
            saved = events[b"save_endp", 0] - 1  # without that of this process
            # The lonely connection and its binding.
            return saved == total and events[b"expired", None] == 2

        eventually(is_quiet)
        os.kill(daemon.pid, signal.SIGUSR1)
        daemon.wait_for_log("max simultaneous")
        yield Traffic(
            database,
            daemon,
            [_delivery(line) for line in postfix.deliveries()],
            _lookups(daemon.log()),
            odd_connection,
        )


def _misbehave(path: Path, database: Path) -> int:
    """Send bad requests; return the id of the connection that is left in the cache."""
    # A file has no peer that could hang up.
    with open(os.devnull, "rb") as something, Wire(path) as client:  # noqa: PTH123
        client.announcement()
        client.save_endp(CACHED_FOR, ODD, ODD, something.fileno())
        client.save_dest(CACHED_FOR, ODD, ODD, ODD)
        client.send(encode([(b"request", b"nonsense")]))
        client.receive_message()
        save = [(b"request", b"save_endp"), (b"ttl", b"0"), (b"label", ODD), (b"property", b"")]
        client.send(encode(save))
        client.receive_message()
        save[1] = (b"ttl", b"1")
        client.send(encode(save))
        assert client.receive_message_bytes() == DUMMY
        client.send(b"\0")  # without a descriptor
        client.receive_message()
        client.send(encode([(b"request", b"find_endp"), (b"label", ODD)]))
        client.receive_message()  # then disconnect without fetching the descriptor
    found: list[int] = []

    def is_put_back() -> bool:
        found[:] = [
            event["connection_id"]
            for event in _rows(database, _EVENTS)
            if event["kind"] == b"put_back"
        ]
        return bool(found)

    eventually(is_put_back)
    return found[0]


def _delivery(line: str) -> Delivery:
    match = _DELIVERY.match(line)
    assert match, line
    return Delivery(int(match["pid"]), match["domain"], int(match["port"]), int(match["uses"] or 1))


def _lookups(log: list[str]) -> dict[str, tuple[int, int]]:
    found = [match for line in log if (match := _LOOKUPS.search(line))]
    return {match[1]: (int(match[2]), int(match[3])) for match in found}


def _rows(database: Path, sql: str) -> list[Row]:
    uri = f"{database.as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        connection.text_factory = bytes
        cursor = connection.execute(sql)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]
