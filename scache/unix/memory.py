"""A reserve of memory, so that a process that runs out of memory can still answer requests.

Where a MemoryError is caught, the reserve is released. Work that makes the process grow is refused
until the reserve can be restored; work that frees memory goes on. Without the reserve, the first
allocation that fails is often followed by the failure of every other one, even of an epoll_wait(2).
"""

from __future__ import annotations

SIZE = 256 * 1024
"""Bytes of the reserve. The kernel provides them only as address space, because nothing is written
to them."""

_blocks: list[bytearray] = []


def release() -> None:
    """Make the reserve available, because memory has run out."""
    _blocks.clear()


def restore() -> bool:
    """Take the reserve again, if it was released; return False if there is no memory for it."""
    if _blocks:
        return True
    try:
        _blocks.append(bytearray(SIZE))
    except MemoryError:
        return False
    return True
