"""``scache ping``: check that the daemon answers."""

from __future__ import annotations

import time
from functools import partial

import click

from scache.cli.daemon_socket import connect, given_socket, socket_options
from scache.cli.streams import echo
from scache.errors import ScacheError
from scache.escape import one_line

EPILOG = """Exit codes: 0 if the daemon answers; 3 if no daemon answers on the socket; 5 if
this user is not permitted, or the daemon serves no further client; 8 if it does
not answer in time. With --nagios: 0 or 2.

\b
Examples:
  scache ping
  scache ping --socket /run/scache/scache.sock --timeout 3
  scache ping --nagios
  until scache ping 2>/dev/null; do sleep 0.1; done
"""

TIMEOUT = 1.0
"""Seconds that the daemon has by default."""

NAGIOS_CRITICAL = 2
"""Exit code of a plugin of Nagios, Icinga and others for a service that fails."""


@click.command(epilog=EPILOG)
@partial(socket_options, timeout=TIMEOUT)
@click.option("--nagios", is_flag=True, help="Print one line as a plugin of Nagios does.")
@click.pass_context
def ping(
    context: click.Context, /, *, socket: str | None, timeout: float | None, nagios: bool
) -> None:
    """Check that the daemon answers and returns a descriptor.

    The cache, the audit log and the counters of requests stay as they are. A server
    that does not know this request, such as Postfix's scache(8), gets another one
    that changes nothing.
    """
    try:
        path, seconds = _ping(socket, TIMEOUT if timeout is None else timeout)
    except ScacheError as error:
        if not nagios:
            raise
        echo(f"SCACHE CRITICAL - {_plugin_text(str(error))}")
        context.exit(NAGIOS_CRITICAL)
    if nagios:
        echo(f"SCACHE OK - {_plugin_text(path)} answers | time={seconds:.3f}s")
    else:
        echo(f"the daemon at {one_line(path)} answers (after {seconds:.3f} s)")


def _ping(socket: str | None, timeout: float) -> tuple[str, float]:
    """Return the path of the socket, and the seconds until the answer."""
    daemon = given_socket(socket, timeout)
    with connect(daemon) as client:
        begin = time.monotonic()
        client.ping()
        return str(daemon.path), time.monotonic() - begin


def _plugin_text(text: str) -> str:
    """Return a text as one line without the character that begins the figures of a plugin."""
    return one_line(text).replace("|", r"\x7c")
