"""Replacing a file atomically and durably, even if a signal ends the process."""

from __future__ import annotations

import errno
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CHUNK: Final = 1 << 20
"""Bytes written between two checks for a pending signal."""

_NOT_ENDING: Final = {
    signal.SIGCHLD,
    signal.SIGCONT,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGURG,
    signal.SIGWINCH,
}
"""Signals that do not end a process by default."""

_FAULTS: Final = {
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGSYS,
    signal.SIGTRAP,
}
"""Signals of a fault in this process, which cannot go on."""

_NO_UNNAMED: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
"""Errors of a file system that has no files without a name."""

_NO_SYNC: Final = (errno.EINVAL, errno.EBADF, errno.EROFS, errno.EOPNOTSUPP)
"""Errors of a file system that cannot write a directory to the disk on demand."""


def replace(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, and replace an existing file of that name.

    The file has no name until it is on the disk, where the file system allows that. A signal that
    would end the process is blocked until then, and until a temporary name is renamed or removed.
    When one is pending, no further `CHUNK` is written. Raises OSError.
    """
    name = path.parent / f".scache-dump-{secrets.token_hex(8)}"
    with _held_back() as held_back:
        try:
            descriptor, unnamed = _create(name)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                rest = memoryview(data)
                while rest:
                    _check_pending(held_back)
                    rest = rest[file.write(rest[:CHUNK]) :]
                os.fsync(descriptor)
                _check_pending(held_back)
                if unnamed:
                    _link(descriptor, name)
            name.replace(path)
        except BaseException:
            name.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Write the names in a directory to the disk, if its file system can. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # a directory that we may write to and not list
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def _create(name: Path) -> tuple[int, bool]:
    """Create a file; return its descriptor, and True if it has no name yet."""
    if Path("/proc/self/fd").is_dir():  # `_link` needs it
        try:
            return os.open(name.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600), True
        except OSError as error:
            if error.errno not in _NO_UNNAMED:
                raise
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), False


def _link(descriptor: int, name: Path) -> None:
    # Python follows the link of proc(5) only if it calls linkat(2), for which it needs a directory.
    directory = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(str(descriptor), name, src_dir_fd=directory, follow_symlinks=True)
    finally:
        os.close(directory)


def _check_pending(held_back: set[int]) -> None:
    """Raise InterruptedError if a blocked signal is pending."""
    if signal.sigpending() & held_back:
        raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))


@contextmanager
def _held_back() -> Iterator[set[int]]:
    """Block the signals that would end the process, in this thread; yield their set."""
    ending: set[int] = {
        number
        for number in signal.valid_signals() - _NOT_ENDING - _FAULTS
        if signal.getsignal(number) != signal.SIG_IGN
    }
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        yield ending
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
