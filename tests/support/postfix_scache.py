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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Self

from tests.support.wire import DEADLINE, Wire

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
"""What every private instance of Postfix is told, wherever its directory is."""

_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_LISTEN_BACKLOG = 200
_READ_SIZE = 65536
_LONG_AGO = 1_000_000_000


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
        pwd.getpwnam(MAIL_OWNER)
    except KeyError:
        raise RuntimeError(f"this test needs Postfix's user, {MAIL_OWNER}") from None
    # The built-in defaults (-d): the machine's own Postfix need not have been configured.
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
    """Make a directory that Postfix's user can reach into, its path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="scache-test-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        for subdirectory in subdirectories:
            (directory / subdirectory).mkdir(parents=True)
        yield directory


def write_configuration(directory: Path, main_cf: str, master_cf: str = "") -> Path:
    """Write a configuration of Postfix in a private directory; return where."""
    configuration = directory / "config"
    configuration.mkdir()
    common = COMMON_MAIN_CF.format(directory=directory)
    for name, text in (("main.cf", common + main_cf), ("master.cf", master_cf)):
        path = configuration / name
        path.write_text(text)
        # Lest it reads what is still being written, each of Postfix's programs would wait until
        # the file is two seconds old.
        os.utime(path, (_LONG_AGO, _LONG_AGO))
    return configuration


class PostfixLog:
    """What the programs of one instance of Postfix log: we are its postlogd(8)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[str] = []
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        with ExitStack() as cleanup:
            self._socket = cleanup.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            _bind(self._socket, self._path)
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
        """What tells a program to log here, even before it has read its configuration."""
        return {
            "MAIL_LOGTAG": "postfix",
            "POSTLOG_SERVICE": str(self._path),
            "POSTLOG_HOSTNAME": "host",
        }

    def lines(self) -> list[str]:
        """Return all lines that have been logged, from the name of the program on."""
        if self._socket.fileno() >= 0:
            self._read()
        return list(self._lines)

    def wait_for(self, condition: Callable[[list[str]], bool], timeout: float) -> bool:
        """Wait until this is true of the lines; return whether it became so in time."""
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
                _, _, _, text = line.decode(errors="backslashreplace").split(maxsplit=3)
                self._lines.append(text.partition(" ")[2].rstrip("\n"))
            self._changed.notify_all()


class GenuineScache:
    """The genuine program on a socket of its own, from entering to leaving.

    The settings are those of main.cf, given as ``-o name=value``.
    """

    def __init__(
        self,
        settings: Mapping[str, str] | None = None,
        *,
        timeout: float = DEADLINE,
        open_files: int | None = None,
        status_interval: float = 0.0,
    ) -> None:
        """Run with a limit on open files; read its status at most every ``status_interval``."""
        self._settings = dict(settings or {})
        self._timeout = timeout
        self._open_files = open_files
        self._status_interval = status_interval
        self._exit_code: int | None = None
        self.path: Path
        """Where it listens."""
        self.pid: int
        self.started_in: float
        """Seconds from its exec to its announcement."""

    def __enter__(self) -> Self:
        with ExitStack() as cleanup:
            self._start(cleanup)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def stop(self) -> int:
        """Make it believe that master(8) has ended, so that it ends too; return its exit code."""
        os.eventfd_write(self._ending, 1)
        return self.wait()

    def wait(self) -> int:
        """Return its exit code when it has ended.

        Raises TimeoutError when it has to be killed.
        """
        self._master.join(self._timeout)
        late = self._master.is_alive()
        if late:
            signal.pidfd_send_signal(self._process, signal.SIGKILL)
            self._master.join()
        if self._exit_code is None:
            self._exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if late:
            raise TimeoutError(f"the genuine program did not end within {self._timeout} s")
        return self._exit_code

    def log(self) -> list[str]:
        """Return what it has logged, without time and name; all of it once it has ended."""
        return [line.partition(": ")[2] for line in self._log.lines()]

    def _start(self, cleanup: ExitStack) -> None:
        _, daemons = postfix_directories()
        directory = cleanup.enter_context(
            private_directory("data", "queue/private", "queue/public")
        )
        configuration = write_configuration(directory, "")
        self.path = directory / "queue/private/scache"
        self._log = cleanup.enter_context(PostfixLog(directory / "queue/public/postlog"))
        self._ending = os.eventfd(0, os.EFD_CLOEXEC)
        cleanup.callback(os.close, self._ending)
        status, status_out = _pipe()
        cleanup.enter_context(status)
        with status_out, socket.socket(socket.AF_UNIX) as listener:
            _bind(listener, self.path)
            listener.listen(_LISTEN_BACKLOG)
            listener.setblocking(False)
            began = time.monotonic()
            self.pid = _spawn(
                [*self._limit(), str(daemons / "scache"), *self._arguments()],
                {"MAIL_CONFIG": str(configuration), "GENERATION": "0", **self._log.environment},
                status_out.fileno(),
                listener.fileno(),
            )
        self._process = os.pidfd_open(self.pid)
        cleanup.callback(os.close, self._process)
        self._master = threading.Thread(target=self._be_master, args=(status,))
        self._master.start()
        cleanup.callback(self.stop)
        self._check()
        self.started_in = time.monotonic() - began

    def _limit(self) -> Iterator[str]:
        if self._open_files is not None:
            yield from ("/bin/sh", "-c", f'ulimit -n {self._open_files}; exec "$0" "$@"')

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
            raise RuntimeError(f"the genuine program did not start: {self.log()}") from error

    def _be_master(self, status: FileIO) -> None:
        """Read what the program says of its status until it has ended; hang up to end it."""
        status_descriptor = status.fileno()
        poll = select.poll()
        for descriptor in (self._ending, self._process, status_descriptor):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._process in ready:
                return
            if self._ending in ready:
                poll.unregister(self._ending)
                poll.unregister(status_descriptor)
                status.close()
            elif status_descriptor in ready:
                status.read(_READ_SIZE)
                time.sleep(self._status_interval)


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
    flow_in, flow_out = _pipe()
    with ExitStack() as copies, flow_in, flow_out:
        actions: list[tuple[int, ...]] = []
        for target, source in enumerate((flow_in.fileno(), flow_out.fileno(), status, listener), 3):
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
