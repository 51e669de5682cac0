"""Replacing a file atomically, even if a signal ends the process."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CHUNK: Final = 1 << 20
"""Bytes written between two checks for a pending signal."""

_ENDING: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""Signals with which users and shells end a command."""


def replace(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, and replace an existing file of that name.

    A signal that would end the process is blocked until the temporary file is renamed or removed.
    When one is pending, no further `CHUNK` is written. Raises OSError.
    """
    with _held_back() as held_back:
        descriptor, name = tempfile.mkstemp(prefix=".scache-dump-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                rest = memoryview(data)
                while rest:
                    if signal.sigpending() & held_back:
                        raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
                    rest = rest[file.write(rest[:CHUNK]) :]
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def _held_back() -> Iterator[set[signal.Signals]]:
    """Block the signals that would end the process, in this thread; yield their set."""
    ending = {number for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        yield ending
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
