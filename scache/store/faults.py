"""The faults of the running daemon's database: when one begins and ends, and what is logged."""

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
"""Seconds without a refused statement after which the end of a fault is logged. A trigger may
refuse one row and accept the next, many times a second: without the pause each would be logged."""

COMMIT: Final = "COMMIT"
"""In `Faults.failing`, a fault of the whole database: a commit that succeeds ends it."""

_UNREADABLE = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
)
"""Errors that last until a restart. A commit does not read, so its success does not end them."""

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
"""Errors that concern the whole database, such as a full disk: a commit that succeeds ends them.
Every other error concerns one statement, for example one that an administrator's trigger refuses,
and ends when this statement succeeds."""

logger = logging.getLogger(__name__)


class Faults:
    """The faults that last now, of the whole database and of single statements."""

    def __init__(self) -> None:
        self.unreadable = ""
        """SQLite's message if the database cannot be read; else empty."""
        self.failing: dict[str, str] = {}
        """SQLite's message by the text of each failing statement; under COMMIT if all fail."""
        self._told = False
        """True from the log line about a fault until the line that says that it is over."""
        self._refused_at = -math.inf
        """When a single statement was last refused (time.monotonic)."""

    @property
    def text(self) -> str | None:
        """SQLite's message for the first fault; None if there is none."""
        return self.unreadable or next(iter(self.failing.values()), None)

    @property
    def in_words(self) -> str:
        """The consequence of the fault, as the end of a sentence about the database."""
        if self.unreadable:
            return (
                f"it cannot be read ({self.unreadable}): what is cached may not be found until "
                "a restart"
            )
        return f"it cannot be written ({self.text}): saves are refused until it can"

    @property
    def to_tell(self) -> bool:
        """True if a fault was logged and is over, and its end is not logged yet."""
        return self._told and not self.text

    def failed(
        self, sql: str, error: sqlite3.Error | MemoryError, connection: sqlite3.Connection
    ) -> DatabaseFault:
        """Record that a statement failed, and log the first failure; return what to raise.

        The text of what is returned names the trigger or index that the error may come from.
        """
        code, text = getattr(error, "sqlite_errorcode", 0), str(error)
        if isinstance(error, MemoryError):  # sqlite3 raises it for this code
            code, text = sqlite3.SQLITE_NOMEM, "out of memory"
        if code in _UNREADABLE or code & 0xFF in _UNREADABLE:
            if not self.unreadable:
                self.unreadable = text
                logger.error(
                    "the database cannot be read (%(reason)s): what is cached may not be found "
                    "until the daemon is restarted",
                    {"reason": error},
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
        """Record that statements succeeded, which ends their faults."""
        for sql in statements:
            self.failing.pop(sql, None)

    def tell(self) -> None:
        """Log that the faults are over, unless one lasts or a statement was refused just now."""
        if self.to_tell and time.monotonic() >= self._refused_at + REFUSAL_PAUSE:
            logger.warning("the database can be written again; nothing was lost")
            self._told = False

    def _complain(self, sql: str, text: str) -> None:
        if not (self._told or self.unreadable):
            logger.warning(
                "the database cannot be written now (%(reason)s): saves are refused until it can",
                {"reason": text},
            )
            self._told = True
        self.failing.setdefault(sql, text)
