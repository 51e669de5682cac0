"""What happens at each limit, to dead peers, and to those who may not."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from scache import Client, errors
from scache.cli.main import execute
from scache.daemon.capacity import MIN_OPEN_FILES, Capacity, capacity
from scache.protocol.server import MAX_AHEAD_SIZE
from scache.settings.declarations import Settings
from tests.support.as_user import GID, GROUP, UID, as_user
from tests.support.clients import Pair
from tests.support.daemon import Daemon, stopped
from tests.support.descriptors import descriptors_of, sockets_of
from tests.support.dialogue import DEADLINE, eventually
from tests.support.postfix_setup import private_directory
from tests.support.snapshots import snapshot
from tests.support.starting import refused
from tests.support.wire import DUMMY, Wire, encode

OPEN_FILES = 160

NOT_ALLOWED = "not allowed: see allow_uids and allow_gids"


@contextmanager
def limited(path: Path, *options: str, database: str = ":memory:") -> Iterator[Client]:
    """Run a daemon with these options, and be its client."""
    with Daemon(path, *options, database=database) as daemon, Client(daemon.path) as client:
        yield client


def count(client: Client, name: str) -> int:
    """Return a counter."""
    rows = snapshot(client, f"SELECT value FROM counter WHERE name = '{name}'")
    return rows[0][0] if rows else 0


def pid_of(client: Client) -> int:
    """Return the daemon's process id."""
    return int(snapshot(client, "SELECT pid FROM instance")[0][0])


def refusals(client: Client) -> list[tuple[str, str]]:
    """Return what failed, and why."""
    return snapshot(
        client,
        "SELECT DISTINCT kind, detail FROM event WHERE status > 0 AND detail NOTNULL ORDER BY id",
    )


@pytest.mark.parametrize(
    ("open_files", "settings", "expected"),
    [
        (20_000, {}, Capacity(1000, 18_936)),
        (160, {}, Capacity(24, 72)),
        (160, {"max_clients": 3, "max_connections": 50}, Capacity(3, 50)),
        (160, {"max_clients": 90, "max_connections": 150}, Capacity(24, 72)),
        (160, {"descriptor_reserve": 0}, Capacity(40, 120)),
        (10, {}, Capacity(1, 1)),
    ],
)
def test_capacity(open_files: int, settings: dict[str, int], expected: Capacity) -> None:
    """The settings hold as far as there are open files besides the reserve."""
    assert capacity(Settings(**settings), open_files) == expected  # type: ignore[arg-type]


def test_the_connection_nearest_to_its_expiry_gives_way(path: Path, database: str) -> None:
    """At the limit a save is done, and who had the least time left is closed."""
    with limited(path, "--max-connections", "3", database=database) as client:
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


def test_connections_per_endpoint(path: Path, pair: Pair) -> None:
    """Too many of one endpoint are refused, others and later ones are not."""
    with limited(path, "--max-connections-per-endpoint", "2") as client:
        saved = [client.save_endp(60, label, "", pair[1]) for label in "aaab"]
        assert saved == [True, True, False, True]
        found = client.find_endp("a")
        assert found is not None
        found.close()
        assert client.save_endp(60, "a", "", pair[1])
        assert count(client, "limit_connections_per_endpoint") == 1
        assert refusals(client) == [("save_endp", "limit: connections per endpoint")]


def test_bindings_per_destination(path: Path, database: str) -> None:
    """Too many of one destination are refused; those that are there can be saved again."""
    with limited(path, "--max-bindings-per-destination", "2", database=database) as client:
        saved = [client.save_dest(60, "d", "", endpoint) for endpoint in "abcab"]
        assert saved == [True, True, False, True, True]
        assert client.save_dest(60, "another", "", "c")
        assert count(client, "limit_bindings_per_destination") == 1
        assert refusals(client) == [("save_dest", "limit: bindings per destination")]


def test_bindings_in_all(path: Path) -> None:
    """Too many are refused, until some have gone."""
    with limited(path, "--max-bindings", "2") as client:
        assert [client.save_dest(60, d, "", "e") for d in "aabc"] == [True, True, True, False]
        client.purge(destinations=["a"])
        assert client.save_dest(60, "c", "", "e")
        assert count(client, "limit_bindings") == 1
        assert refusals(client) == [("save_dest", "limit: bindings")]


def test_size_of_a_message(path: Path, pair: Pair) -> None:
    """A request that is longer than the setting says is malformed, and that is counted."""
    with limited(path, "--max-message-size", "100") as client:
        assert client.save_endp(60, "e", "", pair[1])
        with Wire(path) as wire:
            wire.announcement()
            wire.send(encode([(b"request", b"find_endp"), (b"label", b"x" * 100)]))
            assert wire.receive_message()[0] == (b"status", b"1")
        assert count(client, "limit_message_size") == 1
        assert refusals(client) == [("find_endp", "longer than max_message_size")]


def test_what_is_sent_ahead(path: Path, pair: Pair) -> None:
    """Who sends more ahead of a dummy than the setting says is disconnected."""
    miss = encode([(b"request", b"find_endp"), (b"label", b"nothing")])
    with limited(path, "--max-ahead-size", "1000") as client:
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


def test_stopping_half_way_for_too_long(path: Path) -> None:
    """It is on record who was disconnected for that."""
    with limited(path, "--exchange-timeout", "0.1") as client:
        with Wire(path) as half:
            half.announcement()
            half.send(b"request\0")
            assert half.receive_raw()[0] == b""
        assert count(client, "limit_exchange_timeout") == 1
        assert refusals(client) == [("unknown", "limit: exchange timeout")]


class TestTooManyClients:
    def test_are_told_no_until_there_is_room(self, path: Path, pair: Pair) -> None:
        """They are answered, in either protocol, and served as soon as somebody leaves."""
        with limited(path, "--max-clients", "2") as client:
            assert client.save_endp(60, "e", "", pair[1])
            with closing(Client(path)) as second:
                assert second.save_dest(60, "d", "", "e")
                with Client(path) as inline, Client(path, inline=False) as base:
                    for crowded in (inline, base):
                        assert not crowded.save_endp(60, "e", "", pair[1])
                        assert not crowded.save_dest(60, "d", "", "e")
                        assert crowded.find_endp("e") is None
                        assert crowded.find_dest("d") is None
                    # Who is in charge can look inside all the same.
                    assert count(inline, "save_endp_fail") == 2
                    second.close()
                    eventually(lambda: base.save_dest(60, "d", "", "e"))
            assert ("find_dest", "limit: clients") in refusals(client)

    @pytest.mark.parametrize("options", [("--max-clients", "1"), ("--allow-uids", f"{UID}")])
    def test_of_too_many_the_first_are_hung_up_on(self, path: Path, options: list[str]) -> None:
        """A flood is answered, one after the other, and keeps nobody from coming."""
        with limited(path, *options) as client, ExitStack() as wires:
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


@pytest.mark.parametrize("open_files", [9, 16, MIN_OPEN_FILES - 1])
def test_too_few_open_files(open_files: int, path: Path, tmp_path: Path) -> None:
    """A daemon that could serve nobody does not start, and says what to do."""
    limit = ("bash", "-c", f'ulimit -n {open_files}; exec "$@"', "bash")
    line = refused(path, tmp_path / "cache.db", errors.EXIT_SETTINGS, *limit)
    assert line == (
        f"scache: only {open_files} files may be open, and the daemon needs {MIN_OPEN_FILES}: "
        "raise the limit (ulimit -n, or LimitNOFILE= in a unit of systemd)\n"
    )


def test_just_enough_open_files(path: Path, database: str, pair: Pair) -> None:
    """With no more than must be, a client is served, and can look inside."""
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


def test_few_open_files(path: Path, database: str) -> None:
    """Saves without end are all done, the oldest give way, and nothing is left open.

    Only what comes in one message may be more than there is room for: that is refused.
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


def test_descriptors_that_cannot_be_received(path: Path) -> None:
    """Descriptors by the hundreds, out of which none can be opened, cost the others nothing."""
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


def test_coming_and_going_at_the_limit_does_not_flood_the_log(path: Path) -> None:
    """There is no room, and there is again, a hundred times, and ten times that is said."""
    with Daemon(path, "--max-clients", "1") as daemon:
        for _ in range(100):
            with Wire(path) as served, Wire(path) as refused:
                assert served.announcement()
                assert refused.announcement()
        assert daemon.terminate() == 0
    for what in ("client limit reached", "below the client limit again"):
        assert 10 <= len([line for line in daemon.log() if what in line]) <= 20


class TestHangUps:
    def test_a_peer_that_has_gone_is_never_handed_out(self, path: Path, database: str) -> None:
        """Sockets of every family and pipes are closed when the other end is, and that is told."""
        with limited(path, database=database) as client:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                tcp = socket.create_connection(listener.getsockname())
                tcp_peer, _ = listener.accept()
            unix, unix_peer = socket.socketpair()
            reader, writer = os.pipe()
            with tcp, unix, tcp_peer, unix_peer:
                client.save_endp(60, "tcp", "", tcp)
                client.save_endp(60, "unix", "", unix)
                client.save_endp(60, "pipe", "", reader)
                os.close(reader)
                assert snapshot(client, "SELECT count(*) FROM connection") == [(3,)]
            os.close(writer)
            eventually(lambda: snapshot(client, "SELECT * FROM connection") == [])
            for endpoint in ("tcp", "unix", "pipe"):
                assert client.find_endp(endpoint) is None
            told = "SELECT endpoint FROM event WHERE kind = 'hung_up' ORDER BY endpoint"
            assert snapshot(client, told) == [("pipe",), ("tcp",), ("unix",)]
            assert count(client, "connections_hung_up") == 3

    def test_who_had_gone_before_it_was_saved(self, path: Path, pair: Pair) -> None:
        """What is saved dead is noticed as well."""
        with limited(path) as client:
            pair[0].close()
            assert client.save_endp(60, "e", "", pair[1])
            eventually(lambda: count(client, "connections_hung_up") == 1)

    def test_a_connection_that_was_put_back_is_watched_again(self, path: Path, pair: Pair) -> None:
        """A finder that vanished changes nothing about that."""
        with limited(path) as client:
            assert client.save_endp(60, "e", "", pair[1])
            with Wire(path) as leaver:
                leaver.announcement()
                leaver.send(encode([(b"request", b"find_endp"), (b"label", b"e")]))
                assert leaver.receive_message()[0] == (b"status", b"0")
            put_back = "SELECT count(*) FROM event WHERE kind = 'put_back'"
            eventually(lambda: snapshot(client, put_back) == [(1,)])
            pair[0].close()
            pair[1].close()
            eventually(lambda: count(client, "connections_hung_up") == 1)

    @pytest.mark.parametrize("on_data", ["keep", "close"])
    def test_data_that_nobody_asked_for(self, path: Path, pair: Pair, on_data: str) -> None:
        """It waits for the finder, to the byte, or it ends the connection, as the setting says."""
        ours, theirs = pair
        with limited(path, "--on-data", on_data) as client:
            assert client.save_endp(60, "e", "", theirs)
            ours.sendall(b"421 go away")
            if on_data == "close":
                eventually(lambda: count(client, "connections_hung_up") == 1)
                return
            unread = "SELECT unread_bytes FROM descriptor"
            eventually(lambda: snapshot(client, unread) == [(11,)])
            found = client.find_endp("e")
            assert found is not None
            with found.socket() as connection:
                assert connection.recv(100) == b"421 go away"
            assert count(client, "connections_hung_up") == 0

    def test_a_file_that_cannot_be_watched(self, path: Path, tmp_path: Path) -> None:
        """What epoll refuses is cached like anything else."""
        with limited(path) as client, (tmp_path / "file").open("wb") as file:
            assert client.save_endp(60, "e", "", file)
            assert count(client, "connections_hung_up") == 0
            found = client.find_endp("e")
            assert found is not None
            found.close()


@contextmanager
def lingering() -> Iterator[socket.socket]:
    """Connect a socket that has something for its peer, and waits for it at its end (SO_LINGER)."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as lingers,
        listener.accept()[0],
    ):
        lingers.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("2i", 1, 600))
        lingers.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                lingers.send(bytes(65536))
        yield lingers


def test_a_socket_that_lingers_holds_up_nobody(path: Path) -> None:
    """What would wait for its peer at its end, and has something for it, is closed at once."""
    with limited(path) as client, lingering() as lingers:
        assert client.save_endp(60, "e", "", lingers)
        lingers.close()  # the daemon is to be the last that closes it
        assert client.purge(["e"]).connections == 1
        assert client.find_endp("e") is None


def test_a_socket_that_lingers_and_was_found_holds_up_nobody(path: Path) -> None:
    """Its finder has closed it first, so that the daemon's copy is the one that waits."""
    with limited(path) as client, Wire(path) as finder, lingering() as lingers:
        assert client.save_endp(60, "e", "", lingers)
        lingers.close()
        finder.announcement()
        finder.send(encode([(b"request", b"find_endp"), (b"label", b"e")]))
        assert finder.receive_message()[0] == (b"status", b"0")
        finder.send(DUMMY)
        os.close(finder.receive_descriptor())
        finder.send(DUMMY)
        assert client.find_endp("e") is None


def test_a_client_that_was_never_there_is_nobody(path: Path) -> None:
    """Who hangs up before it is accepted leaves no row, unless it has said something."""
    with limited(path) as client:
        before = count(client, "clients_connected")
        with ExitStack() as stack:
            with stopped(pid_of(client)):
                for _ in range(100):
                    stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
                with Wire(path) as wire:
                    wire.send(encode([(b"request", b"find_endp"), (b"label", b"e")]))
                stack.close()
            eventually(lambda: count(client, "clients_connected") == before + 1)


class TestWhoMay:
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
    def test_clients(self, options: list[str], groups: tuple[int, ...], allowed: bool) -> None:
        """Of those whom the socket lets in, the settings may serve some alone."""

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
        """However many it makes, the trail and the counters keep what others did."""

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
                told = "SELECT detail, count(*) FROM event WHERE status > 0 GROUP BY detail"
                assert snapshot(root, told) == [(NOT_ALLOWED, 2)]
                assert snapshot(root, "SELECT min(id) FROM event") == [(1,)]
                assert execute(["check", "--socket", str(path)]) == errors.EXIT_OK
                assert not any("malformed" in line for line in daemon.log())

    @pytest.mark.root
    def test_who_is_not_allowed_hangs_up_on_nobody_else(self) -> None:
        """A client that waits for room waits on, however many come that will never be served."""

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
    def test_an_administrator_who_is_not_allowed_looks_inside_all_the_same(self) -> None:
        """To others the daemon does not even tell that it knows more than the base protocol."""

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

    @pytest.mark.parametrize("inline", [True, False], ids=["inline", "base"])
    def test_a_connection_to_the_daemon_itself_is_refused(self, path: Path, inline: bool) -> None:
        """A client that saved its own connection would never be seen to go."""
        with limited(path) as client:
            with Client(path, inline=inline) as own, socket.socket(socket.AF_UNIX) as another:
                another.connect(str(path))
                before = sockets_of(os.getpid())
                assert own.find_endp("e") is None
                (connection,) = sockets_of(os.getpid()).keys() - before.keys()
                for number in (connection, another.fileno()):
                    assert not own.save_endp(60, "e", "", number)
            assert refusals(client) == [("save_endp", "a socket of the daemon itself")]

    def test_a_connection_to_the_daemon_in_the_queue_of_a_saved_socket(
        self, path: Path, pair: Pair
    ) -> None:
        """Nobody sees it there: its client seems connected until the socket leaves the cache."""
        connected = "SELECT count(*) FROM client WHERE disconnected_at IS NULL"
        with limited(path) as client:
            with Wire(path) as hidden:
                assert hidden.announcement()
                socket.send_fds(pair[0], [b"x"], [hidden.fileno()])
                assert client.save_endp(60, "e", "", pair[1])
                pair[1].close()
            assert snapshot(client, connected) == [(2,)]
            client.purge(["e"])
            eventually(lambda: snapshot(client, connected) == [(1,)])

    @pytest.mark.root
    def test_root_is_left_behind_once_the_socket_is_made(self) -> None:
        """The daemon and its file are the user's, who is its own administrator."""

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
                # The directory is root's, and so it takes root to remove what is in it.
                assert daemon.wait_for_log("is left behind: Permission denied")
