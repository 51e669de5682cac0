"""SQL statements, carried out in turn on an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from scache.cli.render.formats import Format, write

if TYPE_CHECKING:
    from scache.inspection.image import Image, Value


def execute(image: Image, text: str, layout: Format, parameters: Mapping[str, Value | str]) -> None:
    """Carry out the statements of a text in turn; write what each returns.

    Raises QueryError, and leaves out the rest, at the first that fails.
    """
    from scache.inspection.image import statements

    for statement in statements(text):
        result = image.execute(statement, parameters)
        if result.columns:
            write(result, layout)
        elif layout == "table" and result.changed >= 0:
            rows = "row" if result.changed == 1 else "rows"
            click.echo(f"{result.changed} {rows} changed, in this copy alone")
