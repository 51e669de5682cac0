"""The write-ahead log of a database: its size, and the checkpoints that keep it short."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import aiosqlite

WAL_LIMIT = 4 * 2**20
"""Bytes of the write-ahead log above which a checkpoint is due."""

STARVED_LOG = 8 * WAL_LIMIT
"""Bytes of the write-ahead log above which a warning says that a reader blocks its reset."""

STARVED = (
    f"its write-ahead log has more than {STARVED_LOG >> 20} MiB and grows until another program "
    "ends the transaction in which it reads"
)

logger = logging.getLogger(__name__)


class WriteAheadLog:
    """The write-ahead log beside a database file."""

    def __init__(self, database: str | None) -> None:
        """Watch the log of a database file; None for a database in memory, which has no log."""
        self._file = None if database is None else Path(f"{database}-wal")
        self.starved = False
        """True if the log was too long at the last `look`, because a reader blocks its reset."""

    @property
    def is_long(self) -> bool:
        """True if a checkpoint is due."""
        return self.size > WAL_LIMIT

    @property
    def is_very_long(self) -> bool:
        """True if the log is so long that a checkpoint may suspend requests for a moment."""
        return self.size > 3 * WAL_LIMIT

    def look(self, name: str) -> None:
        """Check if the log is starved, and log each change for the database with this name."""
        starved = self.size > (WAL_LIMIT if self.starved else STARVED_LOG)
        if starved != self.starved:
            self.starved = starved
            logger.warning(
                "the database %s: %s", name, STARVED if starved else "its log is short again"
            )

    @property
    def size(self) -> int:
        """The size of the log in bytes; 0 if there is none."""
        try:
            return 0 if self._file is None else self._file.stat().st_size
        except OSError:
            return 0


def limit_log(data: sqlite3.Connection) -> None:
    """Leave checkpoints to `checkpoint`; have a restarted log truncated to half of WAL_LIMIT."""
    data.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
    data.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT // 2}").fetchall()


async def checkpoint(control: aiosqlite.Connection) -> None:
    """Copy committed pages from the write-ahead log into the database file, off the event loop.

    If all of them were copied, the next batch restarts the log and truncates it, at the cost of
    one sync of its header. Under steady load all pages are copied only if no batch is written for
    a moment.
    """
    try:
        await control.execute_fetchall("PRAGMA wal_checkpoint(PASSIVE)")
    except sqlite3.Error as error:
        logger.warning("cannot copy the write-ahead log into the database now: %s", error)
