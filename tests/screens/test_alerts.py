"""The alert rules: each fires when it should, and not otherwise (promtool)."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from scache.screens.exporter import alerts

CLOSED = 'scache_connections_closed_total{reason="%s"}'
SAVES = 'scache_requests_total{request="save_endp",status="%s"}'
FINDS = 'scache_requests_total{request="find_dest",status="%s",class="other"}'
DAY = 24 * 60

# By alert: series that make it fire at a minute, and series that do not.
Series = dict[str, str]
RULES: dict[str, tuple[int, Series, Series]] = {
    "ScacheDown": (5, {"scache_up": "0x9"}, {"scache_up": "1x9"}),
    "ScacheAbsent": (8, {"other": "1x9"}, {"scache_up": "0x9"}),
    "ScacheDatabaseFault": (
        5,
        {"scache_database_fault": "1x9"},
        {"scache_database_fault": "0x9"},
    ),
    "ScacheRefusing": (
        15,
        {SAVES % "fail": "0+1x20"},
        {
            FINDS % "fail": "0+1x20",
            'scache_requests_total{request="save_endp",status="ok"}': "0+1x20",
        },
    ),
    "ScacheEvicting": (15, {CLOSED % "evicted": "0+1x20"}, {CLOSED % "expired": "0+1x20"}),
    "ScacheLimitNear": (
        15,
        {'scache_limit{limit="clients"}': "100x20", 'scache_limit_used{limit="clients"}': "91x20"},
        {'scache_limit{limit="clients"}': "100x20", 'scache_limit_used{limit="clients"}': "89x20"},
    ),
    "ScacheHitRateHalved": (
        DAY + 90,
        {
            FINDS % "ok": f"0+8x{DAY} {8 * DAY}+2x120",
            FINDS % "fail": f"0+2x{DAY} {2 * DAY}+8x120",
        },
        {
            FINDS % "ok": f"0+8x{DAY} {8 * DAY}+5x120",
            FINDS % "fail": f"0+2x{DAY} {2 * DAY}+5x120",
        },
    ),
    "ScacheSavedNeverFound": (
        90,
        {CLOSED % "expired": "0+1x120", CLOSED % "found": "5x120"},
        {CLOSED % "expired": "0+1x120", CLOSED % "found": "0+1x120"},
    ),
    "ScachePeersHangUp": (
        90,
        {CLOSED % "hung_up": "0+3x120", CLOSED % "found": "0+2x120"},
        {CLOSED % "hung_up": "0+2x120", CLOSED % "found": "0+3x120"},
    ),
    "ScacheMalformed": (
        15,
        {'scache_requests_total{request="unknown",status="bad"}': "0x9 1x9"},
        {'scache_requests_total{request="unknown",status="bad"}': "7x20"},
    ),
    "ScacheEventsDropped": (
        15,
        {"scache_events_dropped_total": "0x9 1x9"},
        {"scache_events_dropped_total": "7x20"},
    ),
    "ScacheRestarting": (
        20,
        {"scache_start_time_seconds": "1x9 2x2 3x2 4x9"},
        {"scache_start_time_seconds": "1x9 2x2 3x12"},
    ),
}


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """Return the file of the rules."""
    file = tmp_path / "alerts.yml"
    file.write_text(alerts())
    return file


def test_rules_are_valid_and_each_is_tested(rules: Path) -> None:
    """Each has a severity and says what to do."""
    checked = subprocess.run(("promtool", "check", "rules", rules), check=False)
    assert checked.returncode == 0
    assert re.findall(r"alert: (\w+)", alerts()) == list(RULES)
    for each in ("severity: ", "summary: ", "action: "):
        assert alerts().count(each) == len(RULES)


@pytest.mark.parametrize("alert", RULES)
def test_alert_fires_when_it_should_and_not_otherwise(rules: Path, alert: str) -> None:
    """A restart of the counters makes no alert either."""
    minute, firing, quiet = RULES[alert]
    expression = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)'
    tests = [
        {
            "interval": "1m",
            "input_series": [
                {"series": _labelled(name), "values": values} for name, values in series.items()
            ],
            "promql_expr_test": [
                {
                    "expr": expression,
                    "eval_time": f"{minute}m",
                    "exp_samples": [{"labels": "{}", "value": fires}],
                }
            ],
        }
        for series, fires in ((firing, 1), (quiet, 0))
    ]
    file = rules.with_name("tests.yml")
    plan = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}
    file.write_text(json.dumps(plan))
    result = subprocess.run(
        ("promtool", "test", "rules", file), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def _labelled(series: str) -> str:
    """Return a series with the labels of a scrape."""
    name, _, labels = series.partition("{")
    return f'{name}{{job="scache",instance="a",{labels or "}"}'
