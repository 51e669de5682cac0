"""Snapshots and purges of a live daemon: what administrators ask for."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random
from threading import Event
from typing import Any, NoReturn

import anyio
import anyio.lowlevel
import pytest

from scache import Client, Refused
from scache.cache import Cache
from scache.cache.limits import Limits
from scache.client.exchanges import Purged
from scache.daemon.poller import Poller
from scache.daemon.snapshots import Snapshots
from scache.model import Connection
from scache.protocol.messages import PURGE_SLICE
from scache.store import MEMORY
from scache.unix import process
from tests.support.as_user import GID, GROUP, MAY_RAISE_PRIORITY, UID, as_user
from tests.support.clients import Connect, Pair
from tests.support.daemon import Daemon
from tests.support.descriptors import descriptors_left, descriptors_of
from tests.support.dialogue import DEADLINE, eventually, until
from tests.support.postfix_setup import private_directory
from tests.support.slow_session import slow_session
from tests.support.snapshots import opened, snapshot
from tests.support.store_fixture import Opened
from tests.support.wire import Wire, encode

WAYS_OUT = ("found", "expired", "evicted", "hung_up", "purged", "lost")


@pytest.fixture
def daemon(path: Path, database: str) -> Iterator[Daemon]:
    """Run a daemon that forgets nothing."""
    with Daemon(path, "--audit-rows", "1000000", database=database) as daemon:
        yield daemon


def children_of(pid: int) -> str:
    """Return the process ids of its children."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text()


def test_every_client_gets_one(connect: Connect, daemon: Daemon, pair: Pair) -> None:
    """It holds what was saved, and what the kernel knows of the descriptor."""
    client = connect(daemon.path)
    client.save_endp(60, b"\xff\n", "p", pair[1])
    client.save_dest(60, "d", "q", b"\xff\n")
    with opened(client.snapshot()) as connection:
        connection.text_factory = bytes
        found = connection.execute(
            "SELECT endpoint, kind, unread_bytes FROM connection JOIN descriptor"
            " ON connection_id = id"
        ).fetchall()
        assert found == [(b"\xff\n", b"unix", 0)]
        assert connection.execute("SELECT destination FROM binding").fetchall() == [(b"d",)]


def test_it_is_sealed(client: Client) -> None:
    """Nobody can write to it, shrink it or make it grow, whichever way it is opened."""
    descriptor = client.snapshot()
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(descriptor, b"x")
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
        try:
            for change in (
                lambda: os.pwrite(again, b"x", 0),
                lambda: os.ftruncate(again, 0),
                lambda: os.ftruncate(again, 10**9),
                lambda: fcntl.fcntl(again, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
            ):
                with pytest.raises(PermissionError):
                    change()
        finally:
            os.close(again)
    finally:
        os.close(descriptor)


def test_facts_of_descriptors_of_every_kind(client: Client, tmp_path: Path) -> None:
    """Addresses, TCP state and what is unread are told; what there is none of is NULL."""
    with ExitStack() as peers:  # which stay: a connection whose peer hangs up is closed
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port)) as ours:
                theirs = peers.enter_context(listener.accept()[0])
                theirs.sendall(b"12345")
                client.save_endp(60, "tcp", "", ours)
                local = f"127.0.0.1:{ours.getsockname()[1]}"
            client.save_endp(60, "listener", "", listener)
        if socket.has_ipv6:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
                udp.bind(("::1", 0))
                client.save_endp(60, "udp", "", udp)
        with socket.socket(socket.AF_UNIX) as named:
            named.bind(str(tmp_path / "named"))
            client.save_endp(60, "named", "", named)
        with socket.socket(socket.AF_UNIX) as abstract:
            abstract.bind(f"\0{tmp_path}")
            client.save_endp(60, "abstract", "", abstract)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as netlink:
            netlink.bind((0, 0))
            client.save_endp(60, "netlink", "", netlink)
        reader, writer = os.pipe()
        peers.callback(os.close, writer)
        os.write(writer, b"123")
        with open(tmp_path / "file", "wb") as file:  # noqa: PTH123
            for endpoint, descriptor in (("pipe", reader), ("file", file.fileno())):
                client.save_endp(60, endpoint, "", descriptor)
        os.close(reader)
        facts = {
            row[0]: row[1:]
            for row in snapshot(
                client,
                "SELECT endpoint, kind, local, peer, tcp_state, rtt_us > 0, unread_bytes"
                " FROM connection JOIN descriptor ON connection_id = id",
            )
        }
    assert facts.pop("tcp") == ("tcp", local, f"127.0.0.1:{port}", "ESTABLISHED", 1, 5)
    assert facts.pop("listener")[:4] == ("tcp", f"127.0.0.1:{port}", None, "LISTEN")
    kind, address, peer, *_ = facts.pop("udp")
    assert (kind, address.startswith("[::1]:"), peer) == ("udp", True, None)
    nothing = (None, None, None)
    assert facts.pop("named")[:3] == ("unix", str(tmp_path / "named"), None)
    assert facts.pop("abstract")[:3] == ("unix", f"@{tmp_path}", None)
    assert facts.pop("netlink")[:3] == ("socket", None, None)
    assert facts.pop("pipe") == ("pipe", None, None, None, None, 3)
    assert facts.pop("file") == ("file", None, None, *nothing)
    assert not facts


def test_what_is_on_its_way_to_its_finder_is_still_there(
    daemon: Daemon, client: Client, pair: Pair
) -> None:
    """A connection is live until its descriptor is sent, though its row is taken before."""
    client.save_endp(60, "e", "", pair[1])
    with Wire(daemon.path) as finder:
        finder.announcement()
        finder.send(encode([(b"request", b"find_endp"), (b"label", b"e")]))
        assert finder.receive_message()[0] == (b"status", b"0")
        both = "SELECT count(*) FROM connection JOIN descriptor ON connection_id = id"
        assert snapshot(client, both) == [(1,)]
        assert snapshot(client, "SELECT count(*) FROM event WHERE kind = 'found'") == [(0,)]


class Traffic:
    """Clients that save and find without pause, in both modes."""

    def __init__(self, path: Path, clients: int) -> None:
        self._path = path
        self._clients = clients
        self._enough = Event()
        self.saved = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let them work meanwhile."""
        with ThreadPoolExecutor(self._clients) as threads:
            work = [threads.submit(self._work, seed) for seed in range(self._clients)]
            try:
                yield
            finally:
                self._enough.set()
        self.saved = sum(each.result() for each in work)

    def _work(self, seed: int) -> int:
        random, saved = Random(seed), 0
        with (
            Client(self._path, inline=bool(seed % 2)) as client,
            open(os.devnull) as something,  # noqa: PTH123
        ):
            while not self._enough.is_set():
                label = f"{random.randrange(50)}"
                if random.random() < 0.5:
                    saved += client.save_endp(random.choice((1, 60)), label, "", something)
                else:
                    client.save_dest(60, label, "", f"{random.randrange(50)}")
                    found = getattr(client, random.choice(("find_endp", "find_dest")))(label)
                    if found:
                        found.close()
        return saved


def check(connection: sqlite3.Connection) -> int:
    """Insist on a snapshot in which everything agrees; return how many were saved."""
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    ways_out = ", ".join(f"'{way}'" for way in WAYS_OUT)
    saved, found, expired = (
        connection.execute(
            f"SELECT connection_id FROM event WHERE {condition} AND connection_id IS NOT NULL"
        ).fetchall()
        for condition in ("kind = 'save_endp' AND status = 0", "kind = 'found'", "kind = 'expired'")
    )
    out = connection.execute(
        f"SELECT connection_id FROM event WHERE kind IN ({ways_out}) AND connection_id IS NOT NULL"
    ).fetchall()
    live = connection.execute("SELECT id FROM connection").fetchall()
    described = connection.execute("SELECT connection_id FROM descriptor").fetchall()
    assert sorted(live) == sorted(described)
    assert sorted(saved) == sorted(out + live)
    counters = dict(connection.execute("SELECT name, value FROM counter").fetchall())
    assert counters.get("save_endp_ok", 0) == len(saved)
    assert counters.get("connections_found", 0) == len(found)
    assert counters.get("connections_expired", 0) == len(expired)
    return len(saved)


@pytest.mark.slow
def test_they_are_whole_in_the_middle_of_traffic(daemon: Daemon, client: Client) -> None:
    """In every snapshot each connection is live or has one way out, and counters agree."""
    traffic = Traffic(daemon.path, 4)
    seen = [0]
    with traffic.running():
        while len(seen) < 30 or seen[-1] < 300:
            with opened(client.snapshot()) as connection:
                seen.append(check(connection))
    assert seen == sorted(seen)
    with opened(client.snapshot()) as connection:
        assert check(connection) == traffic.saved


def test_many_at_once(daemon: Daemon, client: Client, pair: Pair) -> None:
    """Fifty clients each get one of their own, and nothing is left open of them."""
    client.save_endp(60, "e", "", pair[1])
    before = descriptors_of(daemon.pid)

    def ask(_: int) -> list[tuple[Any, ...]]:
        with Client(daemon.path) as another:
            return snapshot(another, "SELECT endpoint FROM connection")

    with ThreadPoolExecutor(50) as threads:
        assert list(threads.map(ask, range(50))) == [[("e",)]] * 50
    eventually(lambda: descriptors_of(daemon.pid) == before)
    eventually(lambda: children_of(daemon.pid) == "")


def test_who_leaves_before_it_is_there_leaves_nothing_behind(
    daemon: Daemon, client: Client
) -> None:
    """The image that nobody waits for any more is closed."""
    assert client.find_endp("e") is None
    before = descriptors_of(daemon.pid)
    for _ in range(5):
        with Wire(daemon.path) as leaver:
            leaver.announcement()
            leaver.send(encode([(b"request", b"hello")]) + encode([(b"request", b"snapshot")]))
    eventually(lambda: descriptors_of(daemon.pid) == before)
    eventually(lambda: children_of(daemon.pid) == "")
    assert snapshot(client, "SELECT count(*) FROM client WHERE disconnected_at IS NULL") == [(1,)]


def test_requests_behind_it_are_answered_after_it(daemon: Daemon, pair: Pair) -> None:
    """Replies come in the order of the requests, the snapshot's among them."""
    find = encode([(b"request", b"find_endp"), (b"label", b"nothing")])
    miss = encode([(b"status", b"2"), (b"property", b"")])
    ask = encode([(b"request", b"snapshot")])
    with Wire(daemon.path) as client:
        client.announcement()
        client.send(encode([(b"request", b"hello")]) + find + ask + find * 100 + ask + find)
        assert client.receive_message()[0] == (b"status", b"0")
        expected = [miss, *[encode([(b"status", b"0")])], *[miss] * 100]
        expected += [encode([(b"status", b"0")]), miss]
        assert [client.receive_message_bytes() for _ in expected] == expected
        _, descriptors = client.receive_raw()
        assert len(descriptors) == 2
        for descriptor in descriptors:
            os.close(descriptor)
    assert pair


def test_the_base_protocol_knows_no_such_request(daemon: Daemon) -> None:
    """Without inline mode the answer is that of the genuine program to what it does not know."""
    bad = encode([(b"status", b"1")])
    with Wire(daemon.path) as client:
        client.announcement()
        for name in (b"snapshot", b"purge_endp", b"purge_dest", b"purge_id"):
            client.send(encode([(b"request", name), (b"label", b"x")]))
            assert client.receive_message_bytes() == bad


@pytest.mark.parametrize("stop", [False, True], ids=["goes on", "stops"])
def test_a_child_that_dies_costs_one_refusal(daemon: Daemon, client: Client, stop: bool) -> None:
    """The one who asked is told, the next one gets a snapshot, and a stop waits for no child."""
    with open(os.devnull) as something, ThreadPoolExecutor(1) as threads:  # noqa: PTH123
        client.save_many([(60, f"{number}", "", something) for number in range(3000)])
        with Client(daemon.path) as another:
            asking = threads.submit(another.snapshot)
            eventually(lambda: children_of(daemon.pid) or asking.done())
            (child,) = children_of(daemon.pid).split()
            if stop:
                assert daemon.terminate() == 0
                assert asking.exception() is not None
                return
            os.kill(int(child), 9)
            with pytest.raises(Refused, match="log"):
                os.close(asking.result())
        daemon.wait_for_log("cannot take a snapshot now")
        asked = "SELECT status, detail FROM event WHERE kind = 'snapshot'"
        assert snapshot(client, asked) == [(2, "see the log")]


@pytest.mark.skipif(not MAY_RAISE_PRIORITY, reason="the child is not in SCHED_IDLE then")
def test_a_child_that_has_waited_for_long_gets_its_share_of_the_processor(
    daemon: Daemon, client: Client
) -> None:
    """On a machine that is never idle, a snapshot comes all the same."""
    idle: int | None = None
    with ThreadPoolExecutor(1) as threads:
        while idle is None:
            asking = threads.submit(client.snapshot)
            while idle is None and not asking.done():
                for child in map(int, children_of(daemon.pid).split()):
                    with suppress(ProcessLookupError):
                        if os.sched_getscheduler(child) == os.SCHED_IDLE:
                            os.kill(child, signal.SIGSTOP)  # as if it got no processor
                            idle = child
            if idle is None or asking.done():
                os.close(asking.result())
                idle = None
        eventually(lambda: os.sched_getscheduler(idle) == os.SCHED_OTHER)
        os.kill(idle, signal.SIGCONT)
        os.close(asking.result())


@pytest.mark.root
@pytest.mark.skipif(not MAY_RAISE_PRIORITY, reason="this needs CAP_SYS_NICE")
@pytest.mark.parametrize(
    ("own", "user", "expected"),
    [
        (-5, "0:0", {(0, os.SCHED_IDLE)}),
        (8, "0:0", {(8, os.SCHED_IDLE)}),
        (-5, f"{UID}:{GID}", {(5, os.SCHED_OTHER), (10, os.SCHED_OTHER)}),
        (0, f"{UID}:{GID}", {(5, os.SCHED_OTHER), (10, os.SCHED_OTHER)}),
        (8, f"{UID}:{GID}", {(13, os.SCHED_OTHER), (18, os.SCHED_OTHER)}),
    ],
)
def test_the_child_goes_before_nobody(own: int, user: str, expected: set[tuple[int, int]]) -> None:
    """Whatever the priority of the daemon, it lets others go first, and can be urged if idle."""
    seen = set[tuple[int, int]]()
    with ExitStack() as stack:
        directory = stack.enter_context(private_directory())
        daemon = stack.enter_context(Daemon(directory / "socket", "--user", user))
        client = stack.enter_context(Client(daemon.path))
        threads = stack.enter_context(ThreadPoolExecutor(1))
        os.setpriority(os.PRIO_PROCESS, daemon.pid, own)
        until = time.monotonic() + DEADLINE
        while not expected <= seen:
            assert time.monotonic() < until, seen
            asking = threads.submit(client.snapshot)
            while not asking.done():
                for child in map(int, children_of(daemon.pid).split()):
                    with suppress(ProcessLookupError):
                        priority = os.getpriority(os.PRIO_PROCESS, child)
                        seen.add((priority, os.sched_getscheduler(child)))
            os.close(asking.result())


class Asker:
    """Waits for a snapshot."""

    def __init__(self, then: Callable[[], object] = list) -> None:
        """Do something when it has come."""
        self._then = then
        self.got: list[int | None] = []
        self.aborted = False

    def snapshot_taken(self, descriptor: int | None) -> None:
        """Take it."""
        self.got.append(descriptor)
        self._then()

    def abort(self) -> None:
        """Note that something went wrong."""
        self.aborted = True


class BrokenAsker(Asker):
    """Fails at everything."""

    def snapshot_taken(self, descriptor: int | None) -> None:
        """Fail."""
        super().snapshot_taken(descriptor)
        raise RuntimeError

    def abort(self) -> None:
        """Fail."""
        super().abort()
        raise RuntimeError


async def ask(
    database: Opened,
    *askers: Asker,
    on_their_way: Callable[[], Iterable[Connection]] = tuple,
    figures: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Let these ask for a snapshot of a cache in this process, and wait until all have it."""
    poller = Poller(asyncio.get_running_loop())
    cache = Cache(database.database, database.clock, Limits(300))
    work = Snapshots(database.database, cache, poller, on_their_way, tuple, figures)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work.run)
        for asker in askers:
            work.ask(asker)
        await until(lambda: all(asker.got for asker in askers))
        tasks.cancel_scope.cancel()
    # The poller closes the pidfd of a child once it has seen that the child ended.
    await until(lambda: "anon_inode:[pidfd]" not in descriptors_of(os.getpid()).values())
    await until(lambda: not children_of(os.getpid()))
    poller.close()
    cache.close()
    assert cache.closer.finish(DEADLINE) == 0


@pytest.fixture
def buried() -> Iterator[None]:
    """Let children of this process be gone when they end, as the daemon does."""
    before = signal.getsignal(signal.SIGCHLD)
    process.reap_children()
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("buried")
def test_what_fails_for_one_asker_fails_for_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing that goes wrong while a snapshot is handed out ends the task that does it."""
    before = descriptors_of(os.getpid())
    with Opened(MEMORY) as database, ExitStack() as shortage:
        broken = BrokenAsker(lambda: shortage.enter_context(descriptors_left(0)))
        first, last = Asker(), Asker(shortage.close)
        database.run(ask(database, first, broken, last))
        for asker in (first, broken):
            assert asker.got[0] is not None
            os.close(asker.got[0])
        assert (broken.aborted, last.got, last.aborted) == (True, [None], False)
    assert "cannot hand a snapshot out now: [Errno 24] Too many open files" in caplog.text
    assert descriptors_of(os.getpid()) == before


def test_a_bug_in_taking_a_snapshot_ends_no_task(caplog: pytest.LogCaptureFixture) -> None:
    """All who ask are told that there is none, and it is logged."""

    def fail() -> NoReturn:
        raise RuntimeError

    with Opened(MEMORY) as database:
        askers = Asker(), Asker()
        database.run(ask(database, *askers, on_their_way=fail))
        assert [asker.got for asker in askers] == [[None], [None]]
    assert "cannot take a snapshot now, please report it" in caplog.text


@pytest.mark.usefixtures("buried")
def test_a_child_that_has_ended_is_not_scheduled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may belong to another process by then."""
    read, existed = os.read, list[bool]()

    def end() -> NoReturn:  # in the child
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def read_when_it_has_ended(descriptor: int, size: int) -> bytes:
        data = read(descriptor, size)
        if not data:
            eventually(lambda: not children_of(os.getpid()))
        return data

    def schedule(pid: int, *_: object) -> None:
        existed.append(Path(f"/proc/{pid}").exists())

    monkeypatch.setattr(os, "read", read_when_it_has_ended)
    monkeypatch.setattr(os, "sched_setscheduler", schedule)
    with Opened(MEMORY) as database:
        asker = Asker()
        database.run(ask(database, asker, figures=end))
        assert asker.got == [None]
    assert all(existed)


def no_descriptor(_: int) -> int:
    """Fail as system calls do at the limit of open files."""
    raise OSError(errno.EMFILE, "Too many open files")


def test_a_child_that_cannot_be_watched_is_not_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a process nor a descriptor stays when there is no descriptor for the process."""
    pid = os.getpid()
    before = descriptors_of(pid), children_of(pid)
    monkeypatch.setattr(os, "pidfd_open", no_descriptor)
    with Opened(MEMORY) as database:
        asker = Asker()
        database.run(ask(database, asker))
        assert asker.got == [None]
    assert "Too many open files" in caplog.text
    assert (descriptors_of(pid), children_of(pid)) == before


@pytest.mark.parametrize("image", [True, False], ids=["image", "none"])
def test_a_snapshot_waits_until_what_was_found_is_sent(image: bool) -> None:
    """A descriptor that has left is not put back, though the client goes before the snapshot."""

    async def converse() -> None:
        with slow_session(database) as slow:
            slow.save(b"p" * 30_000)
            find = encode([(b"request", b"find_endp"), (b"label", b"e")])
            ask = encode([(b"request", b"snapshot")])
            slow.client.sendall(encode([(b"request", b"hello")]) + find + ask)
            await until(lambda: slow.asked)
            slow.asked[0].snapshot_taken(os.open(os.devnull, os.O_RDONLY) if image else None)
            assert slow.session.half_done
            _, descriptors, *_ = socket.recv_fds(slow.client, 10, 9)
            assert len(descriptors) == 1
            os.close(descriptors[0])
            slow.client.close()
            await until(lambda: slow.left)
            assert slow.left == {"found": 1}

    before = descriptors_of(os.getpid())
    with Opened(MEMORY) as database:
        database.run(converse())
        assert database.rows("SELECT count(*) FROM connection") == [(0,)]
    assert descriptors_of(os.getpid()) == before


def test_who_hangs_up_is_seen_at_once(client: Client, pair: Pair) -> None:
    """A connection is watched soon after it was saved, and closed when its peer hangs up."""
    client.save_endp(60, "e", "", pair[1])
    pair[1].close()
    time.sleep(0.2)
    pair[0].close()
    eventually(lambda: snapshot(client, "SELECT 1 FROM event WHERE kind = 'hung_up'"))
    age = "SELECT age < 60 FROM event WHERE kind = 'hung_up'"
    assert snapshot(client, age) == [(1,)]


# Who may


@pytest.mark.parametrize(
    ("options", "groups", "permitted"),
    [
        ([], (), False),
        ([], (GROUP,), False),
        (["--admin-uids", f"0,{UID}"], (), True),
        (["--admin-gids", f"{GID}"], (), True),
        (["--admin-gids", f"{GROUP}"], (1, GROUP), True),
        (["--admin-gids", f"{GROUP}", "--admin-uids", "1"], (), False),
    ],
)
@pytest.mark.root
def test_permission(options: list[str], groups: tuple[int, ...], permitted: bool) -> None:
    """Root may, and whoever the settings name, by user or by any group; others are told no."""

    def ask() -> None:
        with Client(path) as client:
            try:
                os.close(client.snapshot())
            finally:
                client.purge(["e"], ["d"])

    with private_directory() as directory:
        path = directory / "socket"
        with Daemon(path, "--socket-mode", "0666", *options), Client(path) as root:
            if permitted:
                as_user(ask, groups)
            else:
                with pytest.raises(Refused, match="not permitted"):
                    as_user(ask, groups)
            events = snapshot(
                root,
                "SELECT kind, status, uid, detail FROM event JOIN client ON client.id = client_id"
                f" WHERE uid = {UID} ORDER BY event.id",
            )
    status, detail = (0, None) if permitted else (2, "not permitted")
    kinds = ("snapshot", "purge_endp", *["purge_dest"] * permitted)
    expected = [(kind, status, UID, detail) for kind in kinds]
    if not permitted:  # both purges were sent ahead of the first refusal, or not
        events = events[: len(expected)]
    assert events == expected


# Purge


def test_purge(connect: Connect, daemon: Daemon, pair: Pair) -> None:
    """What has these very labels goes at once, whatever the number, and nothing else."""
    client = connect(daemon.path)
    many = 2 * PURGE_SLICE + 1
    ours, theirs = pair
    assert all(client.save_many([(60, "e*", f"{number}", theirs) for number in range(many)]))
    theirs.close()
    with open(os.devnull) as something:  # noqa: PTH123
        client.save_endp(60, "e2", "", something)
    client.save_dest_many([(60, "d", f"{number}", "e2") for number in range(PURGE_SLICE)])
    client.save_dest(60, "d2", "", "e2")
    assert client.purge(["e*", "nothing"], ["d", "e2"]) == Purged(many, PURGE_SLICE)
    assert ours.recv(1) == b""  # all of them are closed
    assert client.find_endp("e*") is None
    assert client.find_dest("d") is None
    found = client.find_dest("d2")
    assert found is not None
    found.close()
    assert client.purge() == Purged(0, 0)
    assert client.purge(["e*"]) == Purged(0, 0)


def test_what_was_purged_is_on_record(client: Client, pair: Pair) -> None:
    """Each way out names what left and who purged it, and the counters agree."""
    client.save_endp(60, "e", "", pair[1])
    client.save_dest(60, "d", "", "e")
    client.purge(["e"], ["d", "d"])
    with opened(client.snapshot()) as connection:
        assert connection.execute(
            "SELECT kind, status, destination, endpoint, connection_id > 0, binding_id > 0, pid"
            " FROM event JOIN client ON client.id = client_id WHERE kind GLOB 'purge*'"
        ).fetchall() == [
            ("purged", None, None, "e", 1, None, os.getpid()),
            ("purge_endp", 0, None, "e", None, None, os.getpid()),
            ("purged", None, "d", "e", None, 1, os.getpid()),
            ("purge_dest", 0, "d", None, None, None, os.getpid()),
            ("purge_dest", 0, "d", None, None, None, os.getpid()),
        ]
        counters = dict(connection.execute("SELECT name, value FROM counter").fetchall())
        assert counters["connections_purged"] == counters["bindings_purged"] == 1
        assert (counters["purge_endp_ok"], counters["purge_dest_ok"]) == (1, 2)
