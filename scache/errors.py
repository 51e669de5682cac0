"""Every exception that scache raises on purpose, and the exit codes of its commands.

``ScacheError`` is the root. What a person can mend (a setting, a socket path,
a database) is a ``StartupError`` whose text is one sentence that says what to
do. What a peer did wrong on the wire is a ``ProtocolError``. The ``exit_code``
of each is what a command ends with that it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scache.client.found import Found

EXIT_OK = 0
"""The daemon was asked to stop, or was idle for ``max_idle`` seconds."""

EXIT_FAILURE = 1
"""Something went wrong that scache did not foresee: please report it."""

EXIT_SETTINGS = 2
"""An option, a key of the configuration file, a ``SCACHE_*`` variable or a statement is wrong, or
the limit on open files is too low."""

EXIT_SOCKET = 3
"""The listening socket cannot be made, another daemon holds it, or none answers on it."""

EXIT_DATABASE = 4
"""The database cannot be opened, is not one of ours, or cannot be written."""

EXIT_REFUSED = 5
"""The daemon does not let this user look inside, or purge."""

EXIT_FINDINGS = 6
"""``scache check`` found something that is not as it should be."""


class ScacheError(Exception):
    """The root of every exception that scache raises on purpose."""

    exit_code = EXIT_FAILURE


class StartupError(ScacheError):
    """The daemon cannot start; the text is one sentence that says what to do."""


class SettingsError(StartupError):
    """A setting is unknown or has a value that makes no sense, or too few files may be open."""

    exit_code = EXIT_SETTINGS


class SocketError(StartupError):
    """The listening socket cannot be made where the settings say."""

    exit_code = EXIT_SOCKET


class DatabaseError(StartupError):
    """The database cannot be opened, migrated, read or written."""

    exit_code = EXIT_DATABASE


class CorruptError(DatabaseError):
    """The database is one of ours, or was, and SQLite cannot make sense of it."""

    def __init__(self, damage: str, advice: str) -> None:
        super().__init__(f"{damage}: {advice}")
        self.damage = damage
        """What is wrong, without what to do."""


class DatabaseFault(ScacheError):
    """The running daemon's database says no: it is locked, its disk is full or broken.

    Nothing was changed. The request is answered with status 2, and the next may succeed.
    """


class ProtocolError(ScacheError):
    """The peer sent something that the protocol of scache(8) does not allow."""


class NotParkable(ScacheError, TypeError):
    """A connection cannot be saved, because part of its state is in this process."""


class ClientInUse(ScacheError, RuntimeError):
    """A client was used elsewhere: nothing was sent, and a request under way goes on.

    A `Client` has a request under way, in another thread or in the code that a signal interrupted.
    An `AsyncClient` belongs to another event loop, or to that of another library (asyncio, trio).
    """


class DescriptorLimit(ScacheError, OSError):
    """This process is at its limit on open files (EMFILE), or the machine is at its own (ENFILE).

    Connections that there is no room for are not asked for: they stay in the cache.
    """

    exit_code = EXIT_SETTINGS
    found: Sequence[Found | None] = ()
    """What `find_many` or `find_dest_many` returned if it had been asked for this many labels only.

    The caller's to take: what is left of it is closed when the error is dropped.
    """


class Unavailable(ScacheError):
    """No daemon answers on the socket, or it did not answer in time."""

    exit_code = EXIT_SOCKET


class Refused(ScacheError):
    """The daemon does not let this user do that."""

    exit_code = EXIT_REFUSED


class TooOld(Refused):
    """The daemon does not know a request, which was not sent."""


class QueryError(ScacheError):
    """A statement that somebody asked is no SQL, or cannot be answered by an image."""

    exit_code = EXIT_SETTINGS


class Findings(ScacheError):
    """A check found what should not be."""

    exit_code = EXIT_FINDINGS
