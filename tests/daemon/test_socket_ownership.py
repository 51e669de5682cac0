"""The owner of the socket: what cannot be given, what stands in its place, and who is left out."""

from __future__ import annotations

import errno
import os
import pwd
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from scache.daemon import listening_socket, ownership
from scache.daemon.ownership import left_out, why_not_given
from scache.errors import EXIT_DATABASE, EXIT_SETTINGS, EXIT_SOCKET, SocketError
from scache.unix import process
from scache.unix.namespace import UNCHANGED
from tests.support.as_user import GID, UID
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon
from tests.support.postfix_setup import MAIL_OWNER, private_directory

_READS = "+dac_read_search"
AS_SOMEBODY = (
    *("setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups"),
    *("--inh-caps", _READS, "--ambient-caps", _READS),
)
"""Runs a command as a user that this machine does not know, in no group but one. It may read all
files, as the interpreter may lie in a directory of root."""

IN_A_NAMESPACE = ("unshare", "--user", "--map-root-user")
"""Runs a command as root of a user namespace that has no other user."""

pytestmark = pytest.mark.root


def without(*capabilities: str) -> tuple[str, ...]:
    """Return a prefix that runs a command without these capabilities."""
    return "setpriv", "--bounding-set", ",".join(f"-{each}" for each in capabilities)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Make a directory of root that any user may write to."""
    with private_directory() as directory:
        directory.chmod(0o777)
        yield directory


def refused(directory: Path, code: int, prefix: tuple[str, ...], *options: str) -> str:
    """Start a daemon that cannot start in a directory; return its last line, without its name.

    It leaves no socket behind.
    """
    path = directory / "socket"
    done = run_command(*prefix, *SCACHE, "serve", "--socket", path, *options)
    assert done.returncode == code, done.stderr
    assert not path.exists()
    return done.stderr.splitlines()[-1].removeprefix("scache: ")


@pytest.mark.parametrize("option", ["--user", "--socket-owner"])
@pytest.mark.parametrize("prefix", [without("chown"), AS_SOMEBODY], ids=["root", "another user"])
def test_an_owner_that_cannot_be_given_is_named(
    prefix: tuple[str, ...], option: str, directory: Path
) -> None:
    """The directory may be written: what is missing is a capability."""
    line = refused(directory, EXIT_SOCKET, prefix, option, MAIL_OWNER)
    assert line == (
        f"cannot make the socket {directory}/socket: it cannot be given to user {MAIL_OWNER}: "
        "this process lacks CAP_CHOWN: start it as root with that capability, "
        f"or start it as {MAIL_OWNER} and leave --user and --socket-owner out"
    )


def test_a_group_that_cannot_be_given_is_named(directory: Path) -> None:
    """A user may give the socket to a group that it is in, and to no other."""
    owner = f"{UID}:{MAIL_OWNER}"
    line = refused(directory, EXIT_SOCKET, AS_SOMEBODY, "--socket-owner", owner)
    assert line.endswith(
        f"it cannot be given to group {MAIL_OWNER}: this process lacks CAP_CHOWN, and its user "
        f"{UID} is not in that group: add it to {MAIL_OWNER}, or choose another group"
    )


@pytest.mark.parametrize("owner", [MAIL_OWNER, f"root:{MAIL_OWNER}"])
def test_an_owner_outside_the_user_namespace_is_named(owner: str, directory: Path) -> None:
    """What the namespace does not map is nobody's fault but of the choice."""
    line = refused(directory, EXIT_SOCKET, IN_A_NAMESPACE, "--socket-owner", owner)
    assert MAIL_OWNER in line
    assert "is not mapped in this user namespace" in line


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        (without("setuid"), "this process lacks CAP_SETUID: start it as root with that capability"),
        (without("setgid"), "this process lacks CAP_SETGID: start it as root with that capability"),
        (without("setgid", "setuid"), "this process lacks CAP_SETGID: start it as root"),
        (IN_A_NAMESPACE, "does not let it set groups (/proc/self/setgroups): start it as"),
    ],
    ids=["setuid", "setgid", "both", "namespace"],
)
def test_a_user_that_it_cannot_become_is_named(
    prefix: tuple[str, ...], reason: str, directory: Path
) -> None:
    """Neither a socket nor a database is left behind."""
    options = ("--user", MAIL_OWNER, "--socket-owner", "root")
    database = directory / "cache.db"
    line = refused(directory, EXIT_SETTINGS, prefix, *options, "--database", str(database))
    assert line.startswith(f"--user: cannot become user {MAIL_OWNER}: ")
    assert reason in line
    assert line.endswith(f"start it as {MAIL_OWNER} and leave --user out")
    assert not database.exists()


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EPERM, "its file system does not allow that: choose another --socket"),
        (errno.EINVAL, "not mapped in this user namespace"),
        (errno.ENOENT, "/proc, which is not mounted"),
        (errno.EOPNOTSUPP, "Operation not supported: choose another --socket"),
    ],
)
def test_a_file_system_that_refuses_an_owner_is_named(number: int, says: str, path: Path) -> None:
    """With the capability it is not that which is missing."""

    def chown(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ownership, "has_capability", lambda _: True)
        patch.setattr(os, "chown", chown)
        with pytest.raises(SocketError, match=f"cannot be given to user {UID}: .*{says}"):
            listening_socket.ListeningSocket(path, 0o600, (UID, UNCHANGED))
    assert not path.exists()


def test_a_capability_is_told_from_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc does not tell, root has all of them."""
    assert process.has_capability("CAP_CHOWN")

    def unreadable(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", unreadable)
    for uid in (0, UID):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        assert process.has_capability("CAP_CHOWN") is (uid == 0)
    error = OSError(errno.EPERM, "")
    assert "lacks CAP_CHOWN" in why_not_given(error, 0, UNCHANGED)


class TestInItsPlace:
    """Advice for a path that something else has, or that nothing can be made at."""

    @staticmethod
    def leave_socket(path: Path, mode: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Bind a socket of root's."""
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.bind(str(path))
        path.chmod(mode)
        return sock

    def said(self, directory: Path, *prefix: str) -> str:
        """Start a daemon that leaves what is there; return its line."""
        path = directory / "socket"
        done = run_command(*prefix, *SCACHE, "serve", "--socket", path)
        assert done.returncode == EXIT_SOCKET, done.stderr
        return done.stderr

    def test_a_stale_socket_of_another_user_in_a_sticky_directory(self, directory: Path) -> None:
        """The directory may be written, and all the same not cleared of what others left."""
        directory.chmod(0o1777)
        self.leave_socket(directory / "socket", 0o666).close()
        line = self.said(directory, *AS_SOMEBODY)
        assert (
            "on which no process listens, belongs to another user: remove it as root or as" in line
        )

    def test_a_socket_that_the_user_may_not_connect_to(self, directory: Path) -> None:
        """Nothing tells whether it is used: it is left alone."""
        self.leave_socket(directory / "socket", 0o600).close()
        line = self.said(directory, *AS_SOMEBODY)
        assert "is a socket that this user may not connect to: remove it if no daemon" in line

    def test_a_socket_of_another_kind(self, directory: Path) -> None:
        """A datagram socket is another program's."""
        with self.leave_socket(directory / "socket", 0o666, socket.SOCK_DGRAM):
            assert "is a socket of another program: remove it, or" in self.said(directory)

    def test_a_directory_that_may_be_written_and_not_read(self, directory: Path) -> None:
        """Its lock takes the permission to read, which the line names."""
        directory.chmod(0o733)
        os.chown(directory, UID, GID)
        line = self.said(directory, *without("dac_override", "dac_read_search"))
        assert f"run as a user who may read, enter and write to {directory}" in line

    def test_a_file_in_the_place_of_the_directory(self, directory: Path) -> None:
        """It cannot be made, and nobody is told to."""
        (directory / "file").touch()
        assert f"{directory}/file is not a directory: choose" in self.said(directory / "file")

    def test_a_file_system_without_sockets(self) -> None:
        """Permissions are not what is missing there."""
        for name in ("/proc", "/sys"):
            line = self.said(Path(name))
            assert f"{name} or its file system lets no user make it: choose" in line


def test_a_database_names_the_user_that_may_not_open_it(directory: Path) -> None:
    """With --user it is not the user who started the daemon."""
    file = directory / "cache.db"
    file.touch(0o600)
    options = ("--user", MAIL_OWNER, "--database", str(file))
    line = refused(directory, EXIT_DATABASE, (), *options)
    assert f"permission denied: let user {MAIL_OWNER} read and write it" in line


class TestLeftOut:
    """A socket in the private directory of a user who may not connect is a mistake."""

    @pytest.fixture
    def private(self, directory: Path) -> Path:
        """Make a directory that belongs to Postfix's user alone."""
        private = directory / "private"
        private.mkdir(mode=0o700)
        os.chown(private, pwd.getpwnam(MAIL_OWNER).pw_uid, 0)
        return private

    @pytest.mark.parametrize(
        ("mode", "options"),
        [
            (0o700, ()),
            (0o755, ()),
            (0o700, ("--socket-mode", "0660")),
            (0o700, ("--user", f"{UID}:{GID}")),
            (0o700, ("--socket-owner", f"{UID}")),
            (0o700, ("--socket-owner", f"{UID}:{GID}", "--socket-mode", "0660")),
        ],
        ids=str,
    )
    def test_a_mistake_is_one_line_at_start(
        self, mode: int, options: tuple[str, ...], private: Path
    ) -> None:
        """The line names the user, and what lets it in."""
        private.chmod(mode)
        with Daemon(private / "socket", *options) as daemon:
            line = daemon.wait_for_log("may not connect")
        assert f"user {MAIL_OWNER} may not connect to the socket {private}/socket" in line
        assert line.endswith(f"choose --user {MAIL_OWNER} or --socket-owner {MAIL_OWNER}")
        assert sum("may not connect" in each for each in daemon.log()) == 1

    @pytest.mark.parametrize(
        ("mode", "options"),
        [
            (0o700, ("--user", MAIL_OWNER)),
            (0o700, ("--socket-owner", MAIL_OWNER)),
            (0o700, ("--socket-mode", "0666")),
            (0o700, ("--socket-mode", "0602")),
            (0o700, ("--socket-owner", f"root:{MAIL_OWNER}", "--socket-mode", "0660")),
            (0o700, ("--socket-owner", "root")),
            (0o755, ("--socket-owner", f"{UID}")),
            (0o755, ("--socket-owner", f"root:{GID}", "--socket-mode", "0660")),
        ],
        ids=str,
    )
    def test_what_is_right_is_not_called_a_mistake(
        self, mode: int, options: tuple[str, ...], private: Path
    ) -> None:
        """Another owner, group or mode lets somebody in, or root alone was asked for."""
        private.chmod(mode)
        with Daemon(private / "socket", *options) as daemon:
            assert daemon.terminate() == 0
        assert not any("may not connect" in line for line in daemon.log())

    def test_a_directory_of_root_is_not_called_a_mistake(self, path: Path) -> None:
        """Only root is to connect there, by default."""
        with closing(listening_socket.ListeningSocket(path, 0o600, (UNCHANGED, UNCHANGED))):
            assert path.parent.stat().st_uid == 0
            assert left_out(path) is None
        assert left_out(path) is None
