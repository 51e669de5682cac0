"""The trials of tools/trials, each tried a few times."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import clean_environment

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "facts"), [("open-files", 5), ("dead-peers", 2), ("kills", 3)], ids=str
)
def test_all_holds(name: str, facts: int) -> None:
    """Every fact is as it must be, or told for comparison, and the exit code says so."""
    path = os.pathsep.join(map(str, (ROOT / "tools", ROOT)))
    command = (sys.executable, "-P", "-m", "trying", name, "--scale", "0.03")
    result = subprocess.run(
        command,
        env=clean_environment(PYTHONPATH=path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == facts
    assert all(line.startswith(("ok  ", "--  ")) for line in lines), lines
