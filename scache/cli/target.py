"""The daemon or the database file that a command works on, and the options that name it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from scache.cli.daemon_socket import (
    DaemonSocket,
    announced,
    connect,
    given_socket,
    socket_options,
)
from scache.cli.shell_completion import files
from scache.cli.streams import echo
from scache.errors import NotNow, SettingsError, Unavailable
from scache.escape import one_line

if TYPE_CHECKING:
    from scache.client.sync import Client
    from scache.inspection.image import Image

T = TypeVar("T")
Command = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Target:
    """The daemon or database file that images are taken from."""

    source: DaemonSocket | str
    """The socket of a daemon, or the path of a database file."""

    @property
    def is_live(self) -> bool:
        """True for a daemon."""
        return isinstance(self.source, DaemonSocket)

    def __str__(self) -> str:
        if isinstance(self.source, str):
            return f"database {self.source}"
        return f"daemon at {self.source.path}"

    def image(self, *, sound: bool = True) -> Image:
        """Take an image, which the caller closes.

        Raises Unavailable, Refused or DatabaseError, also for a corrupt file if ``sound`` is true.
        """
        from scache.inspection.image import Image

        if isinstance(self.source, str):
            return Image.from_file(self.source, sound=sound)
        with connect(self.source) as client:
            return image_through(client, self.source)


def image_through(client: Client, daemon: DaemonSocket) -> Image:
    """Take an image through a connected client; the caller closes it."""
    from scache.inspection.image import Image
    from scache.store import serialized

    with announced(daemon):
        snapshot = client.snapshot()
    data = serialized.read(snapshot)
    return Image.from_bytes(data, f"the image of the {Target(daemon)}")


def repeated(look: Callable[[], T], interval: float) -> Iterator[T]:
    """Yield the result of ``look`` every ``interval`` seconds.

    Wait while no daemon answers, or while it cannot take a snapshot.
    """
    answers = True
    while True:
        time.sleep(interval)
        try:
            yield look()
            answers = True
        except (Unavailable, NotNow) as error:
            if answers:
                doing = "trying again" if isinstance(error, NotNow) else "waiting for it"
                echo(f"scache: {one_line(str(error))}; {doing}", err=True)
            answers = False


def target_options(command: Command) -> Command:
    """Add options to a command that name a daemon or a file; the command gets a `Target`."""

    @wraps(command)
    def with_target(
        *,
        socket: str | None,
        timeout: float | None,
        database: str | None,
        **options: Any,  # noqa: ANN401 - other options of the command
    ) -> None:
        if database is None:
            command(target=Target(given_socket(socket, timeout)), **options)
            return
        for option, given in (("--socket", socket), ("--timeout", timeout)):
            if given is not None:
                raise click.UsageError(f"{option} and --database exclude each other")
        if not database:
            raise SettingsError("--database must be a path, not ''")
        command(target=Target(database), **options)

    option = click.option(
        "--database",
        metavar="FILE",
        shell_complete=files,
        help="Database file to read instead of asking a running daemon.",
    )
    return socket_options(option(with_target))
