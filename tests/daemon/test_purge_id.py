"""Purging connections by their ids: on the wire, with both clients, and with the command."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from scache import Client, ProtocolError, Refused, ScacheError, TooOld, Unavailable, errors
from scache.cli.main import execute
from scache.client.exchanges import Purged
from scache.errors import EXIT_OK, EXIT_REFUSED, EXIT_SETTINGS, EXIT_SOCKET
from scache.protocol import client as client_protocol
from scache.protocol.messages import Hello, encode_request
from tests.support.as_user import UID, as_user
from tests.support.clients import Connect
from tests.support.commands import SCACHE
from tests.support.daemon import Daemon
from tests.support.postfix_scache import PostfixScache
from tests.support.postfix_setup import private_directory
from tests.support.snapshots import opened, snapshot
from tests.support.terminal import on_terminal
from tests.support.wire import Wire, encode

Capture = pytest.CaptureFixture[str]

HELLO = encode_request(Hello())
"""The hello of a client without features; the daemon then lists none in its reply."""


def save(client: Client, *endpoints: str) -> list[int]:
    """Save a connection under each of these endpoints; return their ids."""
    with socket.socket() as something:
        assert all(client.save_many([(60, label, "", something) for label in endpoints]))
    rows = snapshot(client, "SELECT id FROM connection ORDER BY id")
    return [number for (number,) in rows][-len(endpoints) :]


def left(client: Client) -> list[str]:
    """Return the endpoints that have connections, in the order of their ids."""
    return [label for (label,) in snapshot(client, "SELECT endpoint FROM connection ORDER BY id")]


class TestClient:
    def test_purge_closes_exactly_the_connections_with_these_ids(
        self, connect: Connect, daemon: Daemon
    ) -> None:
        """Other connections of the endpoint stay; unknown and repeated ids are not counted."""
        client = connect(daemon.path)
        ids = save(client, *"aaabbb")
        client.save_dest(60, "d", "", "a")
        ((binding,), (own_id,)) = snapshot(
            client, "SELECT id FROM binding UNION ALL SELECT max(id) FROM client"
        )
        others = [0, 2**63 - 1, ids[-1] + 1000, binding, own_id]
        assert client.purge(ids=[ids[1], ids[5], *others, ids[1]]) == Purged(2, 0)
        assert left(client) == ["a", "a", "b", "b"]
        assert client.purge(["b"], ["d"], [ids[0]]) == Purged(3, 1)
        assert left(client) == ["a"]

    def test_purge_of_a_thousand_ids_is_one_call(self, client: Client) -> None:
        """The requests are pipelined."""
        ids = save(client, *["a"] * 1000)
        assert client.purge(ids=reversed(ids)) == Purged(1000, 0)
        assert left(client) == []

    def test_purge_leaves_a_found_connection_alone(self, client: Client, daemon: Daemon) -> None:
        """It belongs to its finder, even before its descriptor is sent."""
        (found,) = save(client, "a")
        with Wire(daemon.path) as finder:
            finder.announcement()
            finder.send(encode([(b"request", b"find_endp"), (b"label", b"a")]))
            assert finder.receive_message()[0] == (b"status", b"0")
            assert client.purge(ids=[found]) == Purged(0, 0)
            finder.send(encode([(b"dummy", b"")]))
            os.close(finder.receive_descriptor())

    @pytest.mark.parametrize("number", [-1, 2**63, 2**64 + 1])
    def test_purge_refuses_an_invalid_id_before_it_sends_a_request(self, number: int) -> None:
        """A number that wraps around would name another connection."""
        with Client("/nowhere") as client:
            with pytest.raises(ValueError, match="no connection has the id"):
                client.purge(["a"], ids=[number])
            with pytest.raises(TypeError):
                client.purge(["a"], ids=["1"])  # type: ignore[list-item]

    def test_purge_by_id_sends_nothing_to_a_daemon_without_the_feature(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing is purged by the same call, and the client stays usable."""
        (number,) = save(client, "a")
        client.close()
        monkeypatch.setattr(client_protocol, "HELLO", HELLO)
        with pytest.raises(TooOld, match="too old to purge a connection by its id"):
            client.purge(["a"], ids=[number])
        assert left(client) == ["a"]
        assert snapshot(client, "SELECT count(*) FROM event WHERE kind GLOB 'purge*'") == [(0,)]
        assert client.purge(["a"]) == Purged(1, 0)

    @pytest.mark.postfix
    def test_purge_by_id_is_refused_by_postfix_scache(self) -> None:
        """It has no inline mode, so the request is not sent."""
        with PostfixScache() as postfix:
            with (
                Client(postfix.path) as client,
                pytest.raises(ProtocolError, match="no inline mode"),
            ):
                client.purge(ids=[1])
            postfix.stop()
            # Its log has the hello only.
            assert sum("purge" in line for line in postfix.log()) == 0

    def test_purge_by_id_is_not_sent_to_a_restarted_daemon(
        self, connect: Connect, path: Path
    ) -> None:
        """After a restart with a database in memory, an id names another connection."""
        with Daemon(path):
            client = connect(path)
            (number,) = save(client, "a")
        with Daemon(path), Client(path) as other:
            assert save(other, "other") == [number]
            with pytest.raises(Unavailable, match="hung up"):
                client.purge(ids=[number])
            assert left(other) == ["other"]

    @pytest.mark.root
    def test_purge_by_id_needs_a_permission(self) -> None:
        """A refusal is recorded and counted."""

        def ask() -> None:
            with Client(path) as client:
                client.purge(ids=[number])

        with private_directory() as directory:
            path = directory / "socket"
            with Daemon(path, "--socket-mode", "0666"), Client(path) as root:
                (number,) = save(root, "a")
                with pytest.raises(Refused, match="not permitted"):
                    as_user(ask)
                assert left(root) == ["a"]
                sql = "SELECT kind, detail FROM event JOIN client ON client.id = client_id"
                refused = snapshot(root, f"{sql} WHERE uid = {UID}")
                assert refused == [("purge_id", "not permitted")]
                counted = "SELECT value FROM counter WHERE name = 'purge_id_fail'"
                assert snapshot(root, counted) == [(1,)]


def test_purge_by_id_is_recorded(daemon: Daemon, capsys: Capture) -> None:
    """The event names the connection if there was one; the counters and `check` agree."""
    with Client(daemon.path) as client:
        first, second = save(client, "a", "b")
        client.save_dest(60, "d", "", "a")
        client.purge(ids=[second, second, 2**63 - 1])
        with opened(client.snapshot()) as connection:
            assert connection.execute(
                "SELECT kind, status, endpoint, connection_id, detail FROM event"
                " WHERE kind GLOB 'purge*' ORDER BY id"
            ).fetchall() == [
                ("purged", None, "b", second, None),
                ("purge_id", 0, "b", second, None),
                ("purge_id", 0, None, None, f"no connection {second}"),
                ("purge_id", 0, None, None, f"no connection {2**63 - 1}"),
            ]
            counters = dict(connection.execute("SELECT name, value FROM counter").fetchall())
            assert (counters["purge_id_ok"], counters["connections_purged"]) == (3, 1)
        assert first != second
    assert execute(["check", "--socket", str(daemon.path)]) == EXIT_OK, capsys.readouterr().out


MALFORMED = [b"", b"-1", b"+1", b" 1", b"1x", b"0x1", b"9223372036854775808", b"9" * 5000]


@pytest.mark.parametrize("value", MALFORMED)
def test_purge_id_with_an_invalid_id_is_malformed(daemon: Daemon, value: bytes) -> None:
    """The reply is status 1, the request is counted, and the next request is served."""
    with Wire(daemon.path) as client, Client(daemon.path) as other:
        client.announcement()
        save(other, "a")
        client.send(HELLO)
        client.receive_message()
        client.send(encode([(b"request", b"purge_id"), (b"id", value)]))
        assert client.receive_message() == [(b"status", b"1")]
        client.send(encode([(b"request", b"purge_id"), (b"label", b"1")]))
        assert client.receive_message() == [(b"status", b"1")]
        client.send(encode([(b"request", b"purge_id"), (b"id", b"0")]))
        assert client.receive_message() == [(b"status", b"0"), (b"count", b"0")]
        assert left(other) == ["a"]
        sql = "SELECT value FROM counter WHERE name = 'purge_id_bad'"
        assert snapshot(other, sql) == [(2,)]


class TestCommand:
    def run(self, capsys: Capture, daemon: Daemon, *options: str) -> tuple[int, str, str]:
        """Return the exit code and the output of ``scache purge``."""
        code = execute(["purge", "--socket", str(daemon.path), *options])
        output = capsys.readouterr()
        return code, output.out, output.err

    def test_purge_command_closes_the_connections_with_these_ids(
        self, daemon: Daemon, capsys: Capture
    ) -> None:
        """Other connections of the endpoint stay; ids of no connection are reported."""
        with Client(daemon.path) as client:
            ids = save(client, "a", "a", "a")
            client.save_dest(60, "d\n", "", "a")
            ((binding,),) = snapshot(client, "SELECT id FROM binding")
            options = ("--id", str(ids[0]), "--id", str(ids[2]), "--id", str(binding))
            code, out, err = self.run(capsys, daemon, *options, "--id", str(2**63 - 1))
            assert (code, out) == (EXIT_OK, "2 connections closed, 0 bindings removed\n")
            first, second = err.splitlines()
            assert first == rf"scache: {binding} is a binding, of the destination d\n"
            assert second.startswith(f"scache: no connection {2**63 - 1} is cached: ")
            sql = "SELECT id FROM connection"
            assert snapshot(client, sql) == [(ids[1],)]

    @pytest.mark.parametrize("value", ["0", "-1", "x", str(2**63), ""])
    def test_purge_command_refuses_an_invalid_id(
        self, daemon: Daemon, capsys: Capture, value: str
    ) -> None:
        """The command does not connect to the daemon."""
        code, out, err = self.run(capsys, daemon, "--id", value)
        assert (code, out) == (EXIT_SETTINGS, "")
        assert "'--id'" in err

    def test_purge_command_closes_only_the_listed_connections(self, path: Path) -> None:
        """A connection that is saved while the command waits for the answer stays."""
        with Daemon(path), Client(path) as client:
            save(client, "a")
            command = (*SCACHE, "purge", "--endpoint", "a", "--socket", str(path))
            with on_terminal(*command) as terminal:
                terminal.read_until("[y/N]")
                save(client, "a", "b")
                terminal.type("y\n")
                terminal.read_until("1 connection closed")
                terminal.read_to_end()
                assert terminal.process.wait() == EXIT_OK
            assert left(client) == ["a", "b"]

    def test_purge_command_is_not_sent_to_a_restarted_daemon(self, path: Path) -> None:
        """A daemon that is restarted while the command waits keeps its connections."""
        command = (*SCACHE, "purge", "--endpoint", "a", "--socket", str(path))
        with Daemon(path) as first:
            with Client(path) as client:
                save(client, "a")
            with on_terminal(*command, columns=200) as terminal:
                terminal.read_until("[y/N]")
                first.kill()
                with Daemon(path), Client(path) as client:
                    save(client, "a", "b")
                    terminal.type("y\n")
                    terminal.read_until("hung up")
                    terminal.read_to_end()
                    assert terminal.process.wait() == EXIT_SOCKET
                    assert left(client) == ["a", "b"]

    def test_purge_command_purges_by_label_on_an_old_daemon(
        self, daemon: Daemon, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The command warns, because this closes all connections of an endpoint."""
        with Client(daemon.path) as client:
            save(client, "a", "b")
            monkeypatch.setattr(client_protocol, "HELLO", HELLO)
            code, out, err = self.run(capsys, daemon, "--endpoint", "a")
            assert (code, out) == (EXIT_OK, "1 connection closed, 0 bindings removed\n")
            assert err.startswith("scache: the daemon is too old to purge by id: ")
            assert left(client) == ["b"]

    def test_purge_command_with_an_id_fails_on_an_old_daemon(
        self, daemon: Daemon, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Purging by label would close other connections. The message says what to do."""
        with Client(daemon.path) as client:
            ids = save(client, "a", "a")
            monkeypatch.setattr(client_protocol, "HELLO", HELLO)
            code, out, err = self.run(capsys, daemon, "--id", str(ids[0]))
            assert (code, out) == (EXIT_REFUSED, "")
            assert "restart it with this version of scache" in err
            assert left(client) == ["a", "a"]


def test_too_old_is_an_scache_error() -> None:
    """A program that catches ScacheError or Refused catches TooOld."""
    assert issubclass(TooOld, ScacheError)
    assert issubclass(TooOld, Refused)
    assert errors.TooOld is TooOld
