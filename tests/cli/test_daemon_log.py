"""The log of the daemon."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from scache import Client, ProtocolError, errors
from scache.cli.daemon_log import FloodFilter, JournalJsonFormatter, JsonFormatter, LineFormatter
from scache.escape import one_line
from tests.support.commands import SCACHE, clean_environment, run_command, started
from tests.support.daemon import Daemon
from tests.support.wire import DEADLINE, Wire, encode


@pytest.mark.parametrize(
    ("level", "line"),
    [
        (logging.INFO, "scache[42]: hello you"),
        (logging.WARNING, "scache[42]: warning: hello you"),
        (logging.ERROR, "scache[42]: error: hello you"),
        (logging.DEBUG, "scache[42]: debug: hello you"),
    ],
)
def test_log_line_has_process_and_level(level: int, line: str) -> None:
    """The level info is left out."""
    attributes = {"levelno": level, "levelname": logging.getLevelName(level), "process": 42}
    record = logging.makeLogRecord(attributes | {"msg": "hello %s", "args": ("you",)})
    assert LineFormatter().format(record) == line


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_log_line_has_traceback_only_at_debug(level: str) -> None:
    """An exception is in the line itself, with its type and text."""
    logging.getLogger("scache").setLevel(level)
    try:
        raise LookupError("a\nb")
    except LookupError:
        record = logging.makeLogRecord({"msg": "oh", "exc_info": sys.exc_info()})
    first, *rest = LineFormatter().format(record).splitlines()
    assert first.endswith(r"oh: LookupError: a\nb")
    assert bool(rest) == (level == "DEBUG")


def test_json_log_line_has_the_values_of_its_message() -> None:
    """A value that JSON does not have is its text; a value never replaces a field of the line."""
    values = {"client_pid": 7, "socket": Path("/s"), "level": "x"}
    attributes = {"levelno": logging.WARNING, "levelname": "WARNING", "created": 0.25}
    attributes |= {"msg": "client %(client_pid)d\n", "args": values, "name": "scache.x"}
    record = logging.makeLogRecord(attributes | {"process": 42})
    assert json.loads(JsonFormatter().format(record)) == {
        "at": "1970-01-01T00:00:00.250Z",
        "level": "warning",
        "pid": 42,
        "logger": "scache.x",
        "message": "client 7\n",
        "client_pid": 7,
        "socket": "/s",
    }
    assert JournalJsonFormatter().format(record).startswith('<4>{"')


@pytest.mark.parametrize("text", ["x" * 100_000, "\u2028\x1b\udcff" * 10_000])
def test_json_log_line_stays_valid_when_it_is_shortened(text: str) -> None:
    """A pipe takes PIPE_BUF bytes at once."""
    record = logging.makeLogRecord({"msg": "why: %(reason)s", "args": {"reason": text}})
    line = JournalJsonFormatter().format(record)
    assert len(line.encode()) < select.PIPE_BUF
    assert json.loads(line[len("<6>") :])["message"].startswith("why: ")


def test_json_log_is_one_object_for_each_line(path: Path) -> None:
    """The fields of a malformed request are the client and the request."""
    command = (*SCACHE, "serve", "--socket", str(path), "--log-format", "json")
    with started(*command) as process:
        assert process.stderr is not None
        lines = [json.loads(process.stderr.readline())]
        with Wire(path) as client:
            client.announcement()
            client.send(encode([(b"request", b"nonsense")]))
            assert client.receive_message() == [(b"status", b"1")]
        process.terminate()
        lines += map(json.loads, process.stderr)
        assert process.wait() == errors.EXIT_OK
    assert lines[0]["socket"] == str(path)
    (malformed,) = (line for line in lines if line.get("request") == "unknown")
    assert malformed["level"] == "warning"
    assert malformed["client_pid"] == os.getpid()
    assert {line["pid"] for line in lines} == {process.pid}


def test_flood_filter_limits_warnings_from_one_place() -> None:
    """Ten in ten seconds are logged; the number of suppressed ones is told later."""

    def logged(second: float, place: int = 1) -> str | None:
        attributes = {"msg": "odd", "args": (), "created": second, "lineno": place}
        record = logging.makeLogRecord(attributes)
        return LineFormatter().format(record).partition("odd")[2] if flood(record) else None

    flood = FloodFilter().filter
    last = " (at most 10 like it are logged in 10 s)"
    assert [logged(100 + each / 10) for each in range(60)] == [""] * 9 + [last] + [None] * 50
    assert logged(105, 2) == ""
    assert logged(110) == " (50 more like it were not logged)"
    assert [logged(111) for _ in range(10)] == [""] * 8 + [last] + [None]
    assert logged(50) == " (1 more like it were not logged)", "the clock was set back"
    assert logged(70) == ""


def test_clients_do_not_flood_the_log(path: Path) -> None:
    """Of a hundred warnings, ten for each period are logged, and the last of them says so."""
    with Daemon(path) as daemon:
        for _ in range(100):
            with Wire(path) as client:
                client.announcement()
                client.send(encode([(b"request", b"nonsense")]))
                assert client.receive_message() == [(b"status", b"1")]
        assert daemon.terminate() == 0
    lines = [line for line in daemon.log() if "malformed" in line]
    assert 10 <= len(lines) <= 20
    assert "at most 10 like it are logged in 10 s" in lines[9]


def test_log_record_is_one_line() -> None:
    """Line breaks and control sequences in labels are escaped."""
    assert one_line("a\nb\x1b[2J\udcff é") == r"a\nb\x1b[2J\xff é"


def test_daemon_goes_on_when_stderr_is_closed(tmp_path: Path) -> None:
    """It exits with 0 at SIGTERM."""
    with started(*SCACHE, "serve", "--socket", str(tmp_path / "s")) as process:
        assert process.stderr is not None
        assert b"listening" in process.stderr.readline()
        process.stderr.close()
        process.terminate()
        assert process.wait() == errors.EXIT_OK


def test_closed_standard_descriptors_become_dev_null() -> None:
    """No cached connection can get their numbers."""
    script = (
        "import os; from scache.cli.daemon_log import occupy_standard_descriptors as occupy;"
        "occupy(); print([os.readlink(f'/proc/self/fd/{n}') for n in (0, 2)])"
    )
    closed = 'exec "$0" -c "$1" 0<&- 2>&-'
    result = run_command("sh", "-c", closed, sys.executable, script)
    assert result.stdout == "['/dev/null', '/dev/null']\n"


def test_daemon_goes_on_when_log_pipe_is_full(path: Path) -> None:
    """It serves requests, and stops at SIGTERM."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as log, os.fdopen(writing, "wb") as stderr:
        command = [*SCACHE, "serve", "--socket", str(path), "--max-message-size", "100"]
        with subprocess.Popen(command, env=clean_environment(), stderr=stderr) as daemon:
            assert b"listening" in log.readline()
            os.set_blocking(stderr.fileno(), False)
            with suppress(BlockingIOError):
                while True:
                    os.write(stderr.fileno(), b"x" * 65536)
            os.set_blocking(stderr.fileno(), True)
            with Client(path) as client:
                for number in range(10):
                    with pytest.raises(ProtocolError):
                        client.save_dest(60, f"{number}".ljust(100), "", "")
                    client.close()
                assert client.save_dest(60, "a", "", "b")
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(DEADLINE) == 0
