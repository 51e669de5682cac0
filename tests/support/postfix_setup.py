"""The installed Postfix, and the directory, configuration and log of a private instance."""

from __future__ import annotations

import os
import pwd
import select
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from tests.support.wire import DEADLINE

MAIL_OWNER = "postfix"

COMMON_MAIN_CF = f"""\
compatibility_level = 3.6
queue_directory = {{directory}}/queue
data_directory = {{directory}}/data
maillog_file = {{directory}}/maillog
maillog_file_prefixes = {{directory}}
mail_owner = {MAIL_OWNER}
myhostname = host.example
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = loopback-only
inet_protocols = ipv4
alias_maps =
alias_database =
local_recipient_maps =
"""
"""The part of main.cf that all private instances share."""

_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_READ_SIZE = 65536
_LONG_AGO = 1_000_000_000


def postfix_directories() -> tuple[Path, Path]:
    """Return the directories of the commands and of the daemons of the installed Postfix.

    Raises RuntimeError if Postfix is not installed, or if this user cannot run it.
    """
    postconf = shutil.which("postconf", path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")
    if postconf is None:
        raise RuntimeError("this test needs Postfix, and there is no postconf(1) on this machine")
    if os.geteuid() != 0:
        raise RuntimeError("this test runs daemons of Postfix, which only root can start")
    try:
        pwd.getpwnam(MAIL_OWNER)
    except KeyError:
        raise RuntimeError(f"this test needs the user of Postfix, {MAIL_OWNER}") from None
    # The built-in defaults (-d), because the Postfix of this machine may have no configuration.
    answer = subprocess.run(
        [postconf, "-dh", "command_directory", "daemon_directory"],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    commands, daemons = answer.stdout.split()
    return Path(commands), Path(daemons)


@contextmanager
def private_directory(*subdirectories: str) -> Iterator[Path]:
    """Make a directory that the user of Postfix can enter, with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="scache-test-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        for subdirectory in subdirectories:
            (directory / subdirectory).mkdir(parents=True)
        yield directory


def write_configuration(directory: Path, main_cf: str, master_cf: str = "") -> Path:
    """Write a configuration of Postfix into a private directory, and return its directory."""
    configuration = directory / "config"
    configuration.mkdir()
    common = COMMON_MAIN_CF.format(directory=directory)
    for name, text in (("main.cf", common + main_cf), ("master.cf", master_cf)):
        path = configuration / name
        path.write_text(text)
        # The programs of Postfix wait until a configuration file is two seconds old.
        os.utime(path, (_LONG_AGO, _LONG_AGO))
    return configuration


class PostfixLog:
    """The log of one instance of Postfix; it takes the place of postlogd(8)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[str] = []
        self._whole_lines: list[str] = []
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        with ExitStack() as cleanup:
            self._socket = cleanup.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            bind(self._socket, self._path)
            self._ending = os.eventfd(0, os.EFD_CLOEXEC)
            cleanup.callback(os.close, self._ending)
            reader = threading.Thread(target=self._read_until_the_end)
            reader.start()
            cleanup.callback(reader.join)
            cleanup.callback(os.eventfd_write, self._ending, 1)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._read()
        self._cleanup.close()

    @property
    def environment(self) -> dict[str, str]:
        """Environment that makes a program log here even before it reads its configuration."""
        return {
            "MAIL_LOGTAG": "postfix",
            "POSTLOG_SERVICE": str(self._path),
            "POSTLOG_HOSTNAME": "host",
        }

    def lines(self) -> list[str]:
        """Return all lines of the log, without time and host."""
        if self._socket.fileno() >= 0:
            self._read()
        return list(self._lines)

    def whole_lines(self) -> list[str]:
        """Return all lines of the log, as postlogd(8) writes them to the file."""
        self.lines()
        return list(self._whole_lines)

    def wait_for(self, condition: Callable[[list[str]], bool], timeout: float) -> bool:
        """Wait until a condition on the lines is true; return False if it is not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self._lines), timeout)

    def _read_until_the_end(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._ending, select.POLLIN)
        while self._ending not in (descriptor for descriptor, _ in poll.poll()):
            self._read()

    def _read(self) -> None:
        with self._changed:
            while True:
                try:
                    line = self._socket.recv(_READ_SIZE, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                whole = line.decode(errors="backslashreplace").rstrip("\n")
                self._whole_lines.append(whole)
                _, _, _, text = whole.split(maxsplit=3)
                self._lines.append(text.partition(" ")[2])
            self._changed.notify_all()


def bind(sock: socket.socket, path: Path) -> None:
    """Bind a socket to a path that every user may connect to."""
    sock.bind(str(path))
    path.chmod(0o666)
