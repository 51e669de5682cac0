"""What the running daemon's database refuses: how long that lasts, and what the log says of it."""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from scache.errors import DatabaseFault
from scache.store.schema import ADDITIONS, additions, blamed

REFUSAL_PAUSE: Final = 5.0
"""Seconds without a refused statement after which the log says that there are none any more. A
trigger may refuse one row and not the next, many times in a second."""

COMMIT: Final = "COMMIT"

_UNREADABLE = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
)
"""What does not pass by itself: a commit that succeeds says nothing of what cannot be read."""

_OF_THE_WHOLE = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
)
"""What a commit that succeeds is the end of. All else is about one statement: a trigger or a unique
index that an administrator has made refuses it, or a table is not as we know it."""

logger = logging.getLogger(__name__)


class Faults:
    """What is refused now: the whole database, or single statements until they succeed."""

    def __init__(self) -> None:
        self.unreadable = ""
        """What SQLite says of a database that cannot be read; "" if it can."""
        self.failing: dict[str, str] = {}
        """What SQLite said of each statement that fails; of the whole database it is COMMIT."""
        self._told = False
        self._refused_at = -math.inf

    @property
    def text(self) -> str | None:
        """What SQLite complains of; None if nothing fails."""
        return self.unreadable or next(iter(self.failing.values()), None)

    @property
    def in_words(self) -> str:
        """What the fault means, for people."""
        if self.unreadable:
            return (
                f"it cannot be read ({self.unreadable}): what is cached may not be found until "
                "a restart"
            )
        return f"it cannot be written ({self.text}): saves are refused until it can"

    @property
    def to_tell(self) -> bool:
        """Whether the log still has to say that a fault is over."""
        return self._told and not self.text

    def failed(
        self, sql: str, error: sqlite3.Error, connection: sqlite3.Connection
    ) -> DatabaseFault:
        """Take note of a statement that failed; return what to raise."""
        code, text = getattr(error, "sqlite_errorcode", 0), str(error)
        if code in _UNREADABLE or code & 0xFF in _UNREADABLE:
            if not self.unreadable:
                self.unreadable = text
                logger.error(
                    "the database cannot be read (%s): what is cached may not be found until the "
                    "daemon is restarted",
                    error,
                )
        elif code & 0xFF in _OF_THE_WHOLE:
            self._complain(COMMIT, text)
        else:
            with suppress(sqlite3.Error):
                found = additions(connection.execute(ADDITIONS).fetchall())
                if culprits := blamed(found, text):
                    text = f"{culprits}: {text}"
            self._refused_at = time.monotonic()
            self._complain(sql, text)
        return DatabaseFault(text)

    def succeeded(self, statements: Iterable[str]) -> None:
        """Take note of statements that succeeded."""
        for sql in statements:
            self.failing.pop(sql, None)

    def tell(self) -> None:
        """Let the log say that a fault is over, if it is."""
        if self.to_tell and time.monotonic() >= self._refused_at + REFUSAL_PAUSE:
            logger.warning("the database can be written again; nothing was lost")
            self._told = False

    def _complain(self, sql: str, text: str) -> None:
        if not (self._told or self.unreadable):
            logger.warning(
                "the database cannot be written now (%s): saves are refused until it can", text
            )
            self._told = True
        self.failing.setdefault(sql, text)
