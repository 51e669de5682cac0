"""Paths with bytes that are not UTF-8: the socket, the database and the configuration."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sqlite3
import subprocess
from base64 import b64decode
from contextlib import closing
from pathlib import Path

import pytest

from scache import Client
from scache.errors import EXIT_OK
from scache.escape import one_line, quoted
from tests.support.commands import SCACHE, clean_environment, run_command
from tests.support.daemon import Daemon
from tests.support.descriptors import descriptors_of

STRICT = "utf-8:strict"
"""The encoding of output; a terminal has it."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Make a directory whose name is not UTF-8."""
    directory = Path(os.fsdecode(bytes(tmp_path) + b"/a\xffb"))
    directory.mkdir()
    return directory


def output(*command: str | Path) -> str:
    """Run a command of scache whose output must be UTF-8; return its output."""
    done = run_command(*SCACHE, *command, PYTHONIOENCODING=STRICT)
    assert done.returncode == EXIT_OK, done.stderr
    return done.stdout


def test_daemon_serves_paths_that_are_not_utf8(directory: Path) -> None:
    """Each place shows them: the log, the table setting, the statistics, JSON."""
    path, database = directory / "s", directory / "db"
    with Daemon(path, database=database) as daemon:
        line = daemon.wait_for_log("listening on")
        assert f"listening on {one_line(str(path))}, database {one_line(str(database))};" in line
        with Client(path) as client:
            assert client.save_endp(60, "e", "", 0)
        figures = json.loads(output("stats", "--socket", path, "--format", "json"))
        assert figures["settings"]["socket"] == one_line(str(path))
        assert figures["settings"]["database"] == one_line(str(database))
        statement = "SELECT value FROM setting WHERE name IN ('socket', 'database') ORDER BY name"
        rows = json.loads(output("sql", "--socket", path, "--format", "json", statement))
        encoded = [b64decode(row["value"]["encoded"]) for row in rows]
        assert encoded == [bytes(database), bytes(path)]
        for command in ("stats", "ping", "check", "dump", "events"):
            output(command, "--socket", path)
        dump = directory / "dump"
        assert "a\\xffb/dump" in output("dump", "--socket", path, "--output", dump)
        output("check", "--database", dump)
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.wait_for_log("settings reloaded")
        assert daemon.terminate() == EXIT_OK
    assert r"\udcff" not in "".join(daemon.log())
    output("check", "--database", database)


def test_database_that_is_not_utf8_is_made_anew(directory: Path) -> None:
    """The new file has the same name."""
    database = directory / "db"
    with Daemon(directory / "s", database=database) as daemon:
        database.unlink()
        daemon.wait_for_log("was made anew")
        assert str(database) in descriptors_of(daemon.pid).values()
    with closing(sqlite3.connect(database)) as reader:
        assert reader.execute("SELECT count(*) FROM instance").fetchone() == (1,)


def test_corrupt_database_that_is_not_utf8_is_set_aside(directory: Path) -> None:
    """Its new name has the same bytes."""
    (directory / "db").write_bytes(b"\0" * 68 + b"scac" + b"\0" * 5000)
    with Daemon(directory / "s", database=directory / "db") as daemon:
        assert "it is kept as" in daemon.log()[0]
    assert any(".corrupt-" in each.name for each in directory.iterdir())


def test_show_config_shows_bytes_that_are_not_utf8(directory: Path) -> None:
    """A configuration file with the byte in its name is read as well."""
    config = directory / "config"
    config.write_text("max_idle = 4711\n")
    shown = output("serve", "--show-config", "--config", config, "--socket", directory / "s")
    assert r'a\xffb/s"' in shown
    assert r"a\xffb/config" in shown
    assert "max_idle = 4711" in shown


def test_message_names_a_path_that_is_not_utf8(directory: Path) -> None:
    """The daemon does not run."""
    done = run_command(*SCACHE, "stats", "--socket", directory / "s", PYTHONIOENCODING=STRICT)
    assert r"a\xffb/s (from --socket)" in done.stderr


@pytest.mark.parametrize("name", ["plain", "a b", "it's", "a\udcffb", "a\nb'\\\udcff", "ü"])
def test_quoted_text_is_one_word_of_a_shell(name: str) -> None:
    """The log line at the start has a command that can be pasted."""
    script = f"printf %s {quoted(name)}"
    done = subprocess.run(
        ["bash", "-c", script], env=clean_environment(), capture_output=True, check=True
    )
    assert done.stdout == os.fsencode(name)
    assert quoted("a b") == shlex.quote("a b")
