"""The limits on what is cached, on messages and on open files."""

from __future__ import annotations

import resource
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from scache import Client, errors
from scache.daemon.capacity import MIN_OPEN_FILES, Capacity, capacity, most_open_files
from scache.protocol.server import MAX_AHEAD_SIZE
from scache.settings.declarations import Settings
from scache.unix.process import raise_open_files
from tests.support.clients import Pair
from tests.support.daemon import Daemon, stopped
from tests.support.descriptors import descriptors_of
from tests.support.dialogue import DEADLINE, eventually
from tests.support.served_client import count, pid_of, refusals, served
from tests.support.snapshots import snapshot
from tests.support.starting import refused
from tests.support.wire import Wire, encode

OPEN_FILES = 160


@pytest.mark.parametrize(
    ("open_files", "settings", "expected"),
    [
        (20_000, {}, Capacity(1000, 18_936)),
        (160, {}, Capacity(24, 72)),
        (160, {"max_clients": 3, "max_connections": 50}, Capacity(3, 50)),
        (160, {"max_clients": 90, "max_connections": 150}, Capacity(24, 72)),
        (160, {"descriptor_reserve": 0}, Capacity(40, 120)),
        (10, {}, Capacity(1, 1)),
        (10**9, {}, Capacity(1000, 1_000_000)),
        (10**9, {"max_connections": 3_000_000}, Capacity(1000, 3_000_000)),
    ],
)
def test_capacity_fits_into_the_open_files(
    open_files: int, settings: dict[str, int], expected: Capacity
) -> None:
    """The limits are lowered to what the limit on open files allows, minus the reserve."""
    assert capacity(Settings(**settings), open_files) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("hard", "expected"),
    [(20_000, 20_000), (10**9, 1_001_064), (resource.RLIM_INFINITY, 1_001_064)],
)
def test_limit_on_open_files_is_raised_to_what_the_settings_need(
    hard: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hard limit stays, and a soft limit of a billion is lowered."""
    limits = [(hard, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.append(wanted))
    assert raise_open_files(most_open_files(Settings())) == expected
    assert limits[-1] == (expected, hard)


def test_connection_limit_evicts_the_connection_that_expires_first(
    path: Path, database: str
) -> None:
    """A save at the limit is done."""
    with served(path, "--max-connections", "3", database=database) as client:
        with ExitStack() as ends:
            peers = {}
            for ttl in (50, 20, 90, 40):
                peers[ttl], ours = socket.socketpair()
                ends.enter_context(peers[ttl])
                with ours:
                    assert client.save_endp(ttl, f"{ttl}", "", ours)
            peers[20].settimeout(DEADLINE)
            assert peers[20].recv(1) == b""
            assert client.find_endp("20") is None
            for ttl in (50, 90, 40):
                found = client.find_endp(f"{ttl}")
                assert found is not None
                found.close()
        assert count(client, "connections_evicted") == 1
        evicted = "SELECT endpoint, client_id FROM event WHERE kind = 'evicted'"
        assert snapshot(client, evicted) == [("20", None)]


def test_connections_per_endpoint_are_limited(path: Path, pair: Pair) -> None:
    """A save is refused at the limit, until a connection of the endpoint was found."""
    with served(path, "--max-connections-per-endpoint", "2") as client:
        saved = [client.save_endp(60, label, "", pair[1]) for label in "aaab"]
        assert saved == [True, True, False, True]
        found = client.find_endp("a")
        assert found is not None
        found.close()
        assert client.save_endp(60, "a", "", pair[1])
        assert count(client, "limit_connections_per_endpoint") == 1
        assert refusals(client) == [("save_endp", "limit: connections per endpoint")]


def test_bindings_per_destination_are_limited(path: Path, database: str) -> None:
    """Bindings that exist can be saved again at the limit."""
    with served(path, "--max-bindings-per-destination", "2", database=database) as client:
        saved = [client.save_dest(60, "d", "", endpoint) for endpoint in "abcab"]
        assert saved == [True, True, False, True, True]
        assert client.save_dest(60, "another", "", "c")
        assert count(client, "limit_bindings_per_destination") == 1
        assert refusals(client) == [("save_dest", "limit: bindings per destination")]


def test_bindings_are_limited(path: Path) -> None:
    """A save is refused at the limit, until a binding was removed."""
    with served(path, "--max-bindings", "2") as client:
        assert [client.save_dest(60, d, "", "e") for d in "aabc"] == [True, True, True, False]
        client.purge(destinations=["a"])
        assert client.save_dest(60, "c", "", "e")
        assert count(client, "limit_bindings") == 1
        assert refusals(client) == [("save_dest", "limit: bindings")]


def test_message_size_is_limited(path: Path, pair: Pair) -> None:
    """A longer request is malformed, and is counted."""
    with served(path, "--max-message-size", "100") as client:
        assert client.save_endp(60, "e", "", pair[1])
        with Wire(path) as wire:
            wire.announcement()
            wire.send(encode([(b"request", b"find_endp"), (b"label", b"x" * 100)]))
            assert wire.receive_message()[0] == (b"status", b"1")
        assert count(client, "limit_message_size") == 1
        assert refusals(client) == [("find_endp", "longer than max_message_size")]


def test_data_sent_ahead_of_a_dummy_is_limited(path: Path, pair: Pair) -> None:
    """A client that sends more is disconnected."""
    miss = encode([(b"request", b"find_endp"), (b"label", b"nothing")])
    with served(path, "--max-ahead-size", "1000") as client:
        assert client.save_endp(60, "e", "", pair[1])
        with Wire(path) as wire:
            wire.announcement()
            wire.send(encode([(b"request", b"find_endp"), (b"label", b"e")]))
            assert wire.receive_message()[0] == (b"status", b"0")
            wire.send(miss * (1000 // len(miss) + 1))
            assert wire.receive_raw()[0] == b""
        assert count(client, "limit_ahead_size") == 1
        found = client.find_endp("e")
        assert found is not None
        found.close()
    assert Settings().max_ahead_size == MAX_AHEAD_SIZE


def test_exchange_timeout_is_recorded(path: Path) -> None:
    """A client that stops in an exchange is disconnected."""
    with served(path, "--exchange-timeout", "0.1") as client:
        with Wire(path) as half:
            half.announcement()
            half.send(b"request\0")
            assert half.receive_raw()[0] == b""
        assert count(client, "limit_exchange_timeout") == 1
        assert refusals(client) == [("unknown", "limit: exchange timeout")]


@pytest.mark.parametrize("open_files", [9, 16, MIN_OPEN_FILES - 1])
def test_daemon_does_not_start_with_too_few_open_files(
    open_files: int, path: Path, tmp_path: Path
) -> None:
    """The message names the limit to raise."""
    limit = ("bash", "-c", f'ulimit -n {open_files}; exec "$@"', "bash")
    line = refused(path, tmp_path / "cache.db", errors.EXIT_SETTINGS, *limit)
    assert line == (
        f"scache: only {open_files} files may be open, and the daemon needs {MIN_OPEN_FILES}: "
        "raise the limit (ulimit -n, or LimitNOFILE= in a unit of systemd)\n"
    )


def test_daemon_serves_with_the_fewest_open_files(path: Path, database: str, pair: Pair) -> None:
    """A client is served and can take a snapshot."""
    with (
        Daemon(path, database=database, open_files=MIN_OPEN_FILES) as daemon,
        Client(path) as client,
    ):
        assert client.save_endp(60, "e", "", pair[1])
        assert snapshot(client, "SELECT count(*) FROM descriptor") == [(1,)]
        found = client.find_endp("e")
        assert found is not None
        found.close()
        assert daemon.terminate() == 0


def test_saves_are_done_with_few_open_files(path: Path, database: str) -> None:
    """Saves at the limit are done, the oldest connections are evicted, and nothing is left open.

    Saves of one message are refused if there are not enough open files for its descriptors.
    """
    with Daemon(path, database=database, open_files=OPEN_FILES) as daemon:
        # The daemon closes a UDP socket at once; a file it leaves to a thread.
        with Client(path) as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as something:
            assert client.find_endp("x") is None
            before = descriptors_of(daemon.pid)
            for number in range(1000):
                assert client.save_endp(60, f"{number}", "", something)
            at_once = client.save_many([(60, "many", "", something) for _ in range(1000)])
            assert len(at_once) == 1000
            assert len(descriptors_of(daemon.pid)) < OPEN_FILES
            daemon.wait_for_log("allows only 24 clients and 72 connections")
            assert client.save_endp(60, "last", "", something)
            found = client.find_endp("last")
            assert found is not None
            found.close()
            client.purge(["many", *(f"{number}" for number in range(1000))])
            eventually(lambda: descriptors_of(daemon.pid) == before)
        assert daemon.terminate() == 0


def test_descriptors_that_cannot_be_received_affect_no_other_client(path: Path) -> None:
    """The daemon drops the descriptors of a message if it cannot open them."""
    with Daemon(path, "--descriptor-reserve", "4", open_files=100) as daemon:
        # The daemon closes a UDP socket at once; a file it leaves to a thread.
        with Client(path) as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as something:
            assert client.save_endp(60, "e", "", something)
            for _ in range(20):
                with Wire(path) as hostile:
                    hostile.announcement()
                    hostile.send(encode([(b"request", b"hello")]), [something.fileno()] * 253)
                    assert hostile.receive_message()[0] == (b"status", b"0")
            assert count(client, "limit_open_files") >= 20
            save = [
                (b"request", b"save_endp"),
                (b"ttl", b"9"),
                (b"label", b"e"),
                (b"property", b""),
            ]
            for inline in (True, False):
                with Wire(path) as hostile:
                    hostile.announcement()
                    if inline:
                        hostile.send(encode([(b"request", b"hello")]))
                        assert hostile.receive_message()[0] == (b"status", b"0")
                    hostile.send(encode(save), [something.fileno()] * (253 if inline else 0))
                    if not inline:
                        assert hostile.receive_message() == [(b"dummy", b"")]
                        hostile.send(b"\0", [something.fileno()] * 253)
                    assert hostile.receive_message()[0] == (b"status", b"2")
            refused = "SELECT kind, detail FROM event WHERE status > 0"
            assert snapshot(client, refused) == [("save_endp", "limit: open files")] * 2
            found = client.find_endp("e")
            assert found is not None
            found.close()
        assert daemon.terminate() == 0


def test_client_that_leaves_before_it_is_accepted_is_not_recorded(path: Path) -> None:
    """A client that has sent something is recorded."""
    with served(path) as client:
        before = count(client, "clients_connected")
        with ExitStack() as stack:
            with stopped(pid_of(client)):
                for _ in range(100):
                    stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
                with Wire(path) as wire:
                    wire.send(encode([(b"request", b"find_endp"), (b"label", b"e")]))
                stack.close()
            eventually(lambda: count(client, "clients_connected") == before + 1)
