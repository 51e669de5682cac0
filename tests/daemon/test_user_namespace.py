"""Users that the daemon's user namespace does not map, and that share the overflow id."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from scache import Client, Refused
from scache.daemon.access import Principals
from scache.model import Peer
from scache.store import serialized
from scache.unix import namespace
from scache.unix.namespace import Unmapped, described, unmapped
from tests.support.as_user import GID, GROUP, UID, as_user
from tests.support.daemon import Daemon
from tests.support.namespaces import INNER_ROOT, OVERFLOW, PREFIX
from tests.support.postfix_setup import private_directory

ALL_MAPPED = Unmapped(exist=False, shown=OVERFLOW)
SOME_UNMAPPED = Unmapped(exist=True, shown=OVERFLOW)
UNKNOWN = Unmapped(exist=True, shown=None)


def proc_directory(directory: Path, mapped: str | None, overflow: str | None) -> Path:
    """Write files of proc(5) about user ids; None stands for a missing file."""
    for name, text in (("self/uid_map", mapped), ("sys/kernel/overflowuid", overflow)):
        file = directory / name
        file.parent.mkdir(parents=True)
        if text is not None:
            file.write_text(text)
    return directory


@pytest.mark.parametrize(
    ("mapped", "overflow", "expected"),
    [
        ("         0          0 4294967295\n", "65534\n", ALL_MAPPED),
        ("0 0 1000\n1000 1000 4294966295\n", "65534\n", ALL_MAPPED),
        ("0 100000 1\n65534 165534 1\n", "65534\n", SOME_UNMAPPED),
        ("0 0 4294967294\n", "65534\n", SOME_UNMAPPED),
        ("", "65534\n", SOME_UNMAPPED),
        ("0 0 1\n", "4711\n", Unmapped(exist=True, shown=4711)),
        (None, "65534\n", SOME_UNMAPPED),
        ("what\n", "65534\n", SOME_UNMAPPED),
        ("0 0 1\n", None, UNKNOWN),
        (None, None, UNKNOWN),
        ("0 0 4294967295\n", None, Unmapped(exist=False, shown=None)),
    ],
)
def test_unmapped_reads_the_map(
    mapped: str | None,
    overflow: str | None,
    expected: Unmapped,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the map is not known to cover all ids, it assumes that some users are unmapped."""
    monkeypatch.setattr(namespace, "PROC", proc_directory(tmp_path, mapped, overflow))
    assert unmapped("uid") == expected


@pytest.mark.parametrize(
    ("users", "uid", "known"),
    [
        (ALL_MAPPED, OVERFLOW, True),
        (SOME_UNMAPPED, OVERFLOW, False),
        (SOME_UNMAPPED, UID, True),
        (SOME_UNMAPPED, 0, True),
        (UNKNOWN, UID, False),
        (UNKNOWN, 0, True),
        (Unmapped(exist=True, shown=0), 0, False),
    ],
)
def test_principals_include_only_ids_that_name_one_user(
    users: Unmapped, uid: int, known: bool
) -> None:
    """The same holds for groups. If the overflow id is unknown, only that of root names one."""
    peer, other = Peer(1, uid, uid), Peer(1, 1, 1)
    assert Principals([0, UID, OVERFLOW], [], users, users).include(peer, []) == known
    groups = Principals([], [0, UID, OVERFLOW], users, users)
    assert groups.include(peer, []) == known
    assert groups.include(other, [uid]) == known


def test_described_names_the_overflow_ids() -> None:
    """It returns None if all users and groups are mapped."""
    assert described(ALL_MAPPED, ALL_MAPPED) is None
    assert "uid 65534 and gid 65534" in str(described(SOME_UNMAPPED, ALL_MAPPED))
    assert "only root" in str(described(ALL_MAPPED, UNKNOWN))


@contextmanager
def served(*options: str) -> Iterator[tuple[Path, list[str]]]:
    """Run a daemon in this namespace, as OVERFLOW; yield its socket and its log."""
    with private_directory() as directory:
        path = directory / "socket"
        with Daemon(path, "--socket-mode", "0666", *options, prefix=PREFIX) as daemon:
            yield path, daemon.log()


def looks_inside(path: Path) -> bool:
    """Return True if this process may take a snapshot."""
    with suppress(Refused), Client(path) as client:
        os.close(client.snapshot())
        return True
    return False


def is_served(path: Path) -> bool:
    """Return True if this process may save."""
    with Client(path) as client:
        return client.save_dest(60, "d", "q", "e")


@pytest.mark.root
@pytest.mark.parametrize("options", [(), ("--admin-uids", "65534"), ("--admin-gids", "65534")])
def test_unmapped_user_is_no_administrator(options: tuple[str, ...]) -> None:
    """It shares its id with the daemon's own user; root of the namespace is an administrator."""
    with served(*options) as (path, said):
        assert not as_user(lambda: looks_inside(path))
        assert not as_user(lambda: looks_inside(path), [GROUP], gid=INNER_ROOT)
        assert not looks_inside(path)
        assert as_user(lambda: looks_inside(path), uid=INNER_ROOT)
        assert as_user(lambda: is_served(path))
    (line,) = (line for line in said if "user namespace" in line)
    assert "as uid 65534 and gid 65534" in line


@pytest.mark.root
def test_mapped_group_can_be_an_administrator() -> None:
    """The id of a mapped group names one group."""
    with served("--admin-gids", "0") as (path, _):
        assert as_user(lambda: looks_inside(path), gid=INNER_ROOT)
        assert as_user(lambda: looks_inside(path), [INNER_ROOT])
        assert not as_user(lambda: looks_inside(path), [GID])


@pytest.mark.root
@pytest.mark.parametrize("option", ["--allow-uids", "--allow-gids"])
def test_unmapped_user_is_refused_although_allowed_ids_name_the_overflow_id(option: str) -> None:
    """A list with only the overflow id permits no other user either."""
    with served(option, "65534") as (path, _):
        assert not as_user(lambda: is_served(path))
        assert not as_user(lambda: is_served(path), [GROUP], uid=INNER_ROOT, gid=INNER_ROOT)
        assert not is_served(path)
    with served(option, "65534,0") as (path, _):
        assert not as_user(lambda: is_served(path))
        assert as_user(lambda: is_served(path), uid=INNER_ROOT, gid=INNER_ROOT)


@pytest.mark.root
@pytest.mark.parametrize(("uid", "ours"), [(0, True), (UID, False)])
def test_make_directory_refuses_a_directory_of_an_unmapped_user(uid: int, ours: bool) -> None:
    """stat(2) shows both directories with the id of the daemon."""
    script = (
        "import sys, pathlib; from scache.daemon.listening_socket import make_directory;"
        "make_directory(pathlib.Path(sys.argv[1]))"
    )
    with private_directory("default") as parent:
        directory = parent / "default"
        os.chown(directory, uid, uid)
        done = subprocess.run(
            [*PREFIX, sys.executable, "-c", script, directory],
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode == 0) == ours, done.stderr
    assert ours or "so another user could replace the socket" in done.stderr


@pytest.mark.root
def test_client_outside_of_the_pid_namespace_of_the_daemon_has_pid_0() -> None:
    """It has no program name either, as the manual says of the table `client`."""
    new_namespace = ("unshare", "--pid", "--fork", "--kill-child")
    with private_directory() as directory:
        path = directory / "socket"
        with Daemon(path, prefix=new_namespace), Client(path) as client:
            image = serialized.load(serialized.read(client.snapshot()))
    with closing(image):
        rows = image.execute("SELECT pid, uid, program FROM client").fetchall()
    assert rows == [(0, os.geteuid(), None)]
