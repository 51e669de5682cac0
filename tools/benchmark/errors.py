"""Why there is no figure."""

from __future__ import annotations


class NotRun(Exception):
    """Something cannot be measured here; says why."""


class Failed(Exception):
    """A program under measurement did not do what it must; says what."""
