"""Postfix's own scache(8), run as its master(8) would run it."""

from __future__ import annotations

import fcntl
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.wire import Wire

_MAIL_OWNER = "postfix"
_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_LISTEN_BACKLOG = 200
_READ_SIZE = 65536
_LONG_AGO = 1_000_000_000

COMMON_MAIN_CF = f"""\
compatibility_level = 3.6
queue_directory = {{directory}}/queue
data_directory = {{directory}}/data
maillog_file = {{directory}}/log/maillog
maillog_file_prefixes = {{directory}}
mail_owner = {_MAIL_OWNER}
myhostname = host.example
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = loopback-only
inet_protocols = ipv4
alias_maps =
alias_database =
local_recipient_maps =
"""
"""What every private instance of Postfix is told, wherever its directory is."""


def postfix_directories() -> tuple[Path, Path]:
    """Return where the installed Postfix keeps its commands and its daemons.

    Raises RuntimeError unless it is installed and can be run from here.
    """
    postconf = shutil.which("postconf", path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")
    if postconf is None:
        raise RuntimeError("this test needs Postfix, and there is no postconf(1) here")
    if os.geteuid() != 0:
        raise RuntimeError("this test runs Postfix's daemons, which only root can start")
    try:
        pwd.getpwnam(_MAIL_OWNER)
    except KeyError:
        raise RuntimeError(f"this test needs Postfix's user, {_MAIL_OWNER}") from None
    # The built-in defaults (-d): the machine's own Postfix need not have been configured.
    answer = subprocess.run(
        [postconf, "-dh", "command_directory", "daemon_directory"],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    commands, daemons = answer.stdout.split()
    return Path(commands), Path(daemons)


@contextmanager
def private_directory(*subdirectories: str) -> Iterator[Path]:
    """Make a directory that Postfix's user can reach into, its path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="scache-test-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        for subdirectory in subdirectories:
            (directory / subdirectory).mkdir(parents=True)
        yield directory


def write_configuration(path: Path, text: str) -> None:
    """Write a file of Postfix's configuration, and date it back.

    Each of its programs waits until the files it reads are two seconds old, lest
    they are still being written.
    """
    path.write_text(text)
    os.utime(path, (_LONG_AGO, _LONG_AGO))


class GenuineScache:
    """The genuine program on a socket of its own, from entering to leaving.

    The settings are those of main.cf, given as ``-o name=value``.
    """

    def __init__(self, settings: Mapping[str, str] | None = None, *, timeout: float = 10) -> None:
        self._settings = dict(settings or {})
        self._timeout = timeout
        self._cleanup = ExitStack()
        self._log: list[str] = []
        self._exit_code: int | None = None
        self.path: Path
        """Where it listens."""
        self.pid: int

    def __enter__(self) -> Self:
        with ExitStack() as cleanup:
            self._start(cleanup)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def stop(self) -> int:
        """Make it believe that master(8) has ended, so that it ends too; return its exit code."""
        os.eventfd_write(self._stopping, 1)
        return self.wait()

    def wait(self) -> int:
        """Return its exit code when it has ended.

        Raises TimeoutError when it has to be killed.
        """
        self._surroundings.join(self._timeout)
        late = self._surroundings.is_alive()
        if late:
            signal.pidfd_send_signal(self._process, signal.SIGKILL)
            self._surroundings.join()
        if self._exit_code is None:
            self._exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if late:
            raise TimeoutError(f"the genuine program did not end within {self._timeout} s")
        return self._exit_code

    def log(self) -> list[str]:
        """Return what it has logged, without time and name; all of it once it has ended."""
        return list(self._log)

    def _start(self, cleanup: ExitStack) -> None:
        _, daemons = postfix_directories()
        directory = cleanup.enter_context(
            private_directory("config", "data", "queue/private", "queue/public")
        )
        write_configuration(directory / "config/main.cf", COMMON_MAIN_CF.format(directory=directory))
        write_configuration(directory / "config/master.cf", "")
        self.path = directory / "queue/private/scache"

        # In place of postlogd(8), to which a program logs when there is a maillog_file.
        log = cleanup.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        log_path = directory / "queue/public/postlog"
        _bind(log, log_path)
        self._stopping = os.eventfd(0, os.EFD_CLOEXEC)
        cleanup.callback(os.close, self._stopping)
        status, status_out = _pipe()
        cleanup.enter_context(status)
        with status_out, socket.socket(socket.AF_UNIX) as listener:
            _bind(listener, self.path)
            listener.listen(_LISTEN_BACKLOG)
            listener.setblocking(False)
            self.pid = _spawn(
                [str(daemons / "scache"), *self._arguments()],
                {
                    "MAIL_CONFIG": str(directory / "config"),
                    "MAIL_LOGTAG": "postfix",
                    "GENERATION": "0",
                    "POSTLOG_SERVICE": str(log_path),
                    "POSTLOG_HOSTNAME": "host",
                },
                status_out.fileno(),
                listener.fileno(),
            )
        self._process = os.pidfd_open(self.pid)
        cleanup.callback(os.close, self._process)
        self._surroundings = threading.Thread(target=self._surround, args=(status, log))
        self._surroundings.start()
        cleanup.callback(self.stop)
        self._check()

    def _arguments(self) -> Iterator[str]:
        yield from ("-l", "-n", "scache", "-t", "unix", "-u")
        for name, value in self._settings.items():
            yield from ("-o", f"{name}={value}")

    def _check(self) -> None:
        """Raise RuntimeError unless it greets a client."""
        try:
            with Wire(self.path, self._timeout) as client:
                client.announcement()
        except (EOFError, OSError) as error:
            self.stop()
            raise RuntimeError(f"the genuine program did not start: {self._log}") from error

    def _surround(self, status: FileIO, log: socket.socket) -> None:
        """Be master(8) and postlogd(8) to the program, until it has ended."""
        status_descriptor = status.fileno()
        poll = select.poll()
        for descriptor in (self._stopping, self._process, status_descriptor, log.fileno()):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if log.fileno() in ready or self._process in ready:
                self._read_log(log)
            if self._process in ready:
                return
            if self._stopping in ready:
                poll.unregister(self._stopping)
                poll.unregister(status_descriptor)
                status.close()
            elif status_descriptor in ready:
                status.read(_READ_SIZE)

    def _read_log(self, log: socket.socket) -> None:
        while True:
            try:
                line = log.recv(_READ_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            _, _, text = line.decode(errors="backslashreplace").partition("]: ")
            self._log.append(text.rstrip("\n"))


def _pipe() -> tuple[FileIO, FileIO]:
    reading, writing = os.pipe()
    return FileIO(reading, "r"), FileIO(writing, "w")


def _bind(sock: socket.socket, path: Path) -> None:
    sock.bind(str(path))
    path.chmod(0o666)


def _spawn(
    command: Sequence[str], environment: Mapping[str, str], status: int, listener: int
) -> int:
    """Start a program with the descriptors that master(8) gives it; return its process id."""
    flow = _pipe()
    with ExitStack() as copies, flow[0], flow[1]:
        actions: list[tuple[int, ...]] = []
        for target, source in enumerate((*(end.fileno() for end in flow), status, listener), 3):
            # Well above the targets, none of which may overwrite what is yet to be copied.
            copy = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 10)
            copies.callback(os.close, copy)
            actions.append((os.POSIX_SPAWN_DUP2, copy, target))
        null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0)
        return os.posix_spawn(
            command[0],
            ["scache", *command[1:]],
            environment,
            file_actions=[null, (os.POSIX_SPAWN_DUP2, 0, 1), *actions],
        )
