"""Database files that a daemon may find at its start, and ways to lose those that it uses."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from scache.store.files import APPLICATION_ID
from tests.support.store_fixture import NOW, Opened, read


def make_database(file: Path, user_version: int | None = None) -> None:
    """Make the database of an earlier run, with a few dozen pages."""
    with Opened(file) as opened:
        for number in range(100):
            values = f"{number}, 'd{number}', 'e', '{'x' * 1000}', {NOW}, {NOW * 2}, 1"
            opened.rows(f"INSERT INTO binding VALUES ({values})")
        opened.run(opened.database.stop(NOW))
    if user_version is not None:
        read(file, f"PRAGMA user_version = {user_version}")


def overwrite_the_middle(file: Path) -> None:
    """Make a database with two pages of garbage in the middle."""
    make_database(file)
    with file.open("r+b") as raw:
        raw.seek(file.stat().st_size // 2 // 4096 * 4096)
        raw.write(b"\xa5" * 8192)


def truncate(file: Path) -> None:
    """Make a database that is cut in half."""
    make_database(file)
    os.truncate(file, file.stat().st_size // 2 + 100)


def make_another_programs(file: Path) -> None:
    """Make the database of another program."""
    with closing(sqlite3.connect(file)) as other:
        other.executescript("PRAGMA journal_mode = WAL; CREATE TABLE connection (mine);")


def make_newer(file: Path) -> None:
    """Make a database with the version number of a later release."""
    make_database(file, user_version=9999)


def make_empty(file: Path, *, user_version: int, application_id: int = APPLICATION_ID) -> None:
    """Make a database that has a version and a mark, and no tables."""
    with closing(sqlite3.connect(file)) as empty:
        empty.execute(f"PRAGMA user_version = {user_version}")
        empty.execute(f"PRAGMA application_id = {application_id}")


def copy_without_log(file: Path, copy: Path) -> None:
    """Copy the file of a daemon that has not checkpointed it yet, without its log."""
    with Opened(file) as opened:
        assert opened.run(opened.database.commit())
        shutil.copy(file, copy)


def names(file: Path) -> set[str]:
    """Return the names in the directory of a file."""
    return {each.name for each in file.parent.iterdir()}


def delete(file: Path) -> None:
    """Delete a database, its log and the index of the log."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{file}{suffix}").unlink()


def delete_alone(file: Path) -> None:
    """Delete a database without its log."""
    file.unlink()


def move_away(file: Path) -> None:
    """Rename a database without its log."""
    file.rename(f"{file}.old")


def delete_log(file: Path) -> None:
    """Delete the log."""
    Path(f"{file}-wal").unlink()


def delete_index(file: Path) -> None:
    """Delete the index of the log."""
    Path(f"{file}-shm").unlink()
