"""The control plane's side of a database: open, migrate, recover, checkpoint, close.

What may wait for a disk happens here, through aiosqlite, off the event loop.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiosqlite
import anyio

from scache.errors import DatabaseError
from scache.store.batch import FAULT_RETRY_INTERVAL, Batch
from scache.store.ids import ID_RESERVE, Ids
from scache.store.migrations import migrations, pending_script
from scache.store.trail import Trail

MEMORY = ":memory:"

APPLICATION_ID = 0x73636163
"""Marks a file as ours ("scac"; SQLite docs, PRAGMA application_id)."""

WAL_LIMIT = 4 * 2**20
"""Bytes that the write-ahead log may have before it is copied into the database file."""

_STOP_ATTEMPTS = 5
"""How often the last commit of a run is tried, FAULT_RETRY_INTERVAL apart."""

_COUNT = """
    INSERT INTO counter (name, value) VALUES (?, ?)
    ON CONFLICT (name) DO UPDATE SET value = value + excluded.value
"""
_COUNT_LIVE = "SELECT count(*) FROM connection"
# Counters are committed together with the rows that they count, so that this is exact: what has
# been saved and has not left. It is more than there are rows of if a process crashed while it was
# about to hand some out.
_COUNT_NOT_LEFT = """
    SELECT coalesce(sum(iif(name = 'save_endp_ok', value, -value)), 0) FROM counter
    WHERE name IN ('save_endp_ok', 'connections_found', 'connections_expired',
        'connections_evicted', 'connections_hung_up', 'connections_purged', 'connections_lost')
"""
_RECORD_LOST = """
    INSERT INTO event (at, kind, endpoint, connection_id, age, detail)
    SELECT ?1, 'lost', endpoint, id, ?1 - saved_at, ?2 FROM connection ORDER BY id
"""
# Those that the latest run saved, and that have neither a row nor a way out. If that is more than
# are missing, then ways out are among the events that were dropped: better none than a false one.
_RECORD_LOST_ON_THEIR_WAY = """
    WITH gone AS (
        SELECT id, endpoint, connection_id, at FROM event
        WHERE kind = 'save_endp' AND status = 0 AND connection_id > (
            SELECT coalesce(max(last_id), 0) FROM instance
            WHERE id < (SELECT max(id) FROM instance)
        ) AND connection_id NOT IN (
            SELECT id FROM connection
            UNION ALL
            SELECT connection_id FROM event WHERE connection_id IS NOT NULL
            AND kind IN ('found', 'expired', 'evicted', 'hung_up', 'purged', 'lost')
        )
    )
    INSERT INTO event (at, kind, endpoint, connection_id, age, detail)
    SELECT ?1, 'lost', endpoint, connection_id, ?1 - at, ?2 FROM gone
    WHERE (SELECT count(*) FROM gone) <= ?3 ORDER BY id
"""
_TRIM_EVENTS = "DELETE FROM event WHERE id <= (SELECT max(id) FROM event) - ?"
_LOSE_CONNECTIONS = "DELETE FROM connection"
_LOSE_CLIENTS = "UPDATE client SET disconnected_at = ? WHERE disconnected_at IS NULL"
_EXPIRE_BINDINGS = "DELETE FROM binding WHERE expires_at <= ?"
_RECORD_EXPIRED_BINDINGS = """
    INSERT INTO event (at, kind, destination, endpoint, binding_id, age)
    SELECT ?1, 'expired', destination, endpoint, id, ?1 - saved_at FROM binding
    WHERE expires_at <= ?1 ORDER BY expires_at
"""
_SHORTEN_BINDINGS = "UPDATE binding SET expires_at = ?1 WHERE expires_at > ?1"
_LAST_ID = "SELECT coalesce(max(last_id), 0) FROM instance"
_FORGET_SETTINGS = "DELETE FROM setting"
_RECORD_SETTING = "INSERT INTO setting (name, value) VALUES (?, ?)"
_START = "INSERT INTO instance (started_at, version, pid, last_id) VALUES (?, ?, ?, ?)"
_STOP = "UPDATE instance SET stopped_at = ?, last_id = ? WHERE id = ?"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What a run of the daemon brings to the database it opens."""

    now: float
    """Seconds since the epoch."""
    version: str
    ttl_limit: float
    """Seconds; no binding of an earlier run outlives it."""
    audit_rows: int
    """Rows of the audit trail to keep; 0 records nothing, and leaves what is there."""
    settings: Mapping[str, str]
    """What the run goes by, for people to read."""


class Database:
    """An open database: the data plane's batch, and what the control plane does for it."""

    def __init__(
        self,
        path: str,
        control: aiosqlite.Connection,
        batch: Batch,
        ids: Ids,
        audit_rows: int,
        claim: int | None,
    ) -> None:
        """Hold a database; ``claim`` is the descriptor that locks its file, if it is one."""
        self.path = path
        """A file's path, or MEMORY."""
        self.batch = batch
        self.ids = ids
        self.trail = Trail(batch, audit_rows)
        self._audit_rows = audit_rows
        self._claim = claim
        self.control_turn = anyio.Lock()
        """To be had by whoever lets the control plane's thread work while requests are served."""
        self._commit_turn = anyio.Lock()
        self._control = control

    @property
    def log_is_long(self) -> bool:
        """Whether it is time for a `checkpoint`."""
        try:
            return self.path != MEMORY and Path(f"{self.path}-wal").stat().st_size > WAL_LIMIT
        except OSError:
            return False

    async def commit(self) -> bool:
        """Commit the batch, when nobody has the database held still; see `Batch.commit`."""
        async with self._commit_turn:
            return self.batch.commit()

    @asynccontextmanager
    async def held_still(self) -> AsyncIterator[None]:
        """Keep the database from commits and from whatever happens to it on another thread."""
        async with self.control_turn, self._commit_turn:
            yield

    def let_go(self) -> None:
        """In a forked child: leave it to the daemon alone to keep others off the file."""
        if self._claim is not None:
            os.close(self._claim)

    async def checkpoint(self) -> None:
        """Copy what is committed from the write-ahead log into the database file, off the loop.

        If all of it could be copied, the next batch starts the log over, at the
        cost of one sync of its header, and cuts its file to half of WAL_LIMIT.
        Under steady load that takes a moment without new batches.
        """
        try:
            await self._control.execute_fetchall("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            logger.warning("cannot copy the write-ahead log into the database now: %s", error)

    async def stop(self, now: float) -> None:
        """Record an orderly end: whatever is still cached is lost with the process."""
        for _ in range(_STOP_ATTEMPTS):
            if self.batch.commit():
                break
            await anyio.sleep(FAULT_RETRY_INTERVAL)
        else:
            return
        try:
            await self._control.execute("BEGIN IMMEDIATE")
            await _lose_live_rows(self._control, now, self._audit_rows, "the daemon stopped")
            await _trim_events(self._control, self._audit_rows)
            await self._control.execute(_STOP, (now, self.ids.last, self.ids.instance_id))
            await self._control.execute("COMMIT")
            if self.path != MEMORY:
                await self._control.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            logger.warning("cannot record the end of this run in the database: %s", error)


@asynccontextmanager
async def open_database(path: str, start: Start) -> AsyncIterator[Database]:
    """Open a database (a file's path, or MEMORY), made or migrated as needed, and mend it.

    Rows that a crashed process left behind are cleared away; bindings that have
    not expired stay. Raises DatabaseError with one sentence that says what to do.
    """
    async with AsyncExitStack() as stack:
        claim = None
        try:
            if path == MEMORY:
                data = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
                control = await stack.enter_async_context(aiosqlite.Connection(lambda: data, 64))
            else:
                claim = _claim(path)
                stack.callback(os.close, claim)
                control = await stack.enter_async_context(
                    aiosqlite.connect(path, isolation_level=None)
                )
            instance_id, first_id = await _prepare(path, control, start)
            if path != MEMORY:
                data = sqlite3.connect(path, isolation_level=None, timeout=0)
                stack.callback(data.close)
            _configure_data_plane(data)
        except sqlite3.Error as error:
            raise _explain(path, error) from error
        batch = Batch(data)
        ids = Ids(batch, instance_id, first_id)
        yield Database(path, control, batch, ids, start.audit_rows, claim)


def _claim(path: str) -> int:
    """Open the file, made if need be, and lock it against other daemons until it is closed.

    flock(2) and the locks of SQLite do not see each other, but closing any
    descriptor of the file drops SQLite's: this one is to be closed last.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DatabaseError(f"cannot open the database {path}: {_reason(error, path)}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise DatabaseError(
            f"another scache daemon uses the database {path}: stop it, or choose another --database"
        ) from error
    return descriptor


def _reason(error: OSError, path: str) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return f"there is no directory {Path(path).parent}: make it first"
        case errno.EACCES | errno.EPERM:
            return "permission denied: let this user read and write it and its directory"
        case errno.EISDIR:
            return "it is a directory: name a file"
        case errno.EROFS:
            return "its file system is read-only: choose another place"
        case errno.ENOSPC | errno.EDQUOT:
            return "the disk is full: free some space"
        case _:
            return error.strerror or str(error)


async def _prepare(path: str, control: aiosqlite.Connection, start: Start) -> tuple[int, int]:
    """Check, migrate and mend a database; return the id of this run and its first free id."""
    known = migrations()
    version = await _number(control, "PRAGMA user_version")
    marked = await _number(control, "PRAGMA application_id") == APPLICATION_ID
    if not marked and await _number(control, "SELECT count(*) FROM sqlite_schema"):
        raise DatabaseError(f"{path} is a database of another program: choose another --database")
    if version > known[-1].version:
        raise DatabaseError(
            f"the database {path} was made by a newer version of scache: "
            "upgrade scache, or choose another --database"
        )
    async with control.execute("PRAGMA quick_check(1)") as cursor:
        verdict = await cursor.fetchone()
    if verdict is None or verdict[0] != "ok":
        raise _corrupt(path, verdict[0] if verdict else "no verdict")
    if path != MEMORY:
        await control.execute("PRAGMA journal_mode = WAL")
    await control.execute("PRAGMA synchronous = NORMAL")
    await control.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    await control.executescript(pending_script(version, known))
    return await _recover(control, start)


async def _recover(control: aiosqlite.Connection, start: Start) -> tuple[int, int]:
    """Clear away what a crashed process left, and begin a run; return its id and first id."""
    await control.execute("BEGIN IMMEDIATE")
    await _lose_live_rows(control, start.now, start.audit_rows, "the daemon did not stop orderly")
    await _expire_bindings(control, start.now, start.audit_rows)
    await _trim_events(control, start.audit_rows)
    await control.execute(_SHORTEN_BINDINGS, (start.now + start.ttl_limit,))
    first = await _number(control, _LAST_ID) + 1
    await control.execute(_FORGET_SETTINGS)
    await control.executemany(_RECORD_SETTING, start.settings.items())
    row = (start.now, start.version, os.getpid(), first + ID_RESERVE)
    async with control.execute(_START, row) as cursor:
        instance_id = cursor.lastrowid
    await control.execute("COMMIT")
    assert instance_id is not None
    return instance_id, first


async def _lose_live_rows(
    control: aiosqlite.Connection, now: float, audit_rows: int, why: str
) -> None:
    """Account for connections and clients that ended with the process that held them."""
    live = await _number(control, _COUNT_LIVE)
    lost = max(live, await _number(control, _COUNT_NOT_LEFT))
    if audit_rows:
        if lost > live:
            await control.execute(_RECORD_LOST_ON_THEIR_WAY, (now, why, lost - live))
        await control.execute(_RECORD_LOST, (now, why))
    await control.execute(_COUNT, ("connections_lost", lost))
    await control.execute(_LOSE_CONNECTIONS)
    await control.execute(_LOSE_CLIENTS, (now,))


async def _expire_bindings(control: aiosqlite.Connection, now: float, audit_rows: int) -> None:
    """Account for bindings whose time was over before anybody could sweep them."""
    if audit_rows:
        await control.execute(_RECORD_EXPIRED_BINDINGS, (now,))
    async with control.execute(_EXPIRE_BINDINGS, (now,)) as cursor:
        expired = cursor.rowcount
    await control.execute(_COUNT, ("bindings_expired", expired))


async def _trim_events(control: aiosqlite.Connection, audit_rows: int) -> None:
    if audit_rows:
        await control.execute(_TRIM_EVENTS, (audit_rows,))


def _configure_data_plane(data: sqlite3.Connection) -> None:
    data.text_factory = bytes
    data.execute("PRAGMA synchronous = NORMAL")
    # Debian's SQLite overwrites what is deleted, by default: a tenth of the time of a pair.
    data.execute("PRAGMA secure_delete = OFF").fetchall()
    # The control plane checkpoints, and a batch stays in memory until its commit.
    data.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
    data.execute("PRAGMA cache_spill = OFF")
    data.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT // 2}").fetchall()


async def _number(control: aiosqlite.Connection, sql: str) -> int:
    async with control.execute(sql) as cursor:
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


def _corrupt(path: str, detail: object) -> DatabaseError:
    return DatabaseError(
        f"the database {path} is corrupt ({detail}): move it away and start again, "
        "only counters and bindings are lost"
    )


def _explain(path: str, error: sqlite3.Error) -> DatabaseError:
    """Return the one sentence for what SQLite refused while the database was opened."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    match code:
        case sqlite3.SQLITE_NOTADB:
            problem = "is not a SQLite database: choose another --database"
        case sqlite3.SQLITE_CORRUPT:
            return _corrupt(path, error)
        case sqlite3.SQLITE_FULL:
            problem = "cannot be written, the disk is full: free some space"
        case sqlite3.SQLITE_READONLY:
            problem = "cannot be written, it is read-only: let this user write it and its directory"
        case sqlite3.SQLITE_BUSY:
            problem = "is locked by another program: close that program and start again"
        case _:
            problem = f"cannot be used ({error}): check its disk and its directory"
    return DatabaseError(f"the database {path} {problem}")
