"""The log of scache-master: lines for postlogd(8) and for syslog."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from scache.cache.statistics import Statistics
from scache.cli.mail_log import MailLogHandler
from scache.clock import Clock
from tests.support.as_user import AS_USER
from tests.support.commands import ROOT, run_command
from tests.support.dialogue import DEADLINE
from tests.support.logcheck import ALL_KINDS, kinds_of_statistics, unusual
from tests.support.postfix_setup import private_directory

LINES = 60
"""More than a receiver takes at once (net.unix.max_dgram_qlen)."""


@pytest.fixture
def receiver(path: Path) -> Iterator[socket.socket]:
    """Bind a socket in the place of postlogd(8), which does not read by itself."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(DEADLINE)
        yield sock


def logged(handler: logging.Handler, number: int) -> None:
    """Log a line with this number."""
    handler.handle(logging.makeLogRecord({"msg": f"line {number}", "levelno": logging.INFO}))


def test_lines_arrive_in_order_although_the_receiver_was_busy(
    path: Path, receiver: socket.socket
) -> None:
    """No later line is needed for that."""
    with closing(MailLogHandler(str(path), "host ", "postfix/scache", None)) as handler:
        for number in range(LINES):
            logged(handler, number)
        received = [receiver.recv(4000).decode().rpartition(": ")[2] for _ in range(LINES)]
    assert received == [f"line {number}" for number in range(LINES)]


def test_drain_gives_up_if_the_receiver_takes_nothing(path: Path, receiver: socket.socket) -> None:
    """The daemon can end; lines that the receiver took before stay."""
    with closing(MailLogHandler(str(path), "host ", "postfix/scache", None)) as handler:
        for number in range(LINES):
            logged(handler, number)
        handler.drain()
    assert receiver.recv(4000).decode().endswith("line 0")


_UNTHREADED = """
import logging, resource, socket, sys
from scache.cli.mail_log import MailLogHandler

count = int(sys.argv[1])
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
    receiver.bind(sys.argv[2])
    receiver.settimeout(float(sys.argv[3]))
    handler = MailLogHandler(sys.argv[2], "host ", "postfix/scache", None)

    def log(*numbers):
        for number in numbers:
            handler.handle(logging.makeLogRecord({"msg": f"line {number}", "levelno": 20}))

    def received():
        return receiver.recv(4000).decode().rpartition(" ")[2]

    log(*range(count))
    print(received())
    log(count)
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
    log(count + 1)
    for _ in range(count + 1):
        print(received())
    handler.close()
"""


@pytest.mark.root
def test_lines_arrive_although_no_thread_could_be_started() -> None:
    """The next line sends what was kept, and a thread does as soon as one can be started."""
    with private_directory() as directory:
        directory.chmod(0o777)
        command = (sys.executable, "-c", _UNTHREADED, str(LINES), directory / "log", str(DEADLINE))
        done = run_command(*AS_USER, "prlimit", "--nproc=1:", *command, PYTHONPATH=str(ROOT))
        assert done.stderr == ""
        assert done.stdout.split() == [str(number) for number in range(LINES + 2)]


def report() -> list[str]:
    """Return a report in which no figure is zero."""
    statistics = Statistics(Clock())
    statistics.domain_hits, statistics.domain_misses = 86, 34
    statistics.address_hits, statistics.address_misses = 3, 31
    statistics.connection_added(b"endpoint", 8)
    statistics.bindings_added(b"destination", 11)
    statistics.saved()
    return statistics.report()


@pytest.mark.parametrize("facility", [None, "mail"], ids=["postlogd", "syslog"])
def test_statistics_fit_the_rules_of_logcheck(tmp_path: Path, facility: str | None) -> None:
    """All four lines, with the host that syslog or scache-master writes behind the time."""
    address = tmp_path / "log"
    prefix = "host " if facility is None else ""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(address))
        receiver.setblocking(False)
        handler = MailLogHandler(str(address), prefix, "postfix/scache", facility)
        for line in report():
            handler.handle(logging.makeLogRecord({"levelno": logging.INFO, "msg": line}))
        lines = [receiver.recv(4096).decode() for _ in range(4)]
        handler.close()
    if facility == "mail":
        assert all(line.startswith("<22>") for line in lines)
        lines = [f"{line[4:19]} host{line[19:]}" for line in lines]
    assert kinds_of_statistics(lines) == ALL_KINDS
    assert unusual(lines) == []
    assert unusual([line.replace("hits=", "hit=") for line in lines]) == [
        line.replace("hits=", "hit=") for line in lines if "hits=" in line
    ]
