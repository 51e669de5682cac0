"""The control plane's side of a database: open, migrate, recover, checkpoint, close.

Operations that may wait for a disk run on aiosqlite's thread, not on the event loop.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import aiosqlite
import anyio
import anyio.to_thread

from scache.clock import Clock
from scache.errors import CorruptError, DatabaseError
from scache.store import files
from scache.store.audit import AuditLog
from scache.store.batch import COUNT, FAULT_RETRY_INTERVAL, Batch, Parameters
from scache.store.event_writer import TRIM
from scache.store.files import APPLICATION_ID, Files, Loss
from scache.store.ids import ID_RESERVE, Ids
from scache.store.migrations import migrations, pending_script
from scache.store.schema import ADDITIONS, Addition, additions, blamed
from scache.store.steps import LATEST_BOOT, following
from scache.vocabulary import RUNS_NOT_RECORDED

MEMORY = ":memory:"

WAL_LIMIT = 4 * 2**20
"""Bytes of the write-ahead log above which a checkpoint is due."""

STARVED_LOG = 8 * WAL_LIMIT
"""Bytes of the write-ahead log above which a warning says that a reader blocks its reset."""

_STOP_ATTEMPTS = 5
"""Attempts to make the last commit of a run, FAULT_RETRY_INTERVAL apart."""

_COUNT_LIVE = "SELECT count(*) FROM connection"
# The number of connections that were saved and have no close reason. It is exact, because counters
# are committed together with the rows that they count. It exceeds the number of rows if a process
# crashed after it had taken connections and before it had handed them over.
_COUNT_NOT_LEFT = """
    SELECT coalesce(sum(iif(name = 'save_endp_ok', value, -value)), 0) FROM counter
    WHERE name IN ('save_endp_ok', 'connections_found', 'connections_expired',
        'connections_evicted', 'connections_hung_up', 'connections_purged', 'connections_lost')
"""
_RECORD_LOST = """
    INSERT INTO event (at, kind, endpoint, connection_id, age, detail)
    SELECT ?1, 'lost', endpoint, id, max(?1 - saved_at, 0), ?2 FROM connection ORDER BY id
"""
# Connections that the latest run saved and that have neither a row nor a close reason. If there are
# more of them than are missing, then events with close reasons were dropped, and none is recorded,
# because some records would be false. The age is unknown if the clock was set during the run,
# because the time of an event does not move with it.
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
    SELECT ?1, 'lost', endpoint, connection_id, iif(
        EXISTS (SELECT 1 FROM clock_step WHERE at >= (
            SELECT started_at FROM instance ORDER BY id DESC LIMIT 1
        )), NULL, max(?1 - at, 0)
    ), ?2 FROM gone
    WHERE (SELECT count(*) FROM gone) <= ?3 ORDER BY id
"""
_LOSE_CONNECTIONS = "DELETE FROM connection"
_LOSE_CLIENTS = "UPDATE client SET disconnected_at = ? WHERE disconnected_at IS NULL"
_EXPIRE_BINDINGS = "DELETE FROM binding WHERE expires_at <= ?"
_RECORD_EXPIRED_BINDINGS = """
    INSERT INTO event (at, kind, destination, endpoint, binding_id, age)
    SELECT ?1, 'expired', destination, endpoint, id, ?1 - saved_at FROM binding
    WHERE expires_at <= ?1 ORDER BY expires_at
"""
# The clock may have been set back since an earlier boot, so stamps may lie in the future.
_SHORTEN_BINDINGS = """
    UPDATE binding SET expires_at = min(expires_at, ?1), saved_at = min(saved_at, ?2)
    WHERE expires_at > ?1 OR saved_at > ?2
"""
_LAST_ID = "SELECT coalesce(max(last_id), 0) FROM instance"
_FORGET_SETTINGS = "DELETE FROM setting"
# A database restored from a dump contains the descriptors of the dumped daemon.
_FORGET_DESCRIPTORS = "DELETE FROM descriptor"
_RECORD_SETTING = "INSERT INTO setting (name, value) VALUES (?, ?)"
_CHANGE_SETTING = "UPDATE setting SET value = ? WHERE name = ?"
_START = """
    INSERT INTO instance (started_at, version, pid, last_id, boot, booted_at)
    VALUES (?, ?, ?, ?, ?, ?)
"""
# A trigger may ignore a write (RAISE(IGNORE)) without an error.
_NOT_RECOVERED = """
    SELECT EXISTS (SELECT 1 FROM connection) OR EXISTS (SELECT 1 FROM descriptor)
        OR EXISTS (SELECT 1 FROM binding WHERE expires_at <= ?1)
        OR NOT EXISTS (SELECT 1 FROM instance WHERE started_at = ?1 AND id = ?2 AND pid = ?3)
"""
_STOP = "UPDATE instance SET stopped_at = ?, last_id = ? WHERE id = ?"

_OF_A_STATEMENT = (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_ERROR)
"""Error codes of a statement that a trigger or unique index refuses, or whose trigger is broken."""

_LOST: Mapping[Loss, str] = {
    "deleted": "its file was deleted; what is cached stays, and the file is made anew",
    "replaced": "another file was put in its place, which is left alone; what is cached stays, "
    "and nothing of it lasts until that file is moved away, or the daemon is restarted",
    "log": "its write-ahead log was deleted; what is cached stays, and the file is made anew",
}
_STARVED = (
    f"its write-ahead log has more than {STARVED_LOG >> 20} MiB and grows until another program "
    "ends the transaction in which it reads"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The parameters of a run of the daemon for the database that it opens."""

    clock: Clock
    """The clock for stamps. Its offset is set to that of an earlier run since the same boot."""
    version: str
    ttl_limit: float
    """Seconds after which a binding of an earlier run expires at the latest."""
    audit_rows: int
    """Rows of the audit log to keep; 0 records nothing, and keeps the existing rows."""
    settings: Mapping[str, str]
    """The settings of the run by name, for the table ``setting``."""
    set_aside: bool = True
    """True to rename a corrupt database of scache and start with an empty one."""


class _Handles(NamedTuple):
    """The open connections and files of a database."""

    control: aiosqlite.Connection
    data: sqlite3.Connection
    files: Files | None
    """None for a database in memory."""

    async def close(self) -> None:
        """Close everything, the claim last."""
        self.data.close()
        await self.control.close()
        if self.files is not None:
            self.files.close()


class Database:
    """An open database: the data plane's batch, and the control plane's operations."""

    def __init__(
        self, path: str, handles: _Handles, instance_id: int, first_id: int, start: Start
    ) -> None:
        """Take over the handles, for the run ``instance_id``, whose first row gets ``first_id``."""
        audit_rows = start.audit_rows
        self.path = path
        """The path of a file, or MEMORY."""
        self.batch = Batch(handles.data, start.clock)
        self.ids = Ids(self.batch, instance_id, first_id)
        self.audit_log = AuditLog(self.batch, audit_rows)
        self._audit_rows = audit_rows
        self._handles = handles
        self.control_turn = anyio.Lock()
        """A lock to hold while the control plane's thread works and requests are served."""
        self._commit_turn = anyio.Lock()
        self._lost: Loss | None = None
        self._cannot_renew = ""
        """Why the last attempt to recreate a lost file failed; empty if none failed."""
        self._starved = False

    async def close(self) -> None:
        """Close the database without another write; see `stop`."""
        await self._handles.close()

    @property
    def _control(self) -> aiosqlite.Connection:
        return self._handles.control

    @property
    def is_file(self) -> bool:
        """True unless the database is in memory."""
        return self._handles.files is not None

    @property
    def log_is_long(self) -> bool:
        """True if a `checkpoint` is due."""
        return self._log_size() > WAL_LIMIT

    @property
    def log_is_very_long(self) -> bool:
        """True if the log is so long that a checkpoint may suspend requests for a moment."""
        return self._log_size() > 3 * WAL_LIMIT

    def _log_size(self) -> int:
        return 0 if self._handles.files is None else self._handles.files.log_size()

    @property
    def fault(self) -> str | None:
        """The current faults as a text for the administrator; None if there is none."""
        faults = []
        if self.batch.fault is not None:
            faults.append(self.batch.faults.in_words)
        if self._lost is not None:
            faults.append(f"{_LOST[self._lost]}{self._cannot_renew}")
        if self._starved:
            faults.append(_STARVED)
        return "; ".join(faults) or None

    def record_settings(self, settings: Mapping[str, str]) -> None:
        """Record the settings after a reload in the table ``setting``."""
        for name, value in settings.items():
            self.batch.execute_eventually(_CHANGE_SETTING, (value, name))
        self.batch.on_pending()

    async def commit(self) -> bool:
        """Commit the batch once no task holds the database still; see `Batch.commit`."""
        async with self._commit_turn:
            return self.batch.commit()

    @asynccontextmanager
    async def held_still(self) -> AsyncIterator[None]:
        """Block commits and operations of the control plane's thread while the context is open."""
        async with self.control_turn:
            if self.is_file:
                # A checkpoint whose caller was cancelled may still run on the thread. This
                # statement is executed after it. Commits are not blocked meanwhile.
                with suppress(sqlite3.Error):
                    await self._control.execute_fetchall("SELECT 1")
            async with self._commit_turn:
                yield

    def let_go(self) -> None:
        """Close the claim in a forked child, so that only the daemon holds the lock on the file."""
        if self._handles.files is not None:
            self._handles.files.close()

    async def checkpoint(self) -> None:
        """Copy committed pages from the write-ahead log into the database file, off the event loop.

        If all of them were copied, the next batch restarts the log and truncates it to half of
        WAL_LIMIT, at the cost of one sync of its header. Under steady load all pages are copied
        only if no batch is written for a moment.
        """
        try:
            await self._control.execute_fetchall("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            logger.warning("cannot copy the write-ahead log into the database now: %s", error)

    def look_at_files(self) -> bool:
        """Check the files and the size of the log, and log each change; return True after a loss.

        This costs a few calls of stat(2). Lost files are still used, because they are open.
        """
        if self._handles.files is None:
            return False
        starved = self._log_size() > (WAL_LIMIT if self._starved else STARVED_LOG)
        if starved != self._starved:
            self._starved = starved
            logger.warning(
                "the database %s: %s", self.path, _STARVED if starved else "its log is short again"
            )
        lost = self._handles.files.loss()
        if lost != self._lost:
            self._lost, self._cannot_renew = lost, ""
            logger.warning(
                "the database %s: %s", self.path, "it is back" if lost is None else _LOST[lost]
            )
        if lost == "replaced":
            self._handles.files.leave_to_another()
        return lost is not None

    async def renew(self) -> bool:
        """Recreate a lost file with the whole content of the database; return False if that fails.

        Requests are served meanwhile: the current batch is kept, and executed again in the new
        file. A file of another program under the name is not touched.

        A request to stop the daemon does not cancel this, because the new file must receive the
        data that is kept for the next run.
        """
        async with self.held_still():
            with anyio.CancelScope(shield=True):
                renewed = await self._renew()
        return renewed

    async def _renew(self) -> bool:
        # The file, or another one, may have been moved to the name while we waited.
        if not self.look_at_files() or self._lost == "replaced":
            return True
        try:
            fresh = await self._copied()
        except (OSError, sqlite3.Error, DatabaseError) as error:
            if not self._cannot_renew:
                self._cannot_renew = f", which fails ({error})"
                logger.warning("the database %s cannot be made anew: %s", self.path, error)
            return False
        old, self._handles = self._handles, fresh
        self.batch.go_on_with(fresh.data)
        with suppress(sqlite3.Error):
            await old.close()
        self._lost, self._cannot_renew = None, ""
        logger.warning("the database %s was made anew; nothing was lost", self.path)
        return True

    async def _copied(self) -> _Handles:
        """Write a copy of the committed state under the name of the lost file, and open it."""
        old = self._handles.files
        assert old is not None
        self.batch.commit()
        # Complete the old file, which may be kept under another name: its log will be deleted.
        await self.checkpoint()
        name, claim = await anyio.to_thread.run_sync(old.claim_successor)
        async with AsyncExitStack() as stack:
            stack.callback(os.close, claim)
            stack.callback(Path(name).unlink, missing_ok=True)
            await self._control.execute("VACUUM INTO ?", (name,))
            await anyio.to_thread.run_sync(os.fsync, claim)
            old.give_way_to(name)
            stack.callback(Path(old.path).unlink, missing_ok=True)
            files.check_companions(old.path)
            control = await aiosqlite.connect(old.path, isolation_level=None)
            stack.push_async_callback(control.close)
            await control.execute("PRAGMA journal_mode = WAL")
            await control.execute("PRAGMA synchronous = NORMAL")
            data = _open_data_plane(old.path)
            stack.pop_all()
        return _Handles(control, data, Files(old.path, claim))

    async def stop(self, now: float) -> None:
        """Record an orderly end of the run at ``now``, a stamp in seconds since the epoch.

        Cached connections are recorded as lost, because they end with the process.
        """
        for _ in range(_STOP_ATTEMPTS):
            if self.batch.commit():
                break
            await anyio.sleep(FAULT_RETRY_INTERVAL)
        else:
            logger.warning("cannot write the end of this run to the database: %s", self.fault)
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
            culprits = blamed(await _additions(self._control), str(error))
            logger.warning(
                "cannot record the end of this run in the database: %s",
                f"{culprits}: {error}" if culprits else error,
            )


@asynccontextmanager
async def open_database(path: str, start: Start) -> AsyncIterator[Database]:
    """Open a database (a file's path, or MEMORY); create, migrate or recover it as needed.

    Rows of connections, clients and descriptors of an earlier process are deleted; bindings that
    have not expired are kept. Raises DatabaseError with a sentence that says what to do.
    """
    file = files.followed(path)
    try:
        database = await _open(path, file, start)
    except _SetAsideError as corrupt:
        logger.warning("%s", corrupt)
        database = await _open(path, file, start)
    try:
        yield database
    finally:
        await database.close()


class _SetAsideError(DatabaseError):
    """The database was corrupt and was renamed, so that a new one can be created."""


async def _open(path: str, file: str, start: Start) -> Database:
    async with AsyncExitStack() as stack:
        claim = None
        if path == MEMORY:
            data = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            connecting = aiosqlite.Connection(lambda: data, 64)
        else:
            claim = files.claim(file)
            stack.callback(os.close, claim)
            files.check_companions(file)
            connecting = aiosqlite.connect(file, isolation_level=None)
        try:
            control = await connecting
            stack.push_async_callback(control.close)
            instance_id, first_id = await _prepare(path, control, start)
            if claim is None:
                _configure_data_plane(data)
            else:
                data = _open_data_plane(file)
        except (sqlite3.Error, CorruptError) as error:
            ours = claim is not None and files.is_ours(claim)
            problem = (
                _explain(path, error, ours=ours) if isinstance(error, sqlite3.Error) else error
            )
            if ours and start.set_aside and isinstance(problem, CorruptError):
                name = files.set_aside(file, start.clock.stamp())
                raise _SetAsideError(
                    f"{problem.damage}: it is kept as {name}, and we start with an empty one"
                ) from error
            raise problem from error
        stack.pop_all()
    handles = _Handles(control, data, None if claim is None else Files(file, claim))
    return Database(path, handles, instance_id, first_id, start)


async def _prepare(path: str, control: aiosqlite.Connection, start: Start) -> tuple[int, int]:
    """Check, migrate and recover a database; return the id of this run and its first free id."""
    known = migrations()
    version = await _number(control, "PRAGMA user_version")
    marked = await _number(control, "PRAGMA application_id") == APPLICATION_ID
    if not marked and await _number(control, "SELECT count(*) FROM sqlite_schema"):
        raise DatabaseError(f"{path} is a database of another program: choose another --database")
    async with control.execute("PRAGMA encoding") as cursor:
        encoding = await cursor.fetchone()
    if encoding is None or encoding[0] != "UTF-8":
        # Labels are arbitrary bytes, which SQLite would truncate to whole code units in UTF-16.
        raise DatabaseError(
            f"the database {path} is encoded in {encoding and encoding[0]}, not in UTF-8: "
            "move it away, or choose another --database"
        )
    if version > known[-1].version:
        raise DatabaseError(
            f"the database {path} was made by a newer version of scache: "
            "upgrade scache, or choose another --database"
        )
    async with control.execute("PRAGMA quick_check(1)") as cursor:
        verdict = await cursor.fetchone()
    if verdict is None or verdict[0] != "ok":
        raise _corrupt(path, verdict[0] if verdict else "no verdict")
    # Set the mark before WAL mode: it must be in the file itself, to be found if that is damaged.
    await control.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    if path != MEMORY:
        await control.execute("PRAGMA journal_mode = WAL")
    await control.execute("PRAGMA synchronous = NORMAL")
    try:
        await control.executescript(pending_script(version, known))
        run = await _recover(control, start)
    except sqlite3.Error as error:
        found = await _additions(control)
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CONSTRAINT)
        if found and code & 0xFF in _OF_A_STATEMENT:
            raise DatabaseError(
                f"the database {path} refuses what the daemon writes at its start, because of "
                f"{blamed(found, str(error))} ({error}): drop that, and start again"
            ) from error
        raise
    if found := await _additions(control):
        logger.warning(
            "the database %s has what scache did not make: %s; what that refuses will fail",
            path,
            blamed(found),
        )
    return run


async def _recover(control: aiosqlite.Connection, start: Start) -> tuple[int, int]:
    """Clean up after the last run, and begin a new one; return its id and its first free id."""
    clock = start.clock
    await control.execute("BEGIN IMMEDIATE")
    async with control.execute(LATEST_BOOT) as cursor:
        for boot, booted_at in await cursor.fetchall():
            if boot and boot == clock.boot:
                clock.offset = booted_at
    for operation in following(clock):
        await control.execute(*operation)
    now = clock.stamp()
    await _lose_live_rows(control, now, start.audit_rows, "the daemon did not stop orderly")
    await _expire_bindings(control, now, start.audit_rows)
    await _trim_events(control, start.audit_rows)
    if not start.audit_rows:
        # This counter tells `scache check` that the audit log has a gap.
        await control.execute(COUNT, (RUNS_NOT_RECORDED, 1))
    await control.execute(_SHORTEN_BINDINGS, (now + start.ttl_limit, now))
    first = await _number(control, _LAST_ID) + 1
    await control.execute(_FORGET_DESCRIPTORS)
    await control.execute(_FORGET_SETTINGS)
    await control.executemany(_RECORD_SETTING, start.settings.items())
    run = (now, start.version, os.getpid(), first + ID_RESERVE, clock.boot, clock.offset)
    async with control.execute(_START, run) as cursor:
        instance_id = cursor.lastrowid
    if await _number(control, _NOT_RECOVERED, (now, instance_id, os.getpid())):
        raise sqlite3.IntegrityError("RAISE(IGNORE)")
    await control.execute("COMMIT")
    assert instance_id is not None
    return instance_id, first


async def _additions(control: aiosqlite.Connection) -> list[Addition]:
    """Return the triggers and unique indexes that scache did not create."""
    async with control.execute(ADDITIONS) as cursor:
        return additions(await cursor.fetchall())


async def _lose_live_rows(
    control: aiosqlite.Connection, now: float, audit_rows: int, why: str
) -> None:
    """Record the loss of connections and clients that ended with their daemon process."""
    live = await _number(control, _COUNT_LIVE)
    lost = max(live, await _number(control, _COUNT_NOT_LEFT))
    if audit_rows:
        if lost > live:
            await control.execute(_RECORD_LOST_ON_THEIR_WAY, (now, why, lost - live))
        await control.execute(_RECORD_LOST, (now, why))
    await control.execute(COUNT, ("connections_lost", lost))
    await control.execute(_LOSE_CONNECTIONS)
    await control.execute(_LOSE_CLIENTS, (now,))


async def _expire_bindings(control: aiosqlite.Connection, now: float, audit_rows: int) -> None:
    """Delete and record bindings that expired before this run."""
    if audit_rows:
        await control.execute(_RECORD_EXPIRED_BINDINGS, (now,))
    async with control.execute(_EXPIRE_BINDINGS, (now,)) as cursor:
        expired = cursor.rowcount
    await control.execute(COUNT, ("bindings_expired", expired))


async def _trim_events(control: aiosqlite.Connection, audit_rows: int) -> None:
    if audit_rows:
        async with control.execute(TRIM, (audit_rows,)) as cursor:
            trimmed = cursor.rowcount
        if trimmed:
            await control.execute(COUNT, ("events_trimmed", trimmed))


def _open_data_plane(file: str) -> sqlite3.Connection:
    data = sqlite3.connect(file, isolation_level=None, timeout=0)
    try:
        _configure_data_plane(data)
    except BaseException:
        data.close()
        raise
    return data


def _configure_data_plane(data: sqlite3.Connection) -> None:
    data.text_factory = bytes
    data.execute("PRAGMA synchronous = NORMAL")
    # Debian's SQLite overwrites deleted rows by default: a tenth of the time of a save and a find.
    data.execute("PRAGMA secure_delete = OFF").fetchall()
    # The control plane makes the checkpoints, and a batch stays in memory until its commit.
    data.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
    data.execute("PRAGMA cache_spill = OFF")
    data.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT // 2}").fetchall()


async def _number(control: aiosqlite.Connection, sql: str, parameters: Parameters = ()) -> int:
    async with control.execute(sql, parameters) as cursor:
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


def _corrupt(path: str, detail: object) -> CorruptError:
    found = str(detail).removeprefix("*** in database main ***\n")
    return CorruptError(
        f"the database {path} is corrupt ({found})",
        "move it away and start again, or let --on-corrupt set-aside do that; "
        "counters, the audit trail and bindings are lost",
    )


def _explain(path: str, error: sqlite3.Error, *, ours: bool) -> DatabaseError:
    """Return a DatabaseError that explains an error of SQLite while the database was opened."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    match code:
        case sqlite3.SQLITE_NOTADB if not ours:
            problem = "is not a SQLite database: choose another --database"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return _corrupt(path, error)
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
