"""Resources that the daemon can run out of, and the refusals of requests for want of them."""

from __future__ import annotations

import errno
from typing import NamedTuple

_TEXTS = {
    "processes": "out of processes (ulimit -u)",
    "memory": "out of memory",
    "file_size": "the limit on file size is too low (ulimit -f)",
    "descriptors": "out of descriptors (ulimit -n)",
    "memfd": "memfd_create(2) is refused",
    "time": "out of time",
    "child": "its process was killed",
}
"""By the word of the protocol: the reason why no snapshot can be taken."""

_WORDS = {
    errno.EAGAIN: "processes",
    errno.ENOMEM: "memory",
    errno.ENOBUFS: "memory",
    errno.ENOSPC: "memory",
    errno.EFBIG: "file_size",
    errno.EMFILE: "descriptors",
    errno.ENFILE: "descriptors",
    errno.ETOOMANYREFS: "descriptors",
}


class Refusal(NamedTuple):
    """The reply to a request that is not carried out."""

    reason: str
    shortage: str | None = None
    """The word for what the daemon is short of; None if that is not the reason."""


def shortage_of(error: BaseException) -> str | None:
    """Return the word for what is missing if an error tells of a shortage, else None."""
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, TimeoutError):
        return "time"
    return _WORDS.get(error.errno or 0) if isinstance(error, OSError) else None


def no_snapshot(shortage: str | None) -> Refusal:
    """Return the refusal of a snapshot; None means that the reason is a bug or unknown."""
    why = f": {_TEXTS[shortage]}" if shortage in _TEXTS else ""
    return Refusal(f"no snapshot can be taken now{why}; see the daemon's log", shortage)
