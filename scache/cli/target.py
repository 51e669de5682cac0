"""How a command reaches what it looks at: a live daemon, or a database file."""

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
"""Seconds that a daemon may take for what a person asks, who would rather wait than ask again."""


@contextmanager
def connect(socket: Path) -> Iterator[Client]:
    """Connect to a live daemon; raise Unavailable if none is there, Refused if it says no.

    Refused also if the socket does not let us in.
    """
    from scache.client.sync import Client

    with Client(socket, timeout=TIMEOUT) as client:
        try:
            yield client
        except ProtocolError as error:
            raise Unavailable(
                f"what answers at {socket} cannot be looked into ({error}): name a scache "
                "daemon, and be one of its allow_uids, if it has any"
            ) from error
        except Unavailable as error:
            match error.__cause__:
                case PermissionError():
                    raise Refused(
                        f"you may not connect to {socket}: ask as {_who_may(socket)}"
                    ) from error
                case FileNotFoundError() | ConnectionRefusedError():
                    raise Unavailable(
                        f"{error}; start `scache serve`, or name another --socket"
                    ) from error
            raise


def _who_may(socket: Path) -> str:
    """Return the users who may connect, where this one may not."""
    try:
        socket.lstat()
    except PermissionError:
        return "root or as a user who may enter its directory"
    except OSError:
        pass  # it has gone meanwhile
    return "root or as its owner"


@dataclass(frozen=True, slots=True)
class Target:
    """Where images come from."""

    socket: Path
    database: str | None
    """A file; None to ask the daemon at the socket."""

    def __str__(self) -> str:
        if self.database is not None:
            return f"database {self.database}"
        return f"daemon at {self.socket}"

    def image(self, *, sound: bool = True) -> Image:
        """Return an image of this moment, the caller's to close; of a file that is ``sound``.

        Raises Unavailable, Refused or DatabaseError.
        """
        from scache.inspection.image import Image

        if self.database is not None:
            return Image.from_file(self.database, sound=sound)
        with connect(self.socket) as client:
            return self.image_for(client)

    def image_for(self, client: Client) -> Image:
        """Return an image that the daemon gives this client, the caller's to close."""
        from scache.inspection.image import Image
        from scache.store import serialized

        data = serialized.read(client.snapshot())
        return Image.from_bytes(data, f"the image of the {self}")


def repeated(look: Callable[[], T], interval: float) -> Iterator[T]:
    """Yield what a look returns, every ``interval`` seconds; wait for a daemon that is away."""
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
    """Give a command the option ``--socket``: a path, `default_socket` if nobody names one."""
    option = click.option(
        "--socket",
        metavar="PATH",
        envvar=SOCKET.variable,
        callback=_socket,
        help=f"The socket of a live daemon; or {SOCKET.variable}.  [default: {SOCKET.default}]",
    )
    return option(command)


def target_options(command: Command) -> Command:
    """Give a command ``--socket`` and ``--database``, of which it gets one `Target`."""

    @wraps(command)
    def with_origin(
        *,
        socket: Path,
        database: str | None,
        **options: Any,  # noqa: ANN401 - the command's own
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
        help="Look into this database file, not into a live daemon.",
    )
    return socket_option(option(with_origin))


def _socket(_: click.Context, __: click.Parameter, value: str | None) -> Path:
    if value is None:
        return default_socket()
    return cast(Path, SOCKET.check(value, "--socket"))
