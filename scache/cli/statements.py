"""Execution of SQL statements on an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from scache.cli.render.formats import Format, write

if TYPE_CHECKING:
    from scache.inspection.image import Image, Value


def execute(image: Image, text: str, layout: Format, parameters: Mapping[str, Value | str]) -> None:
    """Execute the statements of a text in order; write the result of each.

    Raises QueryError at the first statement that fails; the rest is not executed.
    """
    from scache.inspection.image import statements

    for statement in statements(text):
        result = image.execute(statement, parameters)
        if result.columns:
            write(result, layout)
        elif layout == "table" and result.changed >= 0:
            rows = "row" if result.changed == 1 else "rows"
            click.echo(f"{result.changed} {rows} changed, in this copy alone")
