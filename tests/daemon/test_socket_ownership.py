"""The owner of the socket: owners that cannot be set, other files at its path, mistakes."""

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
from scache.unix import fchownat, process
from scache.unix.namespace import UNCHANGED
from tests.support.as_user import GID, UID
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon
from tests.support.postfix_setup import MAIL_OWNER, private_directory

_READS = "+dac_read_search"
AS_USER = (
    *("setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups"),
    *("--inh-caps", _READS, "--ambient-caps", _READS),
)
"""Runs a command as a user without an entry in the user database, with one group. It may read all
files, because the interpreter may be in a directory of root."""

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


def test_default_directory_of_another_user_is_refused_with_the_reason(directory: Path) -> None:
    """That user could replace the socket; the message says how to go on."""
    ours, open_to_all, theirs, file = (directory / name for name in ("ours", "all", "user", "file"))
    listening_socket.make_directory(ours)
    listening_socket.make_directory(ours)
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    theirs.mkdir()
    os.chown(theirs, pwd.getpwnam(MAIL_OWNER).pw_uid, -1)
    file.touch()
    for path, reason in (
        (open_to_all, "has the mode 0777, so another user could replace the socket: remove the"),
        (theirs, f"belongs to the user {MAIL_OWNER}, so another user could replace the socket"),
        (file, "is not a directory: remove it, or choose another --socket"),
    ):
        with pytest.raises(SocketError, match=f"{path} {reason}"):
            listening_socket.make_directory(path)


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
@pytest.mark.parametrize("prefix", [without("chown"), AS_USER], ids=["root", "another user"])
def test_daemon_names_the_owner_that_it_cannot_set(
    prefix: tuple[str, ...], option: str, directory: Path
) -> None:
    """The directory is writable, but CAP_CHOWN is missing."""
    line = refused(directory, EXIT_SOCKET, prefix, option, MAIL_OWNER)
    assert line == (
        f"cannot make the socket {directory}/socket: it cannot be given to user {MAIL_OWNER}: "
        "this process lacks CAP_CHOWN: start it as root with that capability, "
        f"or start it as {MAIL_OWNER} and leave --user and --socket-owner out"
    )


def test_daemon_names_the_group_that_it_cannot_set(directory: Path) -> None:
    """A user can give the socket only to its own groups."""
    owner = f"{UID}:{MAIL_OWNER}"
    line = refused(directory, EXIT_SOCKET, AS_USER, "--socket-owner", owner)
    assert line.endswith(
        f"it cannot be given to group {MAIL_OWNER}: this process lacks CAP_CHOWN, and its user "
        f"{UID} is not in that group: add it to {MAIL_OWNER}, or choose another group"
    )


@pytest.mark.parametrize("owner", [MAIL_OWNER, f"root:{MAIL_OWNER}"])
def test_daemon_names_an_owner_that_the_user_namespace_does_not_map(
    owner: str, directory: Path
) -> None:
    """The message says that this owner is not mapped, and does not ask for a capability."""
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
def test_daemon_names_the_user_that_it_cannot_become(
    prefix: tuple[str, ...], reason: str, directory: Path
) -> None:
    """It leaves neither a socket nor a database behind."""
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
        (errno.EOPNOTSUPP, "Operation not supported: choose another --socket"),
    ],
)
def test_message_names_the_error_of_chown_if_the_capability_is_present(
    number: int, says: str, path: Path
) -> None:
    """The remedy is then not the capability."""

    def chown(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ownership, "has_capability", lambda _: True)
        patch.setattr(fchownat, "chown", chown)
        with pytest.raises(SocketError, match=f"cannot be given to user {UID}: .*{says}"):
            listening_socket.ListeningSocket(path, 0o600, (UID, UNCHANGED))
    assert not path.exists()


def test_has_capability_assumes_all_for_root_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """With /proc, it reads them from there."""
    assert process.has_capability("CAP_CHOWN")

    def unreadable(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", unreadable)
    for uid in (0, UID):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        assert process.has_capability("CAP_CHOWN") is (uid == 0)
    error = OSError(errno.EPERM, "")
    assert "lacks CAP_CHOWN" in why_not_given(error, 0, UNCHANGED)


class TestOtherFileAtThePath:
    """Messages for a path with another file, or a directory where no socket can be created."""

    @staticmethod
    def leave_socket(path: Path, mode: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Bind a socket that belongs to root."""
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.bind(str(path))
        path.chmod(mode)
        return sock

    def said(self, directory: Path, *prefix: str) -> str:
        """Start a daemon that cannot use the path; return its message."""
        path = directory / "socket"
        done = run_command(*prefix, *SCACHE, "serve", "--socket", path)
        assert done.returncode == EXIT_SOCKET, done.stderr
        return done.stderr

    def test_stale_socket_of_another_user_in_a_sticky_directory(self, directory: Path) -> None:
        """The directory is writable, but only the owner of the socket can remove it."""
        directory.chmod(0o1777)
        self.leave_socket(directory / "socket", 0o666).close()
        line = self.said(directory, *AS_USER)
        assert (
            "on which no process listens, belongs to another user: remove it as root or as" in line
        )

    def test_socket_that_the_user_may_not_connect_to(self, directory: Path) -> None:
        """It may be in use, so the daemon does not remove it."""
        self.leave_socket(directory / "socket", 0o600).close()
        line = self.said(directory, *AS_USER)
        assert "is a socket that this user may not connect to: remove it if no daemon" in line

    def test_socket_of_another_type(self, directory: Path) -> None:
        """A datagram socket belongs to another program."""
        with self.leave_socket(directory / "socket", 0o666, socket.SOCK_DGRAM):
            assert "is a socket of another program: remove it, or" in self.said(directory)

    def test_directory_that_is_writable_but_not_readable(self, directory: Path) -> None:
        """The lock of the directory needs read permission, which the message names."""
        directory.chmod(0o733)
        os.chown(directory, UID, GID)
        line = self.said(directory, *without("dac_override", "dac_read_search"))
        assert f"run as a user who may read, enter and write to {directory}" in line

    def test_file_in_place_of_the_directory(self, directory: Path) -> None:
        """The message does not advise to make the directory."""
        (directory / "file").touch()
        assert f"{directory}/file is not a directory: choose" in self.said(directory / "file")

    def test_file_system_without_sockets(self) -> None:
        """The message does not advise another permission."""
        for name in ("/proc", "/sys"):
            line = self.said(Path(name))
            assert f"{name} or its file system lets no user make it: choose" in line


def test_message_names_the_user_that_may_not_open_the_database(directory: Path) -> None:
    """With --user, this is not the user that started the daemon."""
    file = directory / "cache.db"
    file.touch(0o600)
    options = ("--user", MAIL_OWNER, "--database", str(file))
    line = refused(directory, EXIT_DATABASE, (), *options)
    assert f"permission denied: let user {MAIL_OWNER} read and write it" in line


class TestOwnerOfTheDirectoryIsLeftOut:
    """A socket in the private directory of a user who may not connect is a mistake."""

    @pytest.fixture
    def private(self, directory: Path) -> Path:
        """Make a private directory of Postfix's user."""
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
    def test_warning_is_one_line_at_start(
        self, mode: int, options: tuple[str, ...], private: Path
    ) -> None:
        """The line names the user, and the options that let it connect."""
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
    def test_no_warning_if_the_owner_or_mode_was_chosen(
        self, mode: int, options: tuple[str, ...], private: Path
    ) -> None:
        """The owner, group or mode lets another user connect, or root was chosen as the owner."""
        private.chmod(mode)
        with Daemon(private / "socket", *options) as daemon:
            assert daemon.terminate() == 0
        assert not any("may not connect" in line for line in daemon.log())

    def test_no_warning_for_a_directory_of_root(self, path: Path) -> None:
        """By default, only root connects to a socket there."""
        with closing(listening_socket.ListeningSocket(path, 0o600, (UNCHANGED, UNCHANGED))):
            assert path.parent.stat().st_uid == 0
            assert left_out(path) is None
        assert left_out(path) is None
