"""scache-master in master.cf, in the place of Postfix's scache(8)."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.commands import SCACHE, run_command
from tests.support.dialogue import eventually
from tests.support.logcheck import ALL_KINDS, kinds_of_statistics, unusual
from tests.support.manual import PAGES, blocks
from tests.support.private_postfix import PrivatePostfix
from tests.support.wire import Wire, encode

COMMAND = f"../../../../../../../..{sys.prefix}/bin/scache-master"
MESSAGES = 1500
SESSIONS = 20

pytestmark = [pytest.mark.postfix, pytest.mark.slow, pytest.mark.timeout(900)]


@contextmanager
def postfix_with(*arguments: str, limit: str = "1") -> Iterator[PrivatePostfix]:
    """Run a Postfix whose connection cache is scache-master with these arguments."""
    command = " ".join((COMMAND, *arguments))
    with PrivatePostfix(with_scache=True, scache_command=command, scache_limit=limit) as postfix:
        yield postfix


def log_of(postfix: PrivatePostfix) -> list[str]:
    """Return the messages that scache-master has logged, without the program's name."""
    lines = [line for line in postfix.log() if line.startswith("postfix/scache[")]
    return [line.partition(": ")[2] for line in lines]


def pid_of(postfix: PrivatePostfix) -> int:
    """Return the process id of the newest scache-master."""
    lines = [line for line in postfix.log() if line.startswith("postfix/scache[")]
    return int(lines[-1].partition("[")[2].partition("]")[0])


def has_ended(pid: int) -> bool:
    """Return True if a process does not exist, or is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def serve_one(postfix: PrivatePostfix) -> None:
    """Be a client of the service, so that master(8) starts it."""
    with Wire(postfix.cache_socket) as client:
        client.announcement()
        assert client.save_dest(1, b"destination", b"", b"endpoint") == encode([(b"status", b"0")])


def test_commands_of_the_manual_switch_to_master_and_back() -> None:
    """They run as they are printed; scache(8) and scache-master serve in turn."""
    switch, back, _ = (block.text for block in blocks(PAGES["master"], "sh"))
    with PrivatePostfix(with_scache=True) as postfix:
        postfix.run(f"PATH={sys.prefix}/bin:$PATH\n{switch}")
        postfix.wait_reloaded(1)
        serve_one(postfix)
        assert any(line.startswith("listening on ") for line in log_of(postfix))
        logged = len(log_of(postfix))
        postfix.run(back)
        postfix.wait_reloaded(2)
        serve_one(postfix)
        assert not [line for line in log_of(postfix)[logged:] if line.startswith("listening")]
        assert postfix.run("postfix check") == ""


def test_command_of_the_manual_sets_an_option() -> None:
    """postconf(1) writes it as it is, and it applies; further changes of the entry keep it."""
    *_, setting = (block.text for block in blocks(PAGES["master"], "sh"))
    with PrivatePostfix(with_scache=True) as postfix:
        postfix.run(f"PATH={sys.prefix}/bin:$PATH\n{setting}")
        postfix.run("postconf -F scache/unix/chroot=n")
        postfix.run("postconf -P scache/unix/connection_cache_ttl_limit=7s && postfix reload")
        postfix.wait_reloaded(2)
        serve_one(postfix)
        listed = run_command(
            *SCACHE, "sql", "SELECT * FROM setting", "--socket", str(postfix.cache_socket)
        ).stdout
        assert '{"name": "max_connections", "value": "5000"}' in listed
        assert '{"name": "ttl_limit", "value": "7"}' in listed


def test_switch_of_the_manual_without_the_command_changes_nothing() -> None:
    """An empty path in master.cf would throttle the service."""
    switch, *_ = (block.text for block in blocks(PAGES["master"], "sh"))
    with PrivatePostfix(with_scache=True) as postfix:
        before = postfix.run("postconf -M scache/unix")
        postfix.run(f"PATH=/usr/sbin:/usr/bin:/sbin:/bin\n{switch.strip()} || true")
        assert postfix.run("postconf -M scache/unix") == before


def test_master_reuses_connections_and_logs_like_scache() -> None:
    """Mail reuses connections; the log has the name, and the statistics, of scache(8)."""
    with postfix_with() as postfix:
        postfix.send(300, SESSIONS)
        postfix.wait_delivered(300)
        assert sum("conn_use=" in line for line in postfix.deliveries()) > 200
        assert Path(postfix.data_directory, "scache.db").owner() == "postfix"
        listed = run_command(
            *SCACHE, "sql", "SELECT * FROM setting", "--socket", str(postfix.cache_socket)
        ).stdout
        assert '{"name": "ttl_limit", "value": "60"}' in listed
        assert '{"name": "on_data", "value": "close"}' in listed
        pid = pid_of(postfix)
    log = log_of(postfix)
    statistics = [line for line in postfix.whole_log() if "]: statistics: " in line]
    assert kinds_of_statistics(statistics) == ALL_KINDS
    assert not [line for line in log if "warning" in line or "fatal" in line]
    assert has_ended(pid)
    assert unusual(statistics) == []


def test_master_survives_reloads_under_load() -> None:
    """All mail is delivered and no smtp(8) gives caching up while Postfix reloads four times."""
    with postfix_with() as postfix, ThreadPoolExecutor() as pool:
        sending = pool.submit(postfix.send, MESSAGES, SESSIONS)
        for number in range(1, 5):
            postfix.wait_delivered(MESSAGES * number // 5)
            postfix.run("postfix reload")
            postfix.wait_reloaded(number)
            # The old qmgr(8) may have taken the wake-up of master(8), and the next one is in 300 s.
            postfix.send(1, 1)
        sending.result()
        postfix.wait_delivered(MESSAGES + 4)
        assert all("status=sent" in line for line in postfix.deliveries())
        assert not [line for line in postfix.log() if "disabling connection caching" in line]
        stopping = [line for line in log_of(postfix) if line.startswith("stopping: master(8)")]
        assert len(stopping) == 4


def test_master_starts_again_after_kill() -> None:
    """The next client after kill -9 is served at once: master(8) does not throttle the service."""
    with postfix_with() as postfix:
        for number in range(1, 4):
            serve_one(postfix)
            pid = pid_of(postfix)
            postfix.send(1, 1)  # master(8) reads the report of the service meanwhile
            postfix.wait_delivered(number)
            os.kill(pid, signal.SIGKILL)
            eventually(partial(has_ended, pid))
        serve_one(postfix)
        assert not [line for line in postfix.log() if "throttling" in line]


def test_master_exits_when_idle_and_starts_on_demand() -> None:
    """The values of -o in master.cf apply before those of main.cf, in both spellings."""
    with postfix_with("-o", "max_idle=1s", "-o", "{ connection_cache_ttl_limit = 7s }") as postfix:
        serve_one(postfix)
        first = pid_of(postfix)
        eventually(partial(has_ended, first))
        assert "stopping: no client for 1 s" in log_of(postfix)
        serve_one(postfix)
        assert pid_of(postfix) != first
        listed = run_command(
            *SCACHE, "sql", "SELECT * FROM setting", "--socket", str(postfix.cache_socket)
        ).stdout
        assert '{"name": "ttl_limit", "value": "7"}' in listed


@pytest.mark.parametrize(
    "database", ["/nowhere/scache.db", "/etc/passwd", "/proc/version", "/root/scache.db"]
)
def test_master_goes_on_in_memory_without_a_usable_database(database: str) -> None:
    """A database that cannot be used is a warning; the service is there and not throttled."""
    with postfix_with(f"--database={database}") as postfix:
        serve_one(postfix)
        log = log_of(postfix)
        assert any(line.startswith("warning: ") and "kept in memory" in line for line in log)
        assert any("database :memory:" in line for line in log)


@pytest.mark.parametrize(
    ("arguments", "limit", "message"),
    [
        (["--max-clients=many"], "1", "fatal: --max-clients must be"),
        (["--no-such-option"], "1", "fatal: No such option"),
        ([], "5", "fatal: master.cf lets several processes"),
    ],
)
def test_master_names_mistakes_in_master_cf(arguments: list[str], limit: str, message: str) -> None:
    """They are logged as fatal, and master(8) throttles the service."""
    with postfix_with(*arguments, limit=limit) as postfix, Wire(postfix.cache_socket) as client:
        began = time.monotonic()
        eventually(lambda: any(line.startswith(message) for line in log_of(postfix)))
        assert time.monotonic() - began < 60
        client.close()


def test_master_warns_of_settings_without_effect() -> None:
    """A service that main.cf does not use, a chroot, and options that master(8) decides."""
    with postfix_with(
        *("-o", "connection_cache_service_name=other", "-c", "--user=daemon"),
        "--log-format=json",
        *("-o", "max_idle=soon", "-o", "scache_unknown=1"),
    ) as postfix:
        serve_one(postfix)
        log = "\n".join(log_of(postfix))
        assert "warning: main.cf says connection_cache_service_name = other" in log
        assert "warning: master.cf says chroot" in log
        assert "warning: --user is ignored" in log
        assert "warning: log_format = json is ignored" in log
        assert "warning: max_idle must be a time" in log
        assert Path(f"/proc/{pid_of(postfix)}").owner() == "postfix"
