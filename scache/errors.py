"""The exceptions that scache raises deliberately, and the exit codes of its commands.

``ScacheError`` is the base class. A ``StartupError`` reports a problem that an administrator can
fix (a setting, a socket path, a database); its text is one sentence that says what to do. A
``ProtocolError`` reports a protocol violation by the peer. ``exit_code`` is the exit code of a
command that such an exception ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scache.client.found import Found

EXIT_OK = 0
"""The daemon was asked to stop, or was idle for ``max_idle`` seconds."""

EXIT_FAILURE = 1
"""An unexpected error, which should be reported as a bug."""

EXIT_SETTINGS = 2
"""An option, a key of the configuration file, a ``SCACHE_*`` variable or a statement is wrong, or
the limit on open files is too low."""

EXIT_SOCKET = 3
"""The listening socket cannot be created, another daemon uses it, or no daemon answers on it."""

EXIT_DATABASE = 4
"""The database cannot be opened, is not a database of scache, or cannot be written."""

EXIT_REFUSED = 5
"""The daemon does not permit this user to make the request, or is too old for it."""

EXIT_FINDINGS = 6
"""``scache check`` found a problem."""

EXIT_NOTHING_FOUND = 7
"""Reserved for a command that finds no connection; no command uses it yet."""

EXIT_NOT_NOW = 8
"""The daemon or the command is out of resources or time; the same command may succeed later."""


class ScacheError(Exception):
    """The base class of all exceptions that scache raises deliberately."""

    exit_code = EXIT_FAILURE


class StartupError(ScacheError):
    """The daemon cannot start; the text is one sentence that says what to do."""


class SettingsError(StartupError):
    """A setting is unknown or invalid, or the limit on open files is too low."""

    exit_code = EXIT_SETTINGS


class SocketError(StartupError):
    """The listening socket cannot be created at the configured path."""

    exit_code = EXIT_SOCKET


class ResourceError(StartupError):
    """The daemon or a command lacks descriptors or threads."""

    exit_code = EXIT_NOT_NOW


class DatabaseError(StartupError):
    """The database cannot be opened, migrated, read or written."""

    exit_code = EXIT_DATABASE


class CorruptError(DatabaseError):
    """The database of scache is corrupt."""

    def __init__(self, damage: str, advice: str) -> None:
        super().__init__(f"{damage}: {advice}")
        self.damage = damage
        """The description of the damage, without the advice."""


class DatabaseFault(ScacheError):
    """The database rejects a statement: it is locked, or its disk is full or broken.

    Nothing was changed. The request fails with status 2; the next one may succeed.
    """


class ProtocolError(ScacheError):
    """The peer violated the protocol of scache(8)."""


class NotParkable(ScacheError, TypeError):
    """A connection cannot be saved, because part of its state is in this process."""


class ClientInUse(ScacheError, RuntimeError):
    """A client is in use elsewhere. Nothing was sent, and a request in progress continues.

    A `Client` has a request in progress, in another thread or in the code that a signal
    interrupted. An `AsyncClient` belongs to another event loop.
    """


class DescriptorLimit(ScacheError, OSError):
    """The file descriptor limit of this process (EMFILE) or of the machine (ENFILE) is reached.

    A client does not request connections for which it has no room, so they stay in the cache.
    """

    exit_code = EXIT_NOT_NOW
    found: Sequence[Found | None] = ()
    """The results of `find_many` or `find_dest_many` for the first labels, before the error.

    The caller may take them. The remaining ones are closed when the error is dropped.
    """


class Unavailable(ScacheError):
    """No daemon answers on the socket, or it did not answer in time."""

    exit_code = EXIT_SOCKET


class TimedOut(Unavailable):
    """The daemon did not answer in time."""

    exit_code = EXIT_NOT_NOW


class Refused(ScacheError):
    """The daemon does not permit this user to make the request."""

    exit_code = EXIT_REFUSED


class NotNow(Refused):
    """The daemon permits the request, but is out of resources or time. It may succeed later."""

    exit_code = EXIT_NOT_NOW

    def __init__(self, reason: str, shortage: str) -> None:
        super().__init__(reason)
        self.shortage = shortage
        """One word for what the daemon is short of, such as ``memory``; part of the protocol."""


class TooOld(Refused):
    """The daemon is too old for a request. The request was not sent."""


class QueryError(ScacheError):
    """An SQL statement is invalid, or cannot be run on a snapshot."""

    exit_code = EXIT_SETTINGS


class Findings(ScacheError):
    """A check found a problem."""

    exit_code = EXIT_FINDINGS


def reason_of(error: BaseException) -> str:
    """Return the text of any error for a message; never empty, and without the number of errno."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if text:
        return text
    match error:
        case TimeoutError():
            return "timed out"
        case MemoryError():
            return "out of memory"
        case _:
            return type(error).__name__
