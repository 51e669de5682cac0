"""Settings of earlier versions do not prevent a start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scache.cli.main import execute
from scache.settings.declarations import RETIRED, Settings
from tests.support.daemon import Daemon


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Write a configuration file of an earlier version."""
    file = tmp_path / "scache.toml"
    file.write_text("priority_boost = 5\nmax_idle = 0\n")
    return file


def test_retired_setting_gets_one_warning_that_names_every_source(path: Path, config: Path) -> None:
    """The daemon starts, and logs one line with the option and the key."""
    with Daemon(path, "--config", str(config), "--priority-boost", "3") as daemon:
        daemon.terminate()
        (line,) = [line for line in daemon.log() if "priority" in line.lower()]
    for place in (f"{config}: priority_boost", "--priority-boost"):
        assert place in line
    assert "this setting was removed" in line


def test_show_config_omits_retired_setting_and_warns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    """The warning goes to stderr, so the output can be used as a configuration."""
    monkeypatch.setenv("SCACHE_PRIORITY_BOOST", "not even a number")
    assert execute(["serve", "--config", str(config), "--show-config"]) == 0
    output = capsys.readouterr()
    assert "priority_boost" not in output.out
    assert "priority_boost" in output.err
    assert "SCACHE_PRIORITY_BOOST" in output.err


def test_help_omits_retired_option(capsys: pytest.CaptureFixture[str]) -> None:
    """The option is accepted and hidden."""
    assert execute(["serve", "--help"]) == 0
    assert "priority" not in capsys.readouterr().out


@pytest.mark.parametrize("name", RETIRED)
def test_settings_refuses_retired_setting_as_keyword(name: str) -> None:
    """Python code gets the TypeError of an unknown keyword, which names it."""
    arguments: dict[str, Any] = {name: 5}
    with pytest.raises(TypeError, match=name):
        Settings(**arguments)
