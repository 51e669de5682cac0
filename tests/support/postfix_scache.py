"""Postfix's scache(8), run by a stand-in for Postfix's master(8)."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Self

from tests.support.postfix_setup import (
    PostfixLog,
    bind,
    postfix_directories,
    private_directory,
    write_configuration,
)
from tests.support.wire import DEADLINE, Wire

_LISTEN_BACKLOG = 200
_READ_SIZE = 65536


class PostfixScache:
    """Postfix's scache(8) on a socket of its own, as a context manager.

    The settings are those of main.cf, passed as ``-o name=value``.
    """

    def __init__(
        self,
        settings: Mapping[str, str] | None = None,
        *,
        timeout: float = DEADLINE,
        open_files: int | None = None,
        status_interval: float = 0.0,
    ) -> None:
        """Set a limit on open files, and seconds between two reads of the status pipe."""
        self._settings = dict(settings or {})
        self._timeout = timeout
        self._open_files = open_files
        self._status_interval = status_interval
        self._exit_code: int | None = None
        self.path: Path
        """The socket on which it listens."""
        self.pid: int
        self.started_in: float
        """Seconds from exec to the announcement."""

    def __enter__(self) -> Self:
        with ExitStack() as cleanup:
            self._start(cleanup)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def stop(self) -> int:
        """Close its pipe to master(8), which makes it end; return its exit code."""
        os.eventfd_write(self._ending, 1)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended, and return its exit code.

        Raises TimeoutError if it had to be killed.
        """
        self._master.join(self._timeout)
        late = self._master.is_alive()
        if late:
            signal.pidfd_send_signal(self._process, signal.SIGKILL)
            self._master.join()
        if self._exit_code is None:
            self._exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if late:
            raise TimeoutError(f"Postfix's scache(8) did not end within {self._timeout} s")
        return self._exit_code

    def log(self) -> list[str]:
        """Return the lines it has logged, without time and name; all of them once it has ended."""
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
            bind(listener, self.path)
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
        self._master = threading.Thread(target=self._act_as_master, args=(status,))
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
        """Raise RuntimeError unless a client gets the announcement."""
        try:
            with Wire(self.path, self._timeout) as client:
                client.announcement()
        except (EOFError, OSError) as error:
            self.stop()
            raise RuntimeError(f"Postfix's scache(8) did not start: {self.log()}") from error

    def _act_as_master(self, status: FileIO) -> None:
        """Read the status pipe until the program has ended; close the pipe to make it end."""
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


def _spawn(
    command: Sequence[str], environment: Mapping[str, str], status: int, listener: int
) -> int:
    """Start a program with the descriptors that master(8) passes to it; return its process id."""
    flow_in, flow_out = _pipe()
    with ExitStack() as copies, flow_in, flow_out:
        actions: list[tuple[int, ...]] = []
        for target, source in enumerate((flow_in.fileno(), flow_out.fileno(), status, listener), 3):
            # Copies above the targets, so that no target overwrites a later source.
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
