"""A client never gets a connection of another request."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import signal
import socket
import sqlite3
import threading
from contextlib import closing
from contextvars import ContextVar
from pathlib import Path

import pytest
import trio

from scache import AsyncClient, Client, ClientInUse, Found
from scache.errors import EXIT_DATABASE
from scache.inspection.image import Image
from scache.store import serialized
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon
from tests.support.descriptors import is_asking


def save(client: Client, label: str) -> socket.socket:
    """Save one end of a new connection; return the other end."""
    ours, theirs = socket.socketpair()
    with theirs:
        assert client.save_endp(60, label, label, theirs)
    return ours


def read_label(found: Found | None) -> bytes:
    """Return the endpoint's properties of a found connection, and close it."""
    assert found is not None
    found.close()
    return found.endpoint_properties


@pytest.mark.parametrize("inline", [True, False])
def test_client_refuses_second_thread_during_request(path: Path, *, inline: bool) -> None:
    """The second thread gets ClientInUse. The request in progress gets its own connection."""
    with Daemon(path) as daemon, Client(path, inline=inline, timeout=60) as client:
        found: list[Found | None] = []
        with save(client, "a"), save(client, "b"):
            os.kill(daemon.pid, signal.SIGSTOP)
            thread = threading.Thread(target=lambda: found.append(client.find_endp("a")))
            thread.start()
            try:
                while not is_asking():
                    pass
                with pytest.raises(ClientInUse, match="one client for each thread"):
                    client.find_endp("b")
            finally:
                os.kill(daemon.pid, signal.SIGCONT)
                thread.join()
            assert read_label(found[0]) == b"a"
            assert read_label(client.find_endp("b")) == b"b"


@pytest.mark.parametrize("inline", [True, False])
def test_client_refuses_signal_handler_during_request(path: Path, *, inline: bool) -> None:
    """The handler gets ClientInUse. The interrupted request gets its own connection."""
    refused: list[ClientInUse] = []
    with Daemon(path) as daemon, Client(path, inline=inline, timeout=60) as client:

        def handle(*_: object) -> None:
            if not is_asking():
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                return
            with pytest.raises(ClientInUse) as caught:
                client.find_endp("inner")
            refused.append(caught.value)
            os.kill(daemon.pid, signal.SIGCONT)

        before = signal.signal(signal.SIGALRM, handle)
        try:
            with save(client, "outer"), save(client, "inner"):
                os.kill(daemon.pid, signal.SIGSTOP)
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                assert read_label(client.find_endp("outer")) == b"outer"
                assert refused
                assert read_label(client.find_endp("inner")) == b"inner"
        finally:
            signal.signal(signal.SIGALRM, before)


def test_client_is_usable_after_exception_from_signal_handler(path: Path) -> None:
    """An exception during a request does not leave the client marked as in use."""

    def handle(*_: object) -> None:
        raise KeyboardInterrupt

    with Daemon(path) as daemon, Client(path, timeout=60) as client:
        before = signal.signal(signal.SIGALRM, handle)
        try:
            os.kill(daemon.pid, signal.SIGSTOP)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                client.find_endp("a")
        finally:
            signal.signal(signal.SIGALRM, before)
            os.kill(daemon.pid, signal.SIGCONT)
        assert client.find_endp("a") is None


def test_request_sees_the_context_variables_of_its_caller(path: Path) -> None:
    """The lock against concurrent use is a Context, which must not hide those of the caller."""
    seen: list[str] = []
    variable: ContextVar[str] = ContextVar("variable")

    class Logged:
        def fileno(self) -> int:
            seen.append(variable.get())
            return 0

    with Daemon(path), Client(path) as client:
        variable.set("mine")
        assert client.save_endp(60, "e", "", Logged())
        assert set(seen) == {"mine"}


def test_client_raises_errors_of_a_callback_unchanged(path: Path) -> None:
    """A RuntimeError of `fileno` is not taken for a second use of the client."""

    class Faulty:
        def fileno(self) -> int:
            raise error

    with Daemon(path), Client(path) as client:
        for error in (RuntimeError("no"), RecursionError("too deep"), TimeoutError(), OSError()):
            with pytest.raises(type(error)) as caught:
                client.save_many([(60, "e", "", 0), (60, "e", "", Faulty())])
            assert caught.value is error
        assert client.find_endp("e") is None


def test_async_client_refuses_second_event_loop(path: Path) -> None:
    """A request from another loop of asyncio, or from trio, raises ClientInUse."""
    with Daemon(path):
        client = AsyncClient(path)
        with asyncio.Runner() as runner:
            assert runner.run(client.find_endp("a")) is None
            with pytest.raises(ClientInUse, match="another event loop"):
                asyncio.run(client.find_endp("a"))
        assert asyncio.run(client.find_endp("a")) is None
        with pytest.raises(ClientInUse, match="another event loop"):
            trio.run(client.find_endp, "a")
        client.close()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_client_cannot_be_pickled_or_copied(kind: type[Client | AsyncClient]) -> None:
    """The error names the reason."""
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="it holds a connection"):
            attempt(kind("/nowhere"))


@pytest.mark.parametrize("inline", [True, False])
def test_found_socket_blocks_although_it_was_saved_non_blocking(
    path: Path, *, inline: bool
) -> None:
    """The time-out of the socket object and the flag O_NONBLOCK of the descriptor agree."""
    with Daemon(path), Client(path, inline=inline) as client:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                theirs.settimeout(5)
                assert client.save_endp(60, "e", "p", theirs)
            found = client.find_endp("e")
            assert found is not None
            with found.socket() as connection:
                assert connection.gettimeout() is None
                assert os.get_blocking(connection.fileno())


@pytest.mark.parametrize("inline", [True, False])
def test_find_skips_connection_whose_peer_hung_up_at_once(
    path: Path, database: str, *, inline: bool
) -> None:
    """A find checks a connection that is not watched yet."""
    with Daemon(path, database=database), Client(path, inline=inline) as client:
        for _ in range(10):
            save(client, "e").close()
            with save(client, "e") as alive:
                found = client.find_endp("e")
                assert found is not None
                with found.socket() as connection:
                    connection.sendall(b"x")
                assert alive.recv(1) == b"x"


@pytest.mark.parametrize("inline", [True, False])
def test_find_skips_connection_whose_peer_sent_data_at_once(path: Path, *, inline: bool) -> None:
    """With on_data=close, a find checks a connection that is not watched yet."""
    with (
        Daemon(path, "--on-data", "close"),
        Client(path, inline=inline) as client,
        save(client, "e") as ours,
    ):
        ours.sendall(b"421 closing")
        assert client.find_endp("e") is None


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_stream_socket_that_never_had_a_peer_is_not_closed_as_hung_up(
    path: Path, family: socket.AddressFamily
) -> None:
    """It is still cached when connections that were saved later have been closed as hung up."""
    with Daemon(path), Client(path) as client:
        with socket.socket(family) as lonely:
            assert client.save_endp(60, "lonely", "", lonely)
        for number in (1, 2):
            save(client, "gone").close()
            while count(path, "connections_hung_up") < number:
                pass
        found = client.find_endp("lonely")
        assert found is not None
        with found.socket() as again:
            assert again.family == family


def count(path: Path, counter: str) -> int:
    """Return a counter of the daemon."""
    with Client(path) as admin, Image.from_bytes(serialized.read(admin.snapshot())) as image:
        rows = image.execute("SELECT value FROM counter WHERE name = :name", {"name": counter})
        return next((int(value or 0) for (value,) in rows.rows), 0)


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-16be"])
@pytest.mark.parametrize("ours", [True, False])
def test_serve_refuses_database_that_is_not_utf8(
    path: Path, tmp_path: Path, encoding: str, *, ours: bool
) -> None:
    """SQLite would cut labels to whole code units, so two labels could become equal."""
    file = tmp_path / "cache.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"PRAGMA encoding = '{encoding}'")
        connection.execute("CREATE TABLE x (a)")
        connection.execute("DROP TABLE x")
        if ours:
            connection.execute(f"PRAGMA application_id = {0x73636163}")
    for command in (
        ("serve", "--socket", str(path), "--database", str(file)),
        ("check", "--database", str(file)),
    ):
        done = run_command(*SCACHE, *command)
        assert done.returncode == EXIT_DATABASE
        assert "UTF-8" in done.stderr or (not ours and "another program" in done.stderr)
        assert len(done.stderr.splitlines()) == 1
