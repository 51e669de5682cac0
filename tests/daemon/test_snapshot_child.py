"""The child process that takes a snapshot: its priority, its end, and errors."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NoReturn

import anyio
import anyio.lowlevel
import pytest

from scache import Client, Refused
from scache.cache import Cache
from scache.cache.limits import Limits
from scache.daemon import snapshots
from scache.daemon.poller import Poller
from scache.daemon.snapshots import Snapshots
from scache.model import Connection
from scache.store.database import MEMORY
from scache.unix import process
from tests.support.as_user import GID, MAY_RAISE_PRIORITY, UID
from tests.support.children import children_of
from tests.support.daemon import Daemon
from tests.support.descriptors import descriptors_left, descriptors_of
from tests.support.dialogue import DEADLINE, eventually, until
from tests.support.postfix_setup import private_directory
from tests.support.snapshots import snapshot
from tests.support.store_fixture import Opened


@pytest.mark.parametrize("stop", [False, True], ids=["goes on", "stops"])
def test_killed_child_refuses_one_request(daemon: Daemon, client: Client, stop: bool) -> None:
    """The client gets a refusal, and the next one a snapshot. The daemon can stop meanwhile."""
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
def test_child_leaves_sched_idle_after_a_while(daemon: Daemon, client: Client) -> None:
    """A snapshot is taken even if no processor is ever idle."""
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
def test_child_runs_at_a_lower_priority_than_the_daemon(
    own: int, user: str, expected: set[tuple[int, int]]
) -> None:
    """The priority depends on whether the child can be given a higher one later."""
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
    """A session that waits for a snapshot."""

    def __init__(self, then: Callable[[], object] = list) -> None:
        """Call ``then`` when the snapshot is taken."""
        self._then = then
        self.got: list[int | None] = []
        self.shortage: str | None = None
        self.aborted = False

    def snapshot_taken(self, descriptor: int | None, shortage: str | None = None) -> None:
        """Remember the descriptor and the shortage."""
        self.got.append(descriptor)
        self.shortage = shortage
        self._then()

    def abort(self) -> None:
        """Remember the call."""
        self.aborted = True


class BrokenAsker(Asker):
    """A session whose methods raise errors."""

    def snapshot_taken(self, descriptor: int | None, shortage: str | None = None) -> None:
        """Raise an error."""
        super().snapshot_taken(descriptor, shortage)
        raise RuntimeError

    def abort(self) -> None:
        """Raise an error."""
        super().abort()
        raise RuntimeError


async def ask(
    database: Opened,
    *askers: Asker,
    on_their_way: Callable[[], Iterable[Connection]] = tuple,
    figures: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Request snapshots of a cache in this process, and wait until all of them are taken."""
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
def reaping() -> Iterator[None]:
    """Let the kernel reap the children of this process, as in the daemon."""
    before = signal.getsignal(signal.SIGCHLD)
    process.reap_children()
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("reaping")
def test_error_of_one_session_does_not_affect_others(caplog: pytest.LogCaptureFixture) -> None:
    """An error while a snapshot is handed out does not end the task."""
    before = descriptors_of(os.getpid())
    with Opened(MEMORY) as database, ExitStack() as shortage:
        broken = BrokenAsker(lambda: shortage.enter_context(descriptors_left(0)))
        first, last = Asker(), Asker(shortage.close)
        database.run(ask(database, first, broken, last))
        for asker in (first, broken):
            assert asker.got[0] is not None
            os.close(asker.got[0])
        assert (broken.aborted, last.got, last.aborted) == (True, [None], False)
    assert "cannot hand a snapshot out now: Too many open files" in caplog.text
    assert descriptors_of(os.getpid()) == before


def test_bug_in_taking_a_snapshot_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """All sessions that wait for the snapshot get None."""

    def fail() -> NoReturn:
        raise RuntimeError

    with Opened(MEMORY) as database:
        askers = Asker(), Asker()
        database.run(ask(database, *askers, on_their_way=fail))
        assert [asker.got for asker in askers] == [[None], [None]]
    assert "cannot take a snapshot now, please report it" in caplog.text


@pytest.mark.usefixtures("reaping")
@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("TIMEOUT", "it took longer than 0 s"),
        ("COPY_TIMEOUT", "commits waited for it longer than 0 s"),
    ],
)
def test_snapshot_out_of_time_logs_which_limit_it_exceeded(
    limit: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time that commits wait has a limit of its own."""
    monkeypatch.setattr(snapshots, limit, 0)
    with Opened(MEMORY) as database:
        asker = Asker()
        database.run(ask(database, asker))
        assert asker.got == [None]
    assert [each.getMessage() for each in caplog.records if each.levelname == "WARNING"] == [
        f"cannot take a snapshot now: {reason}"
    ]


@pytest.mark.usefixtures("reaping")
def test_child_that_has_ended_is_not_scheduled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process id may belong to another process."""
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


@pytest.mark.usefixtures("reaping")
def test_child_does_not_end_before_the_daemon_has_its_pidfd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A daemon that has to wait for a processor after fork(2) takes the snapshot nevertheless."""
    pidfd_open = os.pidfd_open

    def open_late(pid: int) -> int:
        until = time.monotonic() + 0.5  # a child that does not wait ends within milliseconds
        while children_of(os.getpid()) and time.monotonic() < until:
            time.sleep(0.01)
        return pidfd_open(pid)

    monkeypatch.setattr(os, "pidfd_open", open_late)
    with Opened(MEMORY) as database:
        asker = Asker()
        database.run(ask(database, asker))
        (image,) = asker.got
        assert image is not None
        os.close(image)


def no_descriptor(_: int) -> int:
    """Fail as system calls do at the limit on open files."""
    raise OSError(errno.EMFILE, "Too many open files")


def test_child_without_a_pidfd_is_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The daemon leaves no process and no descriptor."""
    pid = os.getpid()
    before = descriptors_of(pid), children_of(pid)
    monkeypatch.setattr(os, "pidfd_open", no_descriptor)
    with Opened(MEMORY) as database:
        asker = Asker()
        database.run(ask(database, asker))
        assert asker.got == [None]
    assert "Too many open files" in caplog.text
    assert (descriptors_of(pid), children_of(pid)) == before
