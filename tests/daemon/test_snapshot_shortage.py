"""Snapshots for which the daemon lacks processes, memory, file size, descriptors or memfds."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from scache import Client, NotNow, Refused, errors
from scache.protocol import client as client_protocol
from scache.protocol.messages import Hello, encode_request
from tests.support.as_user import GID, UID
from tests.support.children import children_of
from tests.support.commands import SCACHE, run_command, started
from tests.support.daemon import Daemon
from tests.support.descriptors import descriptors_of
from tests.support.dialogue import eventually
from tests.support.limits import limited
from tests.support.postfix_setup import private_directory
from tests.support.snapshots import snapshot
from tests.support.wire import DEADLINE, Wire, encode

COUNT = 600
"""Cached connections with properties of 60 kB, so an image has 36 MB."""


def address_space(pid: int) -> int:
    """Return the size of the address space of a process in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[0])
    return pages * resource.getpagesize()


LIMITS: list[tuple[int, Callable[[int], int], str, str]] = [
    (resource.RLIMIT_NPROC, lambda _: 0, "processes", "out of processes"),
    (resource.RLIMIT_FSIZE, lambda _: 4096, "file_size", "the limit on file size is too low"),
    (resource.RLIMIT_FSIZE, lambda _: 0, "file_size", "the limit on file size is too low"),
    (resource.RLIMIT_AS, address_space, "memory", "out of memory"),
    (
        resource.RLIMIT_NOFILE,
        lambda pid: len(descriptors_of(pid)) + 1,
        "descriptors",
        "out of descriptors",
    ),
]


@pytest.mark.root
@pytest.mark.parametrize(
    ("what", "soft", "word", "text"), LIMITS, ids=["processes", "file", "empty", "memory", "open"]
)
def test_snapshot_at_a_limit_is_refused_with_the_reason(
    what: int, soft: Callable[[int], int], word: str, text: str
) -> None:
    """The command exits with 8. The daemon serves its clients, and the next snapshot is taken."""
    with ExitStack() as stack:
        path = stack.enter_context(private_directory()) / "socket"
        daemon = stack.enter_context(Daemon(path, "--user", f"{UID}:{GID}"))
        client = stack.enter_context(Client(path))
        with open(os.devnull) as something:  # noqa: PTH123
            for number in range(COUNT):
                assert client.save_endp(60, f"{number}", "p" * 60_000, something)
        before = descriptors_of(daemon.pid)
        with limited(daemon.pid, what, soft(daemon.pid)):
            with pytest.raises(NotNow, match=text) as caught:
                client.snapshot()
            assert caught.value.shortage == word
            result = run_command(*SCACHE, "stats", "--socket", path)
            assert (result.returncode, result.stdout) == (errors.EXIT_NOT_NOW, "")
            assert text in result.stderr
        assert snapshot(client, "SELECT count(*) FROM connection") == [(COUNT,)]
        eventually(lambda: descriptors_of(daemon.pid).keys() <= before.keys())
        assert not any("please report it" in line for line in daemon.log())


def test_snapshot_whose_child_is_killed_is_refused_for_now(daemon: Daemon, client: Client) -> None:
    """The kernel kills a process so when the machine is out of memory."""
    with open(os.devnull) as something, ThreadPoolExecutor(1) as threads:  # noqa: PTH123
        client.save_many([(60, f"{number}", "", something) for number in range(3000)])
        asking = threads.submit(client.snapshot)
        eventually(lambda: children_of(daemon.pid) or asking.done())
        (child,) = children_of(daemon.pid).split()
        os.kill(int(child), signal.SIGKILL)
        with pytest.raises(NotNow, match="its process was killed") as caught:
            asking.result()
        assert caught.value.shortage == "child"


_NO_MEMFD = "from tests.daemon.test_snapshot_shortage import without_memfd; without_memfd()"


def without_memfd() -> None:
    """Execute the command of sys.argv in a sandbox that refuses memfd_create(2)."""
    memfd_create = {"x86_64": 319, "aarch64": 279}[os.uname().machine]
    allow, refuse = 0x7FFF0000, 0x00050000 | 1  # EPERM
    code = [
        (0x20, 0, 0, 0),  # load the number of the system call
        (0x15, 0, 1, memfd_create),
        (0x06, 0, 0, refuse),
        (0x06, 0, 0, allow),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
    fprog = ctypes.create_string_buffer(struct.pack("HP", len(code), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, fprog, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    os.execv(sys.argv[1], sys.argv[1:])


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="other numbers there")
def test_snapshot_without_memfd_is_refused_for_now(path: Path) -> None:
    """A sandbox may refuse the system call."""
    prefix = (sys.executable, "-c", _NO_MEMFD)
    with Daemon(path, prefix=prefix), Client(path) as client:
        client.ping()
        with pytest.raises(NotNow, match=r"memfd_create\(2\) is refused") as caught:
            client.snapshot()
        assert caught.value.shortage == "memfd"


@pytest.mark.parametrize("features", [None, frozenset({b"purge_id"})], ids=["none", "others"])
def test_client_that_does_not_know_shortages_gets_the_reason_alone(
    daemon: Daemon, features: frozenset[bytes] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier clients accept no third attribute in a refusal."""
    hello = encode_request(Hello(features))
    with limited(daemon.pid, resource.RLIMIT_FSIZE, 0), Wire(daemon.path) as wire:
        wire.announcement()
        wire.send(hello)
        wire.receive_message()
        wire.send(encode([(b"request", b"snapshot")]))
        status, reason = wire.receive_message()
        assert (status, reason[0]) == ((b"status", b"2"), b"reason")
        monkeypatch.setattr(client_protocol, "HELLO", hello)
        with Client(daemon.path) as client, pytest.raises(Refused, match="file size") as caught:
            client.snapshot()
        assert type(caught.value) is Refused


def test_events_follow_goes_on_after_a_shortage(path: Path) -> None:
    """One line on stderr says why, and events of the time between are printed later."""
    with Daemon(path) as daemon, Client(path) as client:
        command = ("events", "--follow", "--interval", "0.05", "--format", "json")
        with started(*SCACHE, *command, "--socket", str(path)) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            client.find_endp("first")
            assert b"first" in process.stdout.readline()
            with limited(daemon.pid, resource.RLIMIT_FSIZE, 0):
                said = process.stderr.readline()
                client.find_endp("second")
                time.sleep(0.2)
                assert process.poll() is None
            # Snapshots that failed are events, too.
            assert any(b"second" in line for line in process.stdout)
            process.terminate()
            assert process.stderr.read() == b""
            process.wait(DEADLINE)
    assert said == (
        b"scache: no snapshot can be taken now: the limit on file size is too low (ulimit -f); "
        b"see the daemon's log; trying again\n"
    )
