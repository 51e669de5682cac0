"""The daemon or the database file that a command works on, and the options that name it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from scache.errors import ProtocolError, Refused, SettingsError, Unavailable
from scache.escape import one_line
from scache.settings.declarations import SETTINGS, default_socket

if TYPE_CHECKING:
    from scache.client.sync import Client
    from scache.inspection.image import Image

SOCKET = next(setting for setting in SETTINGS if setting.name == "socket")

T = TypeVar("T")
Command = Callable[..., None]

TIMEOUT = 30.0
"""Time-out of a request in seconds. It is long, because a person can press Ctrl-C."""


@contextmanager
def connect(socket: Path) -> Iterator[Client]:
    """Connect to a running daemon.

    Raises Unavailable if no daemon answers, and Refused if the socket or the daemon refuses this
    user.
    """
    from scache.client.sync import Client

    with Client(socket, timeout=TIMEOUT) as client:
        try:
            yield client
        except ProtocolError as error:
            raise Unavailable(
                f"the server at {socket} does not answer as a scache daemon ({error}): name "
                "another --socket, or run the command as a user of its allow_uids or admin_uids"
            ) from error
        except Unavailable as error:
            match error.__cause__:
                case PermissionError():
                    raise Refused(
                        f"cannot connect to the daemon at {socket}: permission denied; "
                        f"run the command as {_permitted_users(socket)}"
                    ) from error
                case FileNotFoundError() | ConnectionRefusedError():
                    raise Unavailable(
                        f"{error}; start `scache serve`, or name another --socket"
                    ) from error
            raise


def _permitted_users(socket: Path) -> str:
    """Return the users who can connect to a socket that refuses this user, in words."""
    try:
        socket.lstat()
    except PermissionError:
        return "root or as a user who may enter its directory"
    except OSError:
        pass  # it was removed meanwhile
    return "root or as its owner"


@dataclass(frozen=True, slots=True)
class Target:
    """The daemon or database file that images are taken from."""

    socket: Path
    database: str | None
    """Path of a database file; None for the daemon at the socket."""

    def __str__(self) -> str:
        if self.database is not None:
            return f"database {self.database}"
        return f"daemon at {self.socket}"

    def image(self, *, sound: bool = True) -> Image:
        """Take an image, which the caller closes.

        Raises Unavailable, Refused or DatabaseError, also for a corrupt file if ``sound`` is true.
        """
        from scache.inspection.image import Image

        if self.database is not None:
            return Image.from_file(self.database, sound=sound)
        with connect(self.socket) as client:
            return self.image_for(client)

    def image_for(self, client: Client) -> Image:
        """Take an image through a connected client; the caller closes it."""
        from scache.inspection.image import Image
        from scache.store import serialized

        data = serialized.read(client.snapshot())
        return Image.from_bytes(data, f"the image of the {self}")


def repeated(look: Callable[[], T], interval: float) -> Iterator[T]:
    """Yield the result of ``look`` every ``interval`` seconds; wait while no daemon answers."""
    answers = True
    while True:
        time.sleep(interval)
        try:
            yield look()
            answers = True
        except Unavailable as error:
            if answers:
                click.echo(f"scache: {one_line(str(error))}; waiting for it", err=True)
            answers = False


def socket_option(command: Command) -> Command:
    """Add the option ``--socket`` to a command; its default is `default_socket`."""
    option = click.option(
        "--socket",
        metavar="PATH",
        envvar=SOCKET.variable,
        callback=_socket,
        help=f"Socket of the running daemon; or {SOCKET.variable}.  [default: {SOCKET.default}]",
    )
    return option(command)


def target_options(command: Command) -> Command:
    """Add the options ``--socket`` and ``--database`` to a command, which gets a `Target`."""

    @wraps(command)
    def with_target(
        *,
        socket: Path,
        database: str | None,
        **options: Any,  # noqa: ANN401 - other options of the command
    ) -> None:
        context = click.get_current_context()
        source = context.get_parameter_source("socket")
        if database is not None and source is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError("--socket and --database exclude each other")
        if database == "":
            raise SettingsError("--database must be a path, not ''")
        command(target=Target(socket, database), **options)

    option = click.option(
        "--database",
        metavar="FILE",
        help="Database file to read instead of asking a running daemon.",
    )
    return socket_option(option(with_target))


def _socket(_: click.Context, __: click.Parameter, value: str | None) -> Path:
    if value is None:
        return default_socket()
    return cast(Path, SOCKET.check(value, "--socket"))
