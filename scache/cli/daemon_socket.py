"""The socket of the daemon that a command asks: where its path is from, and why nothing answers."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import click

from scache.cli.option_types import seconds
from scache.cli.shell_completion import files
from scache.cli.streams import echo
from scache.errors import ProtocolError, Refused, Unavailable, reason_of
from scache.escape import one_line, shown
from scache.settings.declarations import SETTINGS, default_socket
from scache.settings.loading import CONFIG_VARIABLE, from_environment, from_file

if TYPE_CHECKING:
    from scache.client.sync import Client

Command = Callable[..., None]

_SOCKET = next(setting for setting in SETTINGS if setting.name == "socket")

TIMEOUT = 5.0
"""Seconds that a request of a command may take by default."""

PATIENCE = 2.0
"""Seconds of waiting after which a command says what it waits for."""

_KINDS = {
    stat.S_IFREG: "regular file",
    stat.S_IFDIR: "directory",
    stat.S_IFIFO: "named pipe",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
"""The types of files that are no sockets."""


class DaemonSocket(NamedTuple):
    """The socket of a daemon that may be running."""

    path: Path
    origin: str
    """Where the path is from, in words."""
    timeout: float
    """Seconds that a request may take."""

    def __str__(self) -> str:
        return f"{self.path} ({self.origin})"


def socket_options(command: Command, timeout: float = TIMEOUT) -> Command:
    """Add ``--socket`` and ``--timeout`` to a command; `given_socket` makes one of both.

    The help names ``timeout`` as the default of that option.
    """
    option = click.option(
        "--timeout",
        metavar="SECONDS",
        callback=seconds,
        help=f"Time that the daemon has for each answer.  [default: {timeout:g}]",
    )
    return socket_option(option(command))


def socket_option(command: Command) -> Command:
    """Add ``--socket`` to a command."""
    option = click.option(
        "--socket",
        metavar="PATH",
        shell_complete=files,
        help=f"Socket of the running daemon; or {_SOCKET.variable}, or the socket of the file "
        f"{CONFIG_VARIABLE}.  [default: {_SOCKET.default}]",
    )
    return option(command)


def given_socket(path: str | None, timeout: float | None) -> DaemonSocket:
    """Return the socket that ``--socket``, the environment or the configuration file names.

    The order and the checks are those of ``scache serve``. Raises SettingsError.
    """
    if path is None:
        found, origin = _from_surroundings(os.environ)
    else:
        found, origin = cast(Path, _SOCKET.check(path, "--socket")), "from --socket"
    return DaemonSocket(found, origin, TIMEOUT if timeout is None else timeout)


def _from_surroundings(environment: Mapping[str, str]) -> tuple[Path, str]:
    """Return the path and its origin; a variable wins over the configuration file."""
    file = environment.get(CONFIG_VARIABLE)
    found, origin = default_socket(), _default_origin()
    for given in chain(from_file(Path(file) if file else None), from_environment(environment)):
        if given.setting is _SOCKET:
            found = cast(Path, _SOCKET.check(given.value, given.spelled))
            origin = f"from {given.origin}"
    return found, origin


def _default_origin() -> str:
    if os.geteuid() == 0:
        return "the default for root"
    if os.environ.get("XDG_RUNTIME_DIR", "").startswith("/"):
        return "the default, in XDG_RUNTIME_DIR"
    return "the default without XDG_RUNTIME_DIR"


@contextmanager
def connect(place: DaemonSocket) -> Iterator[Client]:
    """Connect to a running daemon.

    Raises Unavailable if no daemon answers, and Refused if the socket or the daemon refuses this
    user.
    """
    from scache.client.sync import Client
    from scache.protocol.client import NO_INLINE

    with Client(place.path, timeout=place.timeout) as client:
        try:
            yield client
        except ProtocolError as error:
            advice = "name another --socket"
            if str(error) == NO_INLINE:
                advice += ", or run the command as a user of its allow_uids or admin_uids"
            raise Unavailable(
                f"the server at {place} does not answer as a scache daemon ({error})"
                f"{_listener(place.path)}: {advice}"
            ) from error
        except Unavailable as error:
            raise _explained(error, place) from error


@contextmanager
def announced(place: DaemonSocket) -> Iterator[None]:
    """Say on stderr what the command waits for, if this block takes longer than `PATIENCE`."""

    def announce() -> None:
        text = f"waiting for the daemon at {place}, for up to {place.timeout:g} s"
        echo(f"scache: {one_line(text)}", err=True)

    if place.timeout <= PATIENCE:
        yield
        return
    timer = threading.Timer(PATIENCE, announce)
    timer.daemon = True
    with suppress(RuntimeError):  # no thread can be started: the line is left out
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _explained(error: Unavailable, place: DaemonSocket) -> Unavailable | Refused:
    """Return the error with the origin of the path, its reason, and what to do."""
    cause = error.__cause__
    begin = f"cannot connect to the daemon at {place}"
    another = "name another --socket"
    start = f"start `scache serve`, or {another}"
    match cause:
        case PermissionError():
            return Refused(
                f"{begin}: permission denied; run the command as {_permitted_users(place.path)}"
            )
        case FileNotFoundError():
            return Unavailable(f"{begin}: {_missing(place.path)}; {start}")
        case ConnectionRefusedError() if (kind := _kind(place.path)) is not None:
            return Unavailable(f"{begin}: it is no socket but a {kind}; {another}")
        case ConnectionRefusedError():
            return Unavailable(
                f"{begin}: connection refused, because no process listens on it; {start}"
            )
        case OSError(errno=errno.EPROTOTYPE):
            return Unavailable(
                f"{begin}: it is a socket of another type, of another service; {another}"
            )
        case OSError():
            return Unavailable(f"{begin}: {reason_of(cause)}; {another}")
    located = str(error).replace(str(place.path), str(place), 1)
    advice = f"; if it is no scache daemon, {another}, and if it is busy, raise --timeout"
    listener = _listener(place.path)
    return type(error)(f"{located}{listener}{advice if listener else ''}")


def _missing(path: Path) -> str:
    directory = path.parent
    try:
        missing = not directory.exists()
    except OSError:
        missing = False
    return f"there is no directory {directory}" if missing else "there is no such file"


def _kind(path: Path) -> str | None:
    """Return the type of a file in words; None for a socket, or if it cannot be examined."""
    try:
        mode = path.stat().st_mode
    except OSError:  # it was removed meanwhile
        return None
    return _KINDS.get(stat.S_IFMT(mode))


def _listener(path: Path) -> str:
    """Return the process that listens on a socket, as the end of a clause; empty if unknown."""
    from scache.unix.credentials import peer

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
            found = peer(probe)
        except OSError:
            return ""
    if not found.pid:
        return ""
    name = f" ({shown(found.program)})" if found.program is not None else ""
    return f"; process {found.pid}{name} listens there"


def _permitted_users(path: Path) -> str:
    """Return the users who can connect to a socket that refuses this user, in words."""
    try:
        path.lstat()
    except PermissionError:
        return "root or as a user who may enter its directory"
    except OSError:
        pass  # it was removed meanwhile
    return "root or as its owner"
