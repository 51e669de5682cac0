"""A file that ``scache dump --output`` wrote, as the database of the next daemon."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from scache import Client
from scache.cli.main import execute
from scache.errors import EXIT_OK
from scache.store.serialized import FAULT
from tests.support.daemon import Daemon
from tests.support.store_fixture import locked, read
from tests.support.wire import Wire, encode

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """Return the path of a dump that does not exist yet."""
    return tmp_path / "dump.db"


@contextmanager
def in_use(path: Path, database: Path | str) -> Iterator[Daemon]:
    """Run a daemon with three connections, one of which is being delivered."""
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(path, database=database))
        client = stack.enter_context(Client(path))
        _, theirs = (stack.enter_context(each) for each in socket.socketpair())
        for endpoint in ("a", "b", "b", "c"):
            assert client.save_endp(60, endpoint, "p", theirs)
        assert client.save_dest(60, "d", "q", "b")
        found = client.find_endp("c")
        assert found is not None
        found.close()
        assert client.find_endp("missing") is None
        finder = stack.enter_context(Wire(path))
        finder.announcement()
        finder.send(encode([(b"request", b"find_endp"), (b"label", b"a")]))
        assert finder.receive_message()[0] == (b"status", b"0")
        yield daemon


def verdicts(capsys: Capture, *origin: str | Path) -> dict[str, str]:
    """Return the rules that `scache check` reports as broken, with their details."""
    capsys.readouterr()
    execute(["check", "--format", "jsonl", *map(str, origin)])
    rows = map(json.loads, capsys.readouterr().out.splitlines())
    return {row["check"]: row["detail"] for row in rows if row["result"] == "wrong"}


def serve_on(dump: Path, path: Path, capsys: Capture) -> None:
    """Serve on a dump, check it, stop, and check it again."""
    with Daemon(path, database=dump) as daemon:
        assert read(dump, "SELECT count(*) FROM descriptor") == [(0,)]
        assert read(dump, "SELECT count(*) FROM connection") == [(0,)]
        assert read(dump, f"SELECT count(*) FROM setting WHERE name = '{FAULT}'") == [(0,)]
        assert verdicts(capsys, "--socket", path) == {}
        assert daemon.terminate() == EXIT_OK
    assert verdicts(capsys, "--database", dump) == {}


def test_serve_on_a_dump_accounts_for_its_connections(
    path: Path, database: str, dump: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The connections of a dump are lost, also the one being delivered; bindings are kept."""
    with in_use(path, database):
        assert execute(["dump", "--socket", str(path), "--output", str(dump)]) == EXIT_OK
    cached = read(dump, "SELECT id FROM connection ORDER BY id")
    assert len(cached) == 3
    assert read(dump, "SELECT connection_id FROM descriptor ORDER BY 1") == cached
    serve_on(dump, tmp_path / "next", capsys)
    assert read(dump, "SELECT connection_id FROM event WHERE kind = 'lost' ORDER BY 1") == cached
    assert read(dump, "SELECT value FROM counter WHERE name = 'connections_lost'") == [(3,)]
    assert read(dump, "SELECT destination FROM binding") == [(b"d",)]
    assert read(dump, "SELECT count(*) FROM client WHERE disconnected_at IS NULL") == [(0,)]


def test_serve_on_a_dump_of_a_database_with_a_fault(
    path: Path, dump: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Rows that the daemon could not write when the dump was taken break no rule."""
    file = tmp_path / "cache.db"
    with in_use(path, file) as daemon, Client(path) as client, locked(file):
        assert not client.save_endp(60, "e", "p", 0)
        daemon.wait_for_log("cannot be written now")
        assert execute(["dump", "--socket", str(path), "--output", str(dump)]) == EXIT_OK
    assert read(dump, f"SELECT count(*) FROM setting WHERE name = '{FAULT}'") == [(1,)]
    serve_on(dump, tmp_path / "next", capsys)


def test_dump_of_a_served_dump_breaks_no_rule(
    path: Path, dump: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The second dump has only the descriptors of the second daemon."""
    with in_use(path, ":memory:"):
        assert execute(["dump", "--socket", str(path), "--output", str(dump)]) == EXIT_OK
    again = tmp_path / "again.db"
    with in_use(tmp_path / "next", dump):
        assert (
            execute(["dump", "--socket", str(tmp_path / "next"), "--output", str(again)]) == EXIT_OK
        )
        assert verdicts(capsys, "--database", again) == {}
        assert (
            execute(["dump", "--database", str(dump), "--output", str(tmp_path / "file")])
            == EXIT_OK
        )
    cached = read(again, "SELECT id FROM connection ORDER BY id")
    assert len(cached) == 3
    assert read(again, "SELECT connection_id FROM descriptor ORDER BY 1") == cached
    serve_on(again, path, capsys)
    serve_on(tmp_path / "file", path, capsys)
