"""Settings of earlier versions do no harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from scache.cli.main import execute
from tests.support.daemon import Daemon


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Write a configuration file of an earlier version."""
    file = tmp_path / "scache.toml"
    file.write_text("priority_boost = 5\nmax_idle = 0\n")
    return file


def test_retired_setting_gets_one_warning_that_names_every_place(path: Path, config: Path) -> None:
    """The daemon starts all the same."""
    with Daemon(path, "--config", str(config), "--priority-boost", "3") as daemon:
        daemon.terminate()
        (line,) = [line for line in daemon.log() if "priority" in line.lower()]
    for place in (f"{config}: priority_boost", "--priority-boost"):
        assert place in line
    assert "this setting was removed" in line


def test_retired_setting_is_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    """``--show-config`` warns on stderr, and its output can be used as a configuration."""
    monkeypatch.setenv("SCACHE_PRIORITY_BOOST", "not even a number")
    assert execute(["serve", "--config", str(config), "--show-config"]) == 0
    output = capsys.readouterr()
    assert "priority_boost" not in output.out
    assert "priority_boost" in output.err
    assert "SCACHE_PRIORITY_BOOST" in output.err


def test_retired_option_is_not_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody is told of it any more."""
    assert execute(["serve", "--help"]) == 0
    assert "priority" not in capsys.readouterr().out
