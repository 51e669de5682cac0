"""The settings that name the clients that are served, and the user of the daemon."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from scache import Client, errors
from scache.cli.main import execute
from tests.support.as_user import GID, GROUP, UID, as_user
from tests.support.daemon import Daemon
from tests.support.postfix_setup import private_directory
from tests.support.served_client import count, refusals
from tests.support.snapshots import snapshot
from tests.support.wire import Wire, encode

NOT_ALLOWED = "not allowed: see allow_uids and allow_gids"


class TestAllowedClients:
    @pytest.mark.parametrize(
        ("options", "groups", "allowed"),
        [
            ([], (), True),
            (["--allow-uids", f"0,{UID}"], (), True),
            (["--allow-uids", "0"], (), False),
            (["--allow-gids", f"{GID}", "--allow-uids", "0"], (), True),
            (["--allow-gids", f"{GROUP}", "--allow-uids", "0"], (GROUP,), True),
            (["--allow-gids", f"{GROUP}", "--allow-uids", "0"], (), False),
        ],
    )
    @pytest.mark.root
    def test_settings_name_the_clients_that_are_served(
        self, options: list[str], groups: tuple[int, ...], allowed: bool
    ) -> None:
        """Clients that may connect to the socket can still be refused."""

        def ask() -> bool:
            with Client(path) as client, open(os.devnull) as something:  # noqa: PTH123
                return client.save_endp(60, "e", "", something)

        with private_directory() as directory:
            path = directory / "socket"
            with Daemon(path, "--socket-mode", "0666", *options), Client(path) as root:
                assert as_user(ask, groups) is allowed
                assert refusals(root) == ([] if allowed else [("unknown", NOT_ALLOWED)])

    @pytest.mark.parametrize(
        "message",
        [
            encode([(b"request", b"find_endp"), (b"label", b"e")]),
            encode([(b"request", b"save_dest"), (b"ttl", b"0")]),
            encode([(b"request", b"hello")]),
            encode([(b"request", b"snapshot")]),
        ],
        ids=["find", "malformed", "hello", "snapshot"],
    )
    @pytest.mark.root
    def test_one_request_of_a_client_that_is_not_allowed_is_recorded(self, message: bytes) -> None:
        """A client that is not allowed cannot flush the audit log."""

        def ask() -> None:
            with Wire(path) as wire:
                wire.announcement()
                for _ in range(20):
                    wire.send(message * 100)
                    for _ in range(100):
                        assert wire.receive_message()[0] in ((b"status", b"1"), (b"status", b"2"))

        with private_directory() as directory:
            path = directory / "socket"
            options = ("--socket-mode", "0666", "--allow-uids", "0", "--audit-rows", "1000")
            with Daemon(path, *options) as daemon, Client(path) as root:
                assert root.save_dest(60, "d", "", "e")
                for _ in range(2):
                    as_user(ask)
                assert count(root, "clients_not_allowed") == 2
                recorded = "SELECT detail, count(*) FROM event WHERE status > 0 GROUP BY detail"
                assert snapshot(root, recorded) == [(NOT_ALLOWED, 2)]
                assert snapshot(root, "SELECT min(id) FROM event") == [(1,)]
                assert execute(["check", "--socket", str(path)]) == errors.EXIT_OK
                assert not any("malformed" in line for line in daemon.log())

    @pytest.mark.root
    def test_clients_that_are_not_allowed_disconnect_no_client_over_the_limit(self) -> None:
        """The two kinds of refused clients are counted separately."""

        def flood() -> bool:
            with ExitStack() as wires:
                flood = [wires.enter_context(Wire(path)) for _ in range(20)]
                return all(wire.announcement() for wire in flood)

        with private_directory() as directory:
            path = directory / "socket"
            options = ("--socket-mode", "0666", "--allow-uids", "0", "--max-clients", "1")
            with Daemon(path, *options), Wire(path) as served, Wire(path) as waiting:
                assert served.announcement()
                assert waiting.announcement()
                assert as_user(flood)
                waiting.send(encode([(b"request", b"find_endp"), (b"label", b"e")]))
                assert waiting.receive_message()[0] == (b"status", b"2")

    @pytest.mark.root
    def test_administrator_that_is_not_allowed_gets_a_snapshot(self) -> None:
        """Other clients that are not allowed are not offered inline mode."""

        def hello() -> list[tuple[bytes, bytes]]:
            with Wire(path) as wire:
                wire.announcement()
                wire.send(encode([(b"request", b"hello")]))
                return wire.receive_message()

        with private_directory() as directory:
            path = directory / "socket"
            with Daemon(path, "--socket-mode", "0666", "--allow-uids", "1"), Client(path) as root:
                assert not root.save_dest(60, "d", "", "e")
                assert refusals(root) == [("save_dest", NOT_ALLOWED)]
                assert as_user(hello) == [(b"status", b"1")]

    @pytest.mark.root
    def test_user_is_set_after_the_socket_is_made(self) -> None:
        """The process and the database file belong to the user, which is an administrator."""

        def look() -> int:
            with Client(path) as client:
                return count(client, "clients_connected")

        with private_directory("data") as directory:
            path, database = directory / "socket", directory / "data/cache.db"
            os.chown(directory / "data", UID, GID)
            options = ("--user", f"{UID}:{GID}", "--socket-mode", "0666")
            with Daemon(path, *options, database=database) as daemon:
                status = Path(f"/proc/{daemon.pid}/status").read_text()
                fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
                assert set(fields["Uid"].split()) == {str(UID)}
                assert set(fields["Gid"].split()) == {str(GID)}
                assert fields["Groups"].split() == []
                assert (database.stat().st_uid, path.stat().st_uid) == (UID, UID)
                assert as_user(look) == 1
                assert daemon.terminate() == 0
                # Only root may remove the socket from a directory of root.
                assert daemon.wait_for_log("is left behind: Permission denied")
