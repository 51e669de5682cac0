"""Every exception that scache raises on purpose, and the exit codes of its commands.

``ScacheError`` is the root. What a person can mend (a setting, a socket path,
a database) is a ``StartupError`` whose text is one sentence that says what to
do, and whose ``exit_code`` is what the command ends with. What a peer did
wrong on the wire is a ``ProtocolError``.
"""

EXIT_OK = 0
"""The daemon was asked to stop, or was idle for ``max_idle`` seconds."""

EXIT_FAILURE = 1
"""Something went wrong that scache did not foresee: please report it."""

EXIT_SETTINGS = 2
"""An option, a key of the configuration file or a ``SCACHE_*`` variable is wrong."""

EXIT_SOCKET = 3
"""The listening socket cannot be made, or another daemon holds it."""

EXIT_DATABASE = 4
"""The database cannot be opened, is not one of ours, or cannot be written."""


class ScacheError(Exception):
    """The root of every exception that scache raises on purpose."""


class StartupError(ScacheError):
    """The daemon cannot start; the text is one sentence that says what to do."""

    exit_code = EXIT_FAILURE


class SettingsError(StartupError):
    """A setting is unknown or has a value that makes no sense."""

    exit_code = EXIT_SETTINGS


class SocketError(StartupError):
    """The listening socket cannot be made where the settings say."""

    exit_code = EXIT_SOCKET


class DatabaseError(StartupError):
    """The database cannot be opened, migrated or written."""

    exit_code = EXIT_DATABASE


class DatabaseFault(ScacheError):
    """The running daemon's database says no: it is locked, its disk is full or broken.

    Nothing was changed. The request is answered with status 2, and the next may succeed.
    """


class ProtocolError(ScacheError):
    """The peer sent something that the protocol of scache(8) does not allow."""


class Unavailable(ScacheError):
    """No daemon answers on the socket, or it did not answer in time."""
