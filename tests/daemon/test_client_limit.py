"""The client limit: refusals, the messages about it, and its use in the statistics."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from scache import Client
from scache.cli.main import execute
from scache.daemon.capacity import capacity, client_limit_remedy, shortage
from scache.errors import EXIT_OK
from scache.settings.declarations import Settings
from tests.support.as_user import UID
from tests.support.clients import Pair
from tests.support.daemon import Daemon
from tests.support.dialogue import eventually
from tests.support.postfix_setup import private_directory
from tests.support.sample_database import filling
from tests.support.served_client import count, refusals, served
from tests.support.wire import Wire

Capture = pytest.CaptureFixture[str]

RAISE_OPEN_FILES = "(ulimit -n, or LimitNOFILE= in a unit of systemd)"


@contextmanager
def connected(path: Path, count: int) -> Iterator[None]:
    """Connect clients, and receive the announcement for each."""
    with ExitStack() as wires:
        for _ in range(count):
            assert wires.enter_context(Wire(path)).announcement()
        yield


def clients_in(capsys: Capture, *origin: str | Path) -> tuple[int, int, int]:
    """Return the connected clients, the served clients and the limit that stats shows."""
    assert execute(["stats", *map(str, origin), "--format", "json"]) == EXIT_OK
    figures = json.loads(capsys.readouterr().out)
    assert "clients_served" not in figures["settings"]
    limit = figures["limits"]["max_clients"]
    return figures["clients"]["connected"], limit["now"], limit["limit"]


@pytest.mark.parametrize(
    ("options", "open_files", "limit", "remedy"),
    [
        (("--max-clients", "3"), None, 3, "raise max_clients"),
        (
            ("--descriptor-reserve", "20"),
            40,
            5,
            f"raise the limit on open files {RAISE_OPEN_FILES}",
        ),
    ],
    ids=["max_clients", "open files"],
)
def test_log_names_the_limit_that_refuses_clients(
    options: tuple[str, ...], open_files: int | None, limit: int, remedy: str, path: Path
) -> None:
    """The limit is the setting, or the limit on open files if that is lower."""
    with Daemon(path, *options, open_files=open_files) as daemon, connected(path, limit + 1):
        line = daemon.wait_for_log("client limit reached")
    assert f"({limit} connected): refusing requests from new clients; {remedy}" in line


def test_start_names_the_limit_on_open_files() -> None:
    """Only settings that do not fit into the open files are logged at the start."""
    message = shortage(Settings(), capacity(Settings(), 160), 160)
    assert message == (
        "the limit on open files (160) allows only 24 clients and 72 connections: "
        f"raise it {RAISE_OPEN_FILES}"
    )
    few = Settings(max_clients=3, max_connections=50)
    assert shortage(few, capacity(few, 160), 160) is None
    assert client_limit_remedy(few, 3) == "raise max_clients"


def test_stats_counts_served_clients_against_the_limit(path: Path, capsys: Capture) -> None:
    """Refused clients are connected, and do not count against the limit."""
    with Daemon(path, "--max-clients", "2"), connected(path, 5):
        # The command is one more.
        assert clients_in(capsys, "--socket", path) == (6, 2, 2)


@pytest.mark.root
def test_stats_counts_clients_that_are_not_allowed_as_connected_only(capsys: Capture) -> None:
    """A client that is not in allow_uids does not count against the limit."""
    with private_directory() as directory:
        path = directory / "socket"
        options = ("--socket-mode", "0666", "--allow-uids", "0", "--max-clients", "3")
        with Daemon(path, *options), connected(path, 1), ExitStack() as stack:
            os.seteuid(UID)
            try:
                stack.enter_context(connected(path, 2))
            finally:
                os.seteuid(0)
            assert clients_in(capsys, "--socket", path) == (4, 2, 3)


@pytest.mark.parametrize(("clients", "now"), [(3, 3), (12, 10)])
def test_stats_of_a_file_never_exceeds_the_limit(
    clients: int, now: int, tmp_path: Path, capsys: Capture
) -> None:
    """A file does not list the refused clients, so at most the limit counts as served."""
    file = tmp_path / "cache.db"
    with filling(file) as cached:
        for number in range(clients):
            cached.client(number)
        cached.setting(max_clients="10")
    assert clients_in(capsys, "--database", file) == (clients, now, 10)


class TestTooManyClients:
    def test_client_over_the_limit_is_refused_until_another_leaves(
        self, path: Path, pair: Pair
    ) -> None:
        """Requests are refused in both protocols; administrators can take a snapshot."""
        with served(path, "--max-clients", "2") as client:
            assert client.save_endp(60, "e", "", pair[1])
            with closing(Client(path)) as second:
                assert second.save_dest(60, "d", "", "e")
                with Client(path) as inline, Client(path, inline=False) as base:
                    for crowded in (inline, base):
                        assert not crowded.save_endp(60, "e", "", pair[1])
                        assert not crowded.save_dest(60, "d", "", "e")
                        assert crowded.find_endp("e") is None
                        assert crowded.find_dest("d") is None
                    # Administrators get a snapshot over the limit, too.
                    assert count(inline, "save_endp_fail") == 2
                    second.close()
                    eventually(lambda: base.save_dest(60, "d", "", "e"))
            assert ("find_dest", "limit: clients") in refusals(client)

    @pytest.mark.parametrize("options", [("--max-clients", "1"), ("--allow-uids", f"{UID}")])
    def test_oldest_refused_client_is_disconnected_for_a_new_one(
        self, path: Path, options: list[str]
    ) -> None:
        """At most MAX_REFUSED refused clients stay connected."""
        with served(path, *options) as client, ExitStack() as wires:
            assert client.find_endp("e") is None
            flood = [wires.enter_context(Wire(path)) for _ in range(20)]
            for wire in flood:
                assert wire.announcement()
            refused = 20 if options[0] == "--max-clients" else 21
            for wire in flood[: refused - 16 - (refused - 20)]:
                assert wire.receive_raw()[0] == b""
            with Client(path) as last:
                assert not last.save_dest(60, "d", "", "e")
            if options[0] == "--max-clients":
                assert count(client, "limit_clients") >= 21


def test_client_limit_does_not_flood_the_log(path: Path) -> None:
    """Of a hundred pairs of messages, ten to twenty are logged."""
    with Daemon(path, "--max-clients", "1") as daemon:
        for _ in range(100):
            with Wire(path) as served, Wire(path) as refused:
                for wire in (served, refused):
                    assert wire.announcement()
                    wire.find_endp(b"e")  # it is new until it makes a request
        assert daemon.terminate() == 0
    for what in ("client limit reached", "below the client limit again"):
        assert 10 <= len([line for line in daemon.log() if what in line]) <= 20
