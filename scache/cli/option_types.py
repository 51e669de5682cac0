"""Checks of options that several commands have."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

import click

from scache.settings.values import POSITIVE_SECONDS

LARGEST = 2**63 - 1
"""The largest integer of SQLite."""


def as_text(argument: str) -> str:
    """Return the text of an argument: its bytes decoded as UTF-8, also if the locale is not UTF-8.

    This is the type of SQL, labels and names. A path stays as it is: the kernel takes its bytes.
    """
    return os.fsencode(argument).decode(errors="surrogateescape")


def bytes_of(text: str) -> bytes:
    """Return the bytes of an argument that `as_text` returned."""
    return text.encode(errors="surrogateescape")


def whole_number(least: int) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return the callback of an option that takes whole numbers from ``least`` to LARGEST.

    The option has one value, or a tuple of them if it is repeatable.
    """

    def convert(text: str) -> int:
        # A longer text may have more digits than int() accepts.
        if text.isascii() and text.isdecimal() and len(text) <= len(str(LARGEST)):
            number = int(text)
            if least <= number <= LARGEST:
                return number
        raise click.BadParameter(f"must be a whole number from {least} to 2^63 - 1, not {text!r}")

    def callback(_: click.Context, __: click.Parameter, value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, tuple):
            return tuple(map(convert, value))
        return None if value is None else convert(value)

    return callback


def seconds(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """Return a number of seconds above 0, checked as the settings are; None if it is not given."""
    if value is None:
        return None
    try:
        return cast(float, POSITIVE_SECONDS.check(POSITIVE_SECONDS.read(value)))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
