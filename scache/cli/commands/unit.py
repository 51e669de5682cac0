"""``scache unit``: unit files of systemd for this installation."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from scache.cli.streams import echo
from scache.errors import SettingsError
from scache.settings.declarations import ROOT_SOCKET

HIDDEN = ("/root", "/home", "/run/user")
"""The directories that ProtectHome=yes hides (systemd.exec(5))."""

_POSTCONF_TIMEOUT = 5.0
"""Seconds to wait for postconf(1)."""

_HARDENING = """\
CapabilityBoundingSet=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""
"""What both services do without (systemd.exec(5))."""

_SERVICE = """\
[Unit]
Description={description}
Documentation=man:scache(1) man:scache-serve(8)
{dependencies}

[Service]
Type=notify
ExecStart={command} serve{options}
ExecReload=/bin/kill -HUP $MAINPID
{identity}
Restart=on-failure
WatchdogSec=30
LimitNOFILE=65536
StateDirectory=scache
StateDirectoryMode=0700
UMask=0077

PrivateNetwork=yes
RestrictAddressFamilies=AF_UNIX
{hardening}
[Install]
WantedBy=multi-user.target
"""

_EXPORTER = """\
[Unit]
Description=Metrics of the connection cache for Prometheus
Documentation=man:scache(1)
After=scache.service

[Service]
ExecStart={command} exporter --socket {socket} --listen 127.0.0.1:9837
{identity}
Restart=on-failure
UMask=0077

IPAddressDeny=any
IPAddressAllow=localhost
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
{hardening}
[Install]
WantedBy=multi-user.target
"""

_EXPORTER_USER = """\
# Make this user first: useradd --system --shell /usr/sbin/nologin scache-exporter
# The daemon must permit it to look inside: --admin-uids scache-exporter in scache.service
User=scache-exporter
SupplementaryGroups=scache"""
"""The group may connect to the socket of the service, whose mode is 0660."""

_ALONE = """\
# Make this user first: useradd --system --shell /usr/sbin/nologin scache
User=scache
RuntimeDirectory=scache
RuntimeDirectoryPreserve=yes"""
"""The socket of the socket unit is in the runtime directory, so it must outlive the service."""

_FOR_POSTFIX = """\
User=postfix
SyslogIdentifier=postfix/scache
SyslogFacility=mail
ReadWritePaths={private}"""

_SOCKET = """\
[Unit]
Description={description}
Documentation=man:scache-serve(8)

[Socket]
ListenStream={socket}
{owner}
FileDescriptorName=scache
Backlog=4096

[Install]
WantedBy=sockets.target
"""


@click.command(
    epilog="""\b
Examples:
  scache unit service > /etc/systemd/system/scache.service
  scache unit socket > /etc/systemd/system/scache.socket
  scache unit service --postfix > /etc/systemd/system/scache.service
  scache unit exporter > /etc/systemd/system/scache-exporter.service
"""
)
@click.argument("kind", type=click.Choice(["service", "socket", "exporter"]))
@click.option("--postfix", is_flag=True, help="For the connection cache of Postfix.")
def unit(*, kind: str, postfix: bool) -> None:
    """Print a unit file of systemd for this installation.

    The service is hardened: it has no capabilities, no network and no access to
    home directories. The socket unit is optional: with it, systemd listens, and
    starts the service for its first client. The exporter is a service for
    Prometheus, of a user whom the daemon must list in admin_uids.
    """
    command = installed_command()
    private = queue_directory() / "private" if postfix else None
    socket = private / "scache-sql" if private is not None else ROOT_SOCKET
    if kind == "socket":
        echo(socket_unit(socket, postfix=postfix), nl=False)
    elif kind == "exporter":
        echo(exporter_unit(command, socket, postfix=postfix), nl=False)
    else:
        echo(service_unit(command, socket, private), nl=False)


def service_unit(command: Path, socket: Path, private: Path | None) -> str:
    """Return a service unit; ``private`` is the directory of Postfix's sockets, None without."""
    options = ["--socket", str(socket), "--database", "%S/scache/cache.db", "--max-idle", "0"]
    if private is None:
        identity = _ALONE
        dependencies = "Wants=scache.socket"
        description = "Connection cache"
        options += ["--socket-mode", "0660"]
    else:
        identity, dependencies = (
            _FOR_POSTFIX.format(private=_quoted(private)),
            "After=local-fs.target",
        )
        options += ["--on-data", "close"]
        description = "Connection cache of Postfix"
    return _SERVICE.format(
        description=description,
        dependencies=dependencies,
        command=_quoted(command),
        options="".join(_continued(options)),
        identity=identity,
        hardening=_HARDENING,
    )


def exporter_unit(command: Path, socket: Path, *, postfix: bool) -> str:
    """Return a service unit for ``scache exporter``."""
    return _EXPORTER.format(
        command=_quoted(command),
        socket=_quoted(socket),
        identity="User=postfix" if postfix else _EXPORTER_USER,
        hardening=_HARDENING,
    )


def socket_unit(socket: Path, *, postfix: bool) -> str:
    """Return a socket unit."""
    user, mode = ("postfix", "0600") if postfix else ("scache", "0660")
    owner = f"SocketUser={user}\nSocketGroup={user}\nSocketMode={mode}"
    description = "Connection cache" + (" of Postfix" if postfix else "")
    return _SOCKET.format(description=description, socket=_quoted(socket), owner=owner)


def installed_command() -> Path:
    """Return the path of the command ``scache`` of this installation.

    Raises SettingsError if a hardened service could not use it.
    """
    command = Path(sys.prefix, "bin", "scache")
    if not command.exists():
        found = shutil.which("scache")
        if found is None:
            raise SettingsError("there is no command scache on the PATH: install the package")
        command = Path(found).absolute()
    needed = (command, Path(sys.prefix), Path(sys.base_prefix), Path(__file__))
    for path in (*needed, *(path.resolve() for path in needed)):
        for hidden in HIDDEN:
            if path.is_relative_to(hidden):
                raise SettingsError(
                    f"{path} is under {hidden}, which the service may not see (ProtectHome=): "
                    "install scache elsewhere, such as in /opt/scache, with a Python of the system"
                )
    return command


def queue_directory() -> Path:
    """Return the queue directory of the installed Postfix, or that of most installations."""
    postconf = shutil.which("postconf") or shutil.which("postconf", path="/usr/sbin")
    if postconf is not None:
        try:
            answer = subprocess.run(
                [postconf, "-xh", "queue_directory"],
                capture_output=True,
                text=True,
                check=True,
                timeout=_POSTCONF_TIMEOUT,
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            answer = ""
        if answer.startswith("/"):
            return Path(answer)
    return Path("/var/spool/postfix")


def _continued(options: Iterable[str]) -> Iterable[str]:
    """Yield the options, each with its value on a line of its own."""
    each = iter(options)
    for option in each:
        yield f" \\\n    {option} {_quoted(next(each))}"


def _quoted(text: str | Path) -> str:
    """Return a text as systemd reads it back: specifiers and spaces are escaped."""
    quoted = str(text).replace("%", "%%").replace("%%S/scache/", "%S/scache/")
    return f'"{quoted}"' if any(each.isspace() or each in "\"'\\;" for each in quoted) else quoted
