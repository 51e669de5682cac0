"""The daemon in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.support.commands import SCACHE, clean_environment, default_signals
from tests.support.wire import DEADLINE

_WITH_STOP_TIMEOUT = """
import sys
from scache.cli import main
from scache.daemon import server

server.STOP_TIMEOUT = float(sys.argv.pop(1))
sys.exit(main())
"""


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a child process for the time of the block, so that requests to it wait."""
    os.kill(pid, signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class DaemonProcess:
    """A command that runs a daemon, as a context manager that waits until it listens."""

    def __init__(
        self,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        *,
        timeout: float = DEADLINE,
    ) -> None:
        self._command = command
        self._environment = environment or {}
        self._timeout = timeout
        self._process: subprocess.Popen[str]
        self._log: list[str] = []
        self._logged = threading.Condition()
        self._log_ended = False

    def __enter__(self) -> Self:
        with default_signals():
            self._process = subprocess.Popen(
                self._command,
                env=clean_environment(**self._environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="backslashreplace",
            )
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()
        try:
            self.wait_for_log(": listening on ")
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The process id of the command."""
        return self._process.pid

    def log(self) -> list[str]:
        """Return the lines of the log; all of them once the daemon has ended."""
        return list(self._log)

    def wait_for_log(self, text: str) -> str:
        """Wait for a line with this text, and return the first one.

        Raises RuntimeError if there is none in time, or if the log has ended without one.
        """
        with self._logged:
            self._logged.wait_for(lambda: self._log_ended or self._find(text), self._timeout)
            line = self._find(text)
        if line is None:
            raise RuntimeError(f"the daemon did not log {text!r} but {self._log}")
        return line

    def terminate(self) -> int:
        """Send SIGTERM, unless the daemon has ended; return its exit code.

        Raises subprocess.TimeoutExpired if it does not end in time.
        """
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait until the daemon has ended, and return its exit code.

        Raises subprocess.TimeoutExpired if it does not end in time.
        """
        code = self._process.wait(self._timeout)
        self._reader.join()
        return code

    def kill(self) -> None:
        """Kill the daemon, unless it has ended."""
        self._process.kill()
        self.wait()

    def _find(self, text: str) -> str | None:
        return next((line for line in self._log if text in line), None)

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                with self._logged:
                    self._log.append(line.rstrip("\n"))
                    self._logged.notify_all()
        with self._logged:
            self._log_ended = True
            self._logged.notify_all()


class Daemon(DaemonProcess):
    """``scache serve`` of the checkout."""

    def __init__(
        self,
        path: str | Path,
        *options: str,
        database: str | Path = ":memory:",
        timeout: float = DEADLINE,
        open_files: int | None = None,
        stop_timeout: float | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """Run with these options, a limit on open files, and STOP_TIMEOUT in seconds.

        The ``prefix`` is a command that executes the command behind it.
        """
        self.path = Path(path)
        """The socket on which it listens."""
        if open_files is not None:
            prefix = ("bash", "-c", f'ulimit -n {open_files}; exec "$@"', "bash")
        command: tuple[str, ...] = (*prefix, *SCACHE)
        if stop_timeout is not None:
            command = (*prefix, sys.executable, "-c", _WITH_STOP_TIMEOUT, str(stop_timeout))
        arguments = ("--socket", str(path), "--database", str(database), *options)
        super().__init__((*command, "serve", *arguments), timeout=timeout)
