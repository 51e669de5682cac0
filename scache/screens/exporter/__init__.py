"""The exporter of metrics for Prometheus, with its dashboard and its alert rules."""

from __future__ import annotations

from importlib.resources import files


def dashboard() -> str:
    """Return the dashboard for Grafana as JSON."""
    return _text("dashboard.json")


def alerts() -> str:
    """Return the alert rules for Prometheus as YAML."""
    return _text("alerts.yml")


def _text(name: str) -> str:
    return files("scache.screens.exporter").joinpath(name).read_text(encoding="utf-8")
