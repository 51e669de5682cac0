"""``scache exporter``: the statistics of a running daemon as metrics for Prometheus."""

from __future__ import annotations

import signal
import sys
from functools import partial
from pathlib import Path

import click

from scache.cli.daemon_socket import given_socket, socket_option
from scache.cli.naming import say
from scache.cli.shell_completion import files
from scache.cli.streams import echo
from scache.errors import EXIT_OK, SocketError, reason_of

ADDRESS = "127.0.0.1:9837"

EPILOG = """\b
Examples:
  scache exporter
  scache exporter --unix /run/scache-exporter/metrics.sock
  scache exporter --alerts > /etc/prometheus/scache.yml
  scache exporter --dashboard > scache.json
"""

_MISSING = "the exporter needs prometheus-client: pip install 'scached[exporter]'"


def _address(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """Return the host and the port of ``HOST:PORT``; IPv6 addresses have brackets."""
    if value is None:
        return None
    host, port = value.rpartition(":")[::2]
    host = host.removeprefix("[").removesuffix("]")
    if host and port.isascii() and port.isdecimal() and len(port) < 6 and int(port) < 65536:
        return host, int(port)
    raise click.BadParameter(f"must be HOST:PORT, such as {ADDRESS}, not {value!r}")


@click.command(epilog=EPILOG)
@socket_option
@click.option(
    "--listen",
    metavar="HOST:PORT",
    callback=_address,
    help=f"Address to listen on; port 0: any.  [default: {ADDRESS}]",
)
@click.option(
    "--unix",
    metavar="PATH",
    type=click.Path(path_type=Path),
    shell_complete=files,
    help="UNIX socket to listen on instead.",
)
@click.option("--dashboard", is_flag=True, help="Print a dashboard for Grafana; exit.")
@click.option("--alerts", is_flag=True, help="Print alert rules for Prometheus; exit.")
def exporter(
    *,
    socket: str | None,
    listen: tuple[str, int] | None,
    unix: Path | None,
    dashboard: bool,
    alerts: bool,
) -> None:
    """Serve metrics of a running daemon for Prometheus.

    The metrics are at /metrics. A scrape asks the daemon once. If the daemon
    does not answer within a second, or does not permit it, scache_up is 0. The
    user of this command must be root, the daemon's user, or in its admin_uids.
    """
    if sum([dashboard, alerts, listen is not None or unix is not None]) > 1:
        raise click.UsageError("--dashboard and --alerts print a file: give one of them alone")
    if listen is not None and unix is not None:
        raise click.UsageError("--listen and --unix exclude each other")
    if dashboard or alerts:
        from scache.screens import exporter as files_of

        echo(files_of.dashboard() if dashboard else files_of.alerts(), nl=False)
        return
    try:
        import prometheus_client  # noqa: F401 - only to learn whether it is installed
    except ImportError:
        raise click.UsageError(_MISSING) from None
    from scache.screens.exporter.source import read
    from scache.screens.exporter.web import serving

    daemon = given_socket(socket, None)
    where = unix or listen or ("127.0.0.1", 9837)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_OK))
    try:
        with serving(where, partial(read, daemon.path)) as (place, server):
            say(f"metrics of the daemon at {daemon} on {place}")
            server.serve_forever()
    except OSError as error:
        shown = ":".join(map(str, where)) if isinstance(where, tuple) else where
        raise SocketError(
            f"cannot listen on {shown}: {reason_of(error)}; name another address"
        ) from error
