"""tools/stress: each scenario, a few times."""

from __future__ import annotations

import pytest

from tests.support.commands import run_tool


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "facts"), [("open-files", 5), ("dead-peers", 2), ("kills", 3)], ids=str
)
def test_stress_scenario_passes(name: str, facts: int) -> None:
    """Every fact is as it must be, or is about another program, and the exit code is 0."""
    result = run_tool("-m", "harness.stress", name, "--scale", "0.03")
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == facts
    assert all(line.startswith(("ok  ", "--  ")) for line in lines), lines
