"""Users without an id in the daemon's user namespace, who all look like one."""

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

EVERYBODY = Unmapped(exist=False, shown=OVERFLOW)
SOME = Unmapped(exist=True, shown=OVERFLOW)
UNKNOWN = Unmapped(exist=True, shown=None)


def proc_directory(directory: Path, mapped: str | None, overflow: str | None) -> Path:
    """Write what the kernel tells of users; None stands for a file that is not there."""
    for name, text in (("self/uid_map", mapped), ("sys/kernel/overflowuid", overflow)):
        file = directory / name
        file.parent.mkdir(parents=True)
        if text is not None:
            file.write_text(text)
    return directory


@pytest.mark.parametrize(
    ("mapped", "overflow", "expected"),
    [
        ("         0          0 4294967295\n", "65534\n", EVERYBODY),
        ("0 0 1000\n1000 1000 4294966295\n", "65534\n", EVERYBODY),
        ("0 100000 1\n65534 165534 1\n", "65534\n", SOME),
        ("0 0 4294967294\n", "65534\n", SOME),
        ("", "65534\n", SOME),
        ("0 0 1\n", "4711\n", Unmapped(exist=True, shown=4711)),
        (None, "65534\n", SOME),
        ("what\n", "65534\n", SOME),
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
    """Unless the map is known to cover all ids, some users are supposed to have none."""
    monkeypatch.setattr(namespace, "PROC", proc_directory(tmp_path, mapped, overflow))
    assert unmapped("uid") == expected


@pytest.mark.parametrize(
    ("users", "uid", "known"),
    [
        (EVERYBODY, OVERFLOW, True),
        (SOME, OVERFLOW, False),
        (SOME, UID, True),
        (SOME, 0, True),
        (UNKNOWN, UID, False),
        (UNKNOWN, 0, True),
        (Unmapped(exist=True, shown=0), 0, False),
    ],
)
def test_people_include_only_ids_that_name_one_user(users: Unmapped, uid: int, known: bool) -> None:
    """The same holds of groups; where the overflow id is not known, only root's names one."""
    peer, nobody = Peer(1, uid, uid), Peer(1, 1, 1)
    assert Principals([0, UID, OVERFLOW], [], users, users).include(peer, []) == known
    groups = Principals([], [0, UID, OVERFLOW], users, users)
    assert groups.include(peer, []) == known
    assert groups.include(nobody, [uid]) == known


def test_the_sentence_names_the_ids() -> None:
    """There is none where all users and groups have an id."""
    assert described(EVERYBODY, EVERYBODY) is None
    assert "uid 65534 and gid 65534" in str(described(SOME, EVERYBODY))
    assert "only root" in str(described(EVERYBODY, UNKNOWN))


@contextmanager
def served(*options: str) -> Iterator[tuple[Path, list[str]]]:
    """Run a daemon in such a namespace, as OVERFLOW; yield its socket, and what it said."""
    with private_directory() as directory:
        path = directory / "socket"
        with Daemon(path, "--socket-mode", "0666", *options, prefix=PREFIX) as daemon:
            yield path, daemon.log()


def looks_inside(path: Path) -> bool:
    """Return whether this process may look inside."""
    with suppress(Refused), Client(path) as client:
        os.close(client.snapshot())
        return True
    return False


def is_served(path: Path) -> bool:
    """Return whether this process may save."""
    with Client(path) as client:
        return client.save_dest(60, "d", "q", "e")


@pytest.mark.root
@pytest.mark.parametrize("options", [(), ("--admin-uids", "65534"), ("--admin-gids", "65534")])
def test_an_unmapped_user_is_no_administrator(options: tuple[str, ...]) -> None:
    """It looks like the daemon's own user, who is none either; root of the namespace is one."""
    with served(*options) as (path, said):
        assert not as_user(lambda: looks_inside(path))
        assert not as_user(lambda: looks_inside(path), [GROUP], gid=INNER_ROOT)
        assert not looks_inside(path)
        assert as_user(lambda: looks_inside(path), uid=INNER_ROOT)
        assert as_user(lambda: is_served(path))
    (line,) = (line for line in said if "user namespace" in line)
    assert "as uid 65534 and gid 65534" in line


@pytest.mark.root
def test_a_group_of_the_namespace_may_administer() -> None:
    """One that is mapped names one group."""
    with served("--admin-gids", "0") as (path, _):
        assert as_user(lambda: looks_inside(path), gid=INNER_ROOT)
        assert as_user(lambda: looks_inside(path), [INNER_ROOT])
        assert not as_user(lambda: looks_inside(path), [GID])


@pytest.mark.root
@pytest.mark.parametrize("option", ["--allow-uids", "--allow-gids"])
def test_an_unmapped_user_is_not_among_those_who_are_served(option: str) -> None:
    """Nor does a list that names only the overflow id let anybody else in."""
    with served(option, "65534") as (path, _):
        assert not as_user(lambda: is_served(path))
        assert not as_user(lambda: is_served(path), [GROUP], uid=INNER_ROOT, gid=INNER_ROOT)
        assert not is_served(path)
    with served(option, "65534,0") as (path, _):
        assert not as_user(lambda: is_served(path))
        assert as_user(lambda: is_served(path), uid=INNER_ROOT, gid=INNER_ROOT)


@pytest.mark.root
@pytest.mark.parametrize(("uid", "ours"), [(0, True), (UID, False)])
def test_the_directory_of_the_default_socket_is_not_an_unmapped_users(uid: int, ours: bool) -> None:
    """Both look as if they were the daemon's own."""
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
    assert ours or "is not a directory that this user alone may write to" in done.stderr


@pytest.mark.root
def test_client_outside_of_the_pid_namespace_of_the_daemon_has_pid_0() -> None:
    """And no program, as the manual says of the table `client`."""
    new_namespace = ("unshare", "--pid", "--fork", "--kill-child")
    with private_directory() as directory:
        path = directory / "socket"
        with Daemon(path, prefix=new_namespace), Client(path) as client:
            image = serialized.load(serialized.read(client.snapshot()))
    with closing(image):
        rows = image.execute("SELECT pid, uid, program FROM client").fetchall()
    assert rows == [(0, os.geteuid(), None)]
