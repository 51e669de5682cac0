"""Errors of SQLite as sentences that say what to do: for the daemon, and for a command that reads.

The two give different advice: the daemon needs a database that it can write.
"""

from __future__ import annotations

import sqlite3

from scache.errors import CorruptError, DatabaseError


def primary_code(error: Exception) -> int:
    """Return the primary result code of an error of SQLite; 0 if it has none."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def corrupt_at_start(path: str, detail: object) -> CorruptError:
    """Return the error of a daemon that starts with a corrupt database."""
    found = str(detail).removeprefix("*** in database main ***\n")
    return CorruptError(
        f"the database {path} is corrupt ({found})",
        "move it away and start again, or let --on-corrupt set-aside do that; "
        "counters, the audit log and bindings are lost",
    )


def cannot_start(path: str, error: sqlite3.Error, *, ours: bool) -> DatabaseError:
    """Return the error of a daemon that cannot open its database.

    ``ours`` is true for a file with the mark of scache: such a file is corrupt if SQLite finds no
    database in it.
    """
    match primary_code(error):
        case sqlite3.SQLITE_NOTADB if not ours:
            problem = "is not a SQLite database: choose another --database"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return corrupt_at_start(path, error)
        case sqlite3.SQLITE_FULL:
            problem = "cannot be written, the disk is full: free some space"
        case sqlite3.SQLITE_READONLY:
            problem = (
                "cannot be written, it is read-only: let this user write it, "
                "the files beside it (-wal and -shm) and its directory"
            )
        case sqlite3.SQLITE_CANTOPEN:
            problem = (
                f"cannot be used ({error}): let this user read and write it, "
                "the files beside it (-wal and -shm) and its directory"
            )
        case sqlite3.SQLITE_BUSY:
            problem = "is locked by another program: close that program and start again"
        case _:
            problem = f"cannot be used ({error}): check its disk and its directory"
    return DatabaseError(f"the database {path} {problem}")


def corrupt_to_read(what: str, detail: object) -> DatabaseError:
    """Return the error of a command that reads a corrupt database or image, named ``what``."""
    return DatabaseError(f"{what} is corrupt ({detail}): see what sqlite3's .recover can save")


def cannot_read(what: str, error: Exception) -> DatabaseError:
    """Return the error of a command that cannot read a database or image, named ``what``."""
    match primary_code(error):
        case sqlite3.SQLITE_NOTADB:
            problem = "is not a SQLite database: name the file of a daemon"
        case sqlite3.SQLITE_CORRUPT:
            return corrupt_to_read(what, error)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            problem = "is locked by another program: try again when that is done"
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            problem = f"cannot be read ({error}): ask as the user of the daemon, or as root"
        case sqlite3.SQLITE_NOMEM:
            problem = "cannot be read: there is not enough memory"
        case _:
            problem = f"cannot be read ({error}): check its disk"
    return DatabaseError(f"{what} {problem}")
