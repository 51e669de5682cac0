"""Our daemon in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.support.commands import SCACHE, clean_environment, default_signals
from tests.support.wire import DEADLINE

_STOPPING_LATE = """
import sys
from scache.cli import main
from scache.daemon import server

server.STOP_TIMEOUT = float(sys.argv.pop(1))
sys.exit(main())
"""


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Keep a child process from running meanwhile, so that what is sent to it waits."""
    os.kill(pid, signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Daemon:
    """``scache serve``, listening from entering on and gone after leaving."""

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
        """Run with these options, a limit on open files, and a STOP_TIMEOUT in seconds.

        The ``prefix`` is a command that executes the one that is given to it.
        """
        self.path = Path(path)
        """Where it listens."""
        self._options = ("--socket", str(path), "--database", str(database), *options)
        self._timeout = timeout
        if open_files is not None:
            prefix = ("bash", "-c", f'ulimit -n {open_files}; exec "$@"', "bash")
        self._command: tuple[str, ...] = (*prefix, *SCACHE)
        if stop_timeout is not None:
            self._command = (sys.executable, "-c", _STOPPING_LATE, str(stop_timeout))
        self._process: subprocess.Popen[str]
        self._log: list[str] = []
        self._logged = threading.Condition()
        self._log_ended = False

    def __enter__(self) -> Self:
        with default_signals():
            self._process = subprocess.Popen(
                [*self._command, "serve", *self._options],
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="backslashreplace",
            )
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()
        try:
            self.wait_for_log("listening")
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self._process.pid

    def log(self) -> list[str]:
        """Return the lines it has logged; all of them once it has ended."""
        return list(self._log)

    def wait_for_log(self, text: str) -> str:
        """Return the first line that holds this text, waiting until there is one.

        Raises RuntimeError when there is none in time, or can be none any more.
        """
        with self._logged:
            self._logged.wait_for(lambda: self._log_ended or self._find(text), self._timeout)
            line = self._find(text)
        if line is None:
            raise RuntimeError(f"the daemon did not log {text!r} but {self._log}")
        return line

    def terminate(self) -> int:
        """Ask it to stop, unless it has; return its exit code.

        Raises subprocess.TimeoutExpired when it does not.
        """
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Return its exit code when it has ended.

        Raises subprocess.TimeoutExpired when it does not.
        """
        code = self._process.wait(self._timeout)
        self._reader.join()
        return code

    def kill(self) -> None:
        """End it by force, unless it has ended."""
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
