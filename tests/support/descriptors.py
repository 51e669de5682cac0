"""The descriptors of a process."""

from __future__ import annotations

import fcntl
import os
import resource
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def descriptors_of(pid: int) -> dict[int, str]:
    """Return the open descriptors of a process with their targets in /proc."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - Path.iterdir holds a descriptor
        try:
            found[int(name)] = str(Path(f"/proc/{pid}/fd/{name}").readlink())
        except FileNotFoundError:  # for example the one that listed the directory
            continue
    return found


def sockets_of(pid: int) -> dict[int, str]:
    """Return the open descriptors of a process that are sockets."""
    return {
        number: name for number, name in descriptors_of(pid).items() if name.startswith("socket:")
    }


def is_asking() -> bool:
    """Return True if a socket of this process has sent data that its peer has not read yet.

    This is the case while a client waits for a stopped daemon (SIOCOUTQ, unix(7)).
    """
    for number in sockets_of(os.getpid()):
        waiting = bytearray(4)
        with suppress(OSError):
            fcntl.ioctl(number, termios.TIOCOUTQ, waiting)
        if any(waiting):
            return True
    return False


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Limit this process to ``count`` more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The limit is on the numbers, so all numbers below the highest must be in use.
    highest = max(descriptors_of(os.getpid()))
    fillers = [os.open(os.devnull, os.O_RDONLY)]
    while fillers[-1] < highest:
        fillers.append(os.dup(fillers[0]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)
