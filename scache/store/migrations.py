"""The schema's versions: numbered SQL files, applied forward only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Migration(NamedTuple):
    """One step of the schema."""

    version: int
    script: str


def _directory() -> Path:
    """Return the directory of the SQL files, in the installed package or in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


@cache
def migrations() -> Sequence[Migration]:
    """Return all migrations in the order of their versions; the files are read once."""
    return tuple(
        Migration(int(path.name[:4]), path.read_text(encoding="utf-8"))
        for path in sorted(_directory().glob("[0-9][0-9][0-9][0-9]_*.sql"))
    )


def pending_script(version: int, known: Sequence[Migration]) -> str:
    """Return the SQL that brings a database of this version up to date.

    Each migration sets its version (``PRAGMA user_version``) in the same transaction.
    """
    return "".join(
        f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;\n"
        for number, script in known
        if number > version
    )
