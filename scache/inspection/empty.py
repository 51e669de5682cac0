"""An image without rows, for the names of tables, views and columns."""

from __future__ import annotations

import sqlite3

from scache.inspection.image import Image
from scache.store.migrations import migrations, pending_script


def empty_image() -> Image:
    """Return an image of a new database, which the caller closes."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(pending_script(0, migrations()))
    return Image(connection)
