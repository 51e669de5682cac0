"""Checks of options that several commands have."""

from __future__ import annotations

from typing import cast

import click

from scache.settings.values import POSITIVE_SECONDS


def seconds(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """Return a number of seconds above 0, checked as the settings are; None if it is not given."""
    if value is None:
        return None
    try:
        return cast(float, POSITIVE_SECONDS.check(POSITIVE_SECONDS.read(value)))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
