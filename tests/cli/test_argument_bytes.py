"""Arguments of commands: they are read as UTF-8 in every locale."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from scache.errors import EXIT_OK, EXIT_SETTINGS
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon
from tests.support.sample_database import NOW, filling

LABEL = "smtp\nmünchen.example\n"


@pytest.fixture(params=["C", "latin-1"])
def locale(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ...]:
    """Return the beginning of a command: a locale that is not UTF-8, and no coercion by Python."""
    words = ("env", "PYTHONCOERCECLOCALE=0", "PYTHONUTF8=0")
    if request.param == "C":
        return (*words, "LC_ALL=C")
    made = ("localedef", "-i", "en_US", "-f", "ISO-8859-1", str(tmp_path / "en_US"))
    try:
        subprocess.run(made, check=False, capture_output=True)
    except FileNotFoundError:
        pytest.skip("localedef(1) is not installed")
    if not (tmp_path / "en_US").exists():
        pytest.skip("the sources of the locales are not installed")
    return (*words, "LC_ALL=en_US", f"LOCPATH={tmp_path}")


@pytest.fixture
def labelled(file: Path) -> Path:
    """Fill a database with a label and a table that have an umlaut."""
    with filling(file) as cached:
        cached.connection(1, LABEL.encode())
        cached.event("save_endp", id=1, endpoint=LABEL.encode(), connection_id=1, at=NOW)
        cached.run('CREATE TABLE "tür" AS SELECT 1 AS x')
    return file


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sql", "SELECT 'ü' AS ü, unicode('ü') AS x"], [{"ü": "ü", "x": 252}]),
        (["sql", "SELECT :ü = 'ü' AS same", "-p", "ü=ü"], [{"same": 1}]),
        (["dump", "tür"], {"tür": [{"x": 1}]}),
    ],
)
def test_argument_is_utf8_in_every_locale(
    labelled: Path, locale: tuple[str, ...], words: list[str], expected: object
) -> None:
    """SQL, parameters and names of tables are the same text everywhere."""
    options = ("--database", labelled, "--format", "json")
    done = run_command(*locale, *SCACHE, *words, *options)
    assert done.returncode == EXIT_OK, done.stderr
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize(
    "words",
    [["--field", "münchen.example"], ["--endpoint", "*ü*"], ["--endpoint", r"smtp\nmünchen*"]],
)
def test_label_is_utf8_in_every_locale(
    labelled: Path, locale: tuple[str, ...], words: list[str]
) -> None:
    """Its bytes are compared."""
    done = run_command(
        *locale, *SCACHE, "events", *words, "--database", labelled, "--format", "jsonl"
    )
    assert (done.returncode, done.stderr) == (EXIT_OK, "")
    assert json.loads(done.stdout)["endpoint"] == LABEL


def test_argument_that_is_not_utf8_is_refused(labelled: Path, locale: tuple[str, ...]) -> None:
    """The locale does not matter, even if it has a character for the byte."""
    done = run_command(*locale, *SCACHE, "sql", "--database", labelled, "SELECT '\udcff'")
    assert done.returncode == EXIT_SETTINGS
    assert "the statement is not UTF-8" in done.stderr


def test_path_has_the_same_bytes_in_every_locale(tmp_path: Path, locale: tuple[str, ...]) -> None:
    """It may be an option, or text in the configuration file."""
    socket = tmp_path / "ü"
    config = tmp_path / "scache.toml"
    config.write_text(f'socket = "{socket}"\n', encoding="utf-8")
    with Daemon(socket):
        for variable in (f"SCACHE_CONFIG={config}", f"SCACHE_SOCKET={socket}"):
            assert run_command(*locale, variable, *SCACHE, "ping").stderr == ""
        assert run_command(*locale, *SCACHE, "ping", "--socket", socket).stderr == ""


def test_why_reads_its_label_as_utf8_in_every_locale(
    labelled: Path, locale: tuple[str, ...]
) -> None:
    """The label is found, and a hint about another one has its characters."""
    command = (*locale, "PYTHONIOENCODING=utf-8", *SCACHE, "why")
    found = run_command(*command, "*münchen*", "--database", labelled)
    assert "cached now: 1" in found.stdout
    missed = run_command(*command, "xmünchen", "--database", labelled)
    assert "no event and no cached connection or binding has such a label" in missed.stdout
