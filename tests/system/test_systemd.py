"""The units of ``scache unit`` under a real systemd, which runs in namespaces of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from scache import Client
from scache.unix import credentials
from tests.support.dialogue import eventually
from tests.support.logcheck import ALL_KINDS, kinds_of_statistics, unusual
from tests.support.manual import PAGES, blocks
from tests.support.systemd import COMMAND, Machine, NoSystemd, machine

SOCKET = "/run/scache/scache.sock"
SERVICE = "scache.service"

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def booted() -> Iterator[Machine]:
    """Boot systemd with its journal."""
    try:
        with machine() as found:
            found.run("systemctl", "start", "systemd-journald.service")
            yield found
    except NoSystemd as reason:
        pytest.skip(str(reason))


INSTALL, FOR_POSTFIX, SETTINGS, RELOAD, REMOVE = (
    block.text for block in blocks(PAGES["systemd"], "sh")
)


@pytest.fixture
def systemd(booted: Machine) -> Iterator[Machine]:
    """Install the units that the command prints; stop them at the end."""
    booted.shell("id scache > /dev/null 2>&1 || useradd --system scache")
    for kind in ("service", "socket"):
        booted.install(f"scache.{kind}", unit(booted, kind))
    yield booted
    booted.run("systemctl", "stop", "scache.socket", SERVICE)
    booted.run("systemctl", "reset-failed")


def unit(inside: Machine, *arguments: str) -> str:
    """Return the unit file that the command prints inside."""
    return inside.shell(f"scache unit {' '.join(arguments)}")


def client(inside: Machine) -> Client:
    """Return a client of the service inside, to be used outside."""
    return Client(inside.path(SOCKET))


def status_is(inside: Machine, text: str) -> bool:
    """Return True if the status that systemd shows contains a text."""
    return text in inside.show(SERVICE, "StatusText")


def test_commands_of_the_manual_install_and_remove_the_units(booted: Machine) -> None:
    """They run as they are printed, one block after the other."""
    assert '"running": true' in booted.shell(INSTALL)
    assert booted.show(SERVICE, "ActiveState") == "active"
    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect(os.fspath(booted.path(SOCKET)))
    assert booted.run("stat", "-c", "%a %U %G", SOCKET).strip() == "660 scache scache"
    booted.shell(SETTINGS)
    limit = "SELECT value FROM setting WHERE name = 'ttl_limit'"
    assert '"60"' in booted.run(COMMAND, "sql", limit)
    booted.shell(RELOAD)
    booted.shell(REMOVE)
    assert not booted.path("/run/scache").exists()
    assert booted.show(SERVICE, "LoadState") == "not-found"
    assert booted.show(SERVICE, "ActiveState") == "inactive"


def test_socket_unit_starts_the_service_for_its_first_client(systemd: Machine) -> None:
    """The service serves the socket of systemd, and reports that it is ready."""
    systemd.run("systemctl", "start", "scache.socket")
    assert systemd.show(SERVICE, "ActiveState") == "inactive"
    ours, theirs = socket.socketpair()
    with ours, theirs, client(systemd) as connected:
        assert connected.save_endp(60, b"endpoint", b"", ours)
        assert systemd.show(SERVICE, "ActiveState") == "active"
        eventually(lambda: status_is(systemd, "1 connections of 1 endpoints, 1 clients"))
        found = connected.find_endp(b"endpoint")
        assert found is not None
        found.close()


def test_service_keeps_no_socket_of_its_own_that_systemd_made(systemd: Machine) -> None:
    """SO_PEERCRED names the daemon, and the guard against caching its own sockets holds."""
    systemd.run("systemctl", "start", "scache.socket")
    with client(systemd) as connected:
        assert connected.find_endp(b"endpoint") is None
        with socket.socket(socket.AF_UNIX) as second:
            second.connect(os.fspath(systemd.path(SOCKET)))
            assert not connected.save_endp(60, b"own", b"", second)
            pid = credentials.peer(second).pid
        (inside,) = re.findall(
            r"^NSpid:.*\t(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE
        )
        assert inside == systemd.show(SERVICE, "MainPID")


def test_connections_wait_for_a_service_that_is_restarted(systemd: Machine) -> None:
    """The socket belongs to systemd, so no client is refused during a restart."""
    systemd.run("systemctl", "start", "scache.socket", SERVICE)
    first = systemd.show(SERVICE, "MainPID")
    systemd.run("systemctl", "restart", SERVICE)
    with client(systemd) as connected:
        assert connected.find_endp(b"endpoint") is None
    assert systemd.show(SERVICE, "MainPID") != first


def test_service_without_a_socket_unit_makes_its_own_socket(systemd: Machine) -> None:
    """The daemon removes the socket when it stops."""
    systemd.path("/run/units/scache.socket").unlink()
    systemd.run("systemctl", "daemon-reload")
    systemd.run("systemctl", "start", SERVICE)
    with client(systemd) as connected:
        assert connected.find_endp(b"endpoint") is None
    systemd.run("systemctl", "stop", SERVICE)
    assert not systemd.path(SOCKET).exists()
    systemd.install("scache.socket", unit(systemd, "socket"))


def test_reload_changes_settings_and_keeps_them_if_the_file_is_broken(systemd: Machine) -> None:
    """`systemctl reload` sends SIGHUP; connections stay cached."""
    config = systemd.path("/opt/scache/scache.toml")
    config.write_text("ttl_limit = 50\n")
    config.chmod(0o644)
    text = unit(systemd, "service").replace(
        " serve ", " serve --config /opt/scache/scache.toml ", 1
    )
    systemd.install(SERVICE, text)
    systemd.run("systemctl", "start", "scache.socket", SERVICE)
    ours, theirs = socket.socketpair()

    def ttl_limit() -> str:
        return systemd.run(COMMAND, "sql", "SELECT value FROM setting WHERE name = 'ttl_limit'")

    with ours, theirs, client(systemd) as connected:
        assert connected.save_endp(50, b"endpoint", b"", ours)
        assert '"50"' in ttl_limit()
        config.write_text("ttl_limit = 40\naudit_rows = 7\n")
        systemd.run("systemctl", "reload", SERVICE)
        eventually(lambda: '"40"' in ttl_limit())
        config.write_text("ttl_limit = many\n")
        systemd.run("systemctl", "reload", SERVICE)
        eventually(lambda: any("settings stay as they are" in line for line in systemd.journal()))
        assert '"40"' in ttl_limit()
        found = connected.find_endp(b"endpoint")
        assert found is not None
        found.close()
    journal = systemd.journal("-u", SERVICE)
    assert "settings reloaded, changed: ttl_limit" in journal
    assert "these settings change at the next start: audit_rows" in journal


def test_journal_has_bare_messages_with_their_priority(systemd: Machine) -> None:
    """Statistics are logged at SIGUSR1, in lines that tools for Postfix's log can read."""
    systemd.run("systemctl", "start", "scache.socket", SERVICE)
    with client(systemd) as connected:
        assert connected.find_endp(b"endpoint") is None
    systemd.run("systemctl", "kill", "-s", "USR1", SERVICE)
    line = "statistics: address lookup hits=0 miss=1 success=0%"
    eventually(lambda: line in systemd.journal("-u", SERVICE, "-p", "info"))
    assert line not in systemd.journal("-u", SERVICE, "-p", "warning")


def test_watchdog_restarts_a_daemon_that_hangs(systemd: Machine) -> None:
    """WATCHDOG=1 is sent by the event loop that serves the clients."""
    text = unit(systemd, "service").replace("WatchdogSec=30", "WatchdogSec=1")
    systemd.install(SERVICE, text)
    systemd.run("systemctl", "start", "scache.socket", SERVICE)
    first = systemd.show(SERVICE, "MainPID")
    systemd.run("kill", f"-{signal.SIGSTOP.value}", first)
    eventually(lambda: systemd.show(SERVICE, "MainPID") not in ("0", first))
    assert systemd.show(SERVICE, "NRestarts") != "0"


def test_unit_for_postfix_runs_as_postfix_and_serves_its_private_directory(
    booted: Machine,
) -> None:
    """The service needs no capability: Postfix's user owns the directory. It logs as mail."""
    assert FOR_POSTFIX.startswith("scache unit service --postfix > ")
    text = unit(booted, "service", "--postfix")
    private = text.partition("ReadWritePaths=")[2].splitlines()[0]
    booted.run("mount", "--mkdir", "-t", "tmpfs", "-o", "uid=postfix,mode=700", "tmpfs", private)
    booted.install("scache-postfix.service", text)
    booted.run("systemctl", "start", "scache-postfix.service")
    ours, theirs = socket.socketpair()
    with ours, theirs, Client(booted.path(f"{private}/scache-sql")) as connected:
        assert connected.find_endp(b"endpoint") is None
        assert connected.find_dest(b"destination") is None
        assert connected.save_endp(60, b"endpoint", b"", ours)
    pid = booted.show("scache-postfix.service", "MainPID")
    status = booted.path(f"/proc/{pid}/status").read_text()
    assert "CapEff:\t0000000000000000" in status
    assert "postfix" in booted.run("stat", "-c", "%U", f"/proc/{pid}")
    booted.run("systemctl", "stop", "scache-postfix.service")
    unit_log = ("-u", "scache-postfix.service", "--facility=mail")
    eventually(lambda: kinds_of_statistics(booted.journal(*unit_log, "-o", "short")) == ALL_KINDS)
    journal = booted.journal(*unit_log, "-o", "short")
    statistics = [line for line in journal if "statistics: " in line]
    assert len(statistics) == len(ALL_KINDS)
    assert unusual(statistics) == []


@pytest.mark.parametrize("arguments", [(), ("--postfix",)])
def test_unit_files_have_no_mistakes(systemd: Machine, arguments: tuple[str, ...]) -> None:
    """systemd-analyze(1) finds none, and rates the hardening as safe."""
    systemd.install(SERVICE, unit(systemd, "service", *arguments))
    found = systemd.run("systemd-analyze", "verify", f"/run/units/{SERVICE}", check=False)
    lines = [line for line in found.splitlines() if line and "Command 'man " not in line]
    assert lines == []
    rated = systemd.run("systemd-analyze", "security", SERVICE, check=False)
    assert "SAFE" in rated.splitlines()[-1] or "OK" in rated.splitlines()[-1]
