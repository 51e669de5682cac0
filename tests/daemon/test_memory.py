"""A daemon that runs out of memory, or whose limit on bytes is reached."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scache import Client, errors
from tests.support.daemon import Daemon
from tests.support.dialogue import eventually
from tests.support.peer import Parked
from tests.support.served_client import count

LONG = "x" * 2000

ROOM = 24 * 1024 * 1024
"""Bytes of address space that a daemon gets beyond what it has."""

ENOUGH = 10
"""Refused requests after which a test goes on."""


@contextmanager
def short_of_memory(pid: int) -> Iterator[None]:
    """Let a process have ROOM more bytes of address space, and no more."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))


def flood(path: Path) -> tuple[int, int]:
    """Save bindings with long labels until many are refused; return the accepted and refused."""
    accepted = refused = 0
    while refused < ENOUGH:
        try:
            with Client(path) as client:
                while refused < ENOUGH:
                    label = f"{LONG}{accepted + refused}"
                    if client.save_dest(60, label, LONG, label):
                        accepted += 1
                    else:
                        refused += 1
        except errors.Unavailable:
            refused += 1
    return accepted, refused


@pytest.mark.parametrize("audit_rows", ["0", "100000"])
def test_daemon_survives_a_client_that_uses_up_its_memory(
    path: Path, database: str, audit_rows: str
) -> None:
    """Saves are refused meanwhile; what was cached before stays, and can be found."""
    options = ("--max-bytes", "0", "--audit-rows", audit_rows)
    with Daemon(path, *options, database=database) as daemon:
        with Client(path) as client, Parked(client, 60, "kept"):
            with short_of_memory(daemon.pid):
                accepted, _ = flood(path)
                assert accepted > 100
                with Client(path) as other:
                    found = other.find_endp("kept")
                    assert found is not None
                    found.close()
            with Client(path) as other:
                eventually(lambda: other.save_dest(60, "later", "", "kept"))
        assert daemon.terminate() == 0
        log = "\n".join(daemon.log())
        assert "unforeseen" not in log
        assert "please report it" not in log
        assert "saves are refused until it can" in log or "out of memory" in log


def test_limit_on_bytes_keeps_a_client_from_using_up_the_memory(path: Path, database: str) -> None:
    """The same requests are all carried out; the oldest bindings give way."""
    with Daemon(path, "--max-bytes", "1000000", "--audit-rows", "0", database=database) as daemon:
        with short_of_memory(daemon.pid), Client(path) as client:
            for number in range(5000):
                label = f"{LONG}{number}"
                assert client.save_dest(60, label, LONG, label)
            assert count(client, "bindings_evicted") > 4000
        assert daemon.terminate() == 0
