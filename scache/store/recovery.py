"""The start and the end of a run in a database: check, migrate, recover, record.

A daemon that crashed leaves rows of its connections and clients. The next run deletes them, and
records the loss.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

import aiosqlite

from scache.clock import Clock
from scache.errors import DatabaseError
from scache.store.batch import COUNT, Parameters
from scache.store.event_writer import TRIM
from scache.store.files import APPLICATION_ID
from scache.store.ids import ID_RESERVE, Ids
from scache.store.migrations import migrations, pending_script
from scache.store.schema import ADDITIONS, TABLES, Addition, additions, blamed, mismatch
from scache.store.sqlite_errors import corrupt_at_start, primary_code
from scache.store.steps import LATEST_BOOT, following
from scache.vocabulary import RUNS_NOT_RECORDED

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
# A path may have bytes that are not UTF-8, which a parameter of type str cannot have.
_RECORD_SETTING = "INSERT INTO setting (name, value) VALUES (?, CAST(? AS TEXT))"
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

_OF_A_STATEMENT = (sqlite3.SQLITE_OK, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_ERROR)
"""Error codes of a statement that a trigger or unique index refuses, or whose trigger is broken.
SQLITE_OK is that of a write that a trigger ignored, for which SQLite reports no error."""

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


async def prepare(path: str, control: aiosqlite.Connection, start: Start) -> tuple[int, int]:
    """Check, migrate and recover a database; return the id of this run and its first free id."""
    known = migrations()
    version = await _number(control, "PRAGMA user_version")
    mark = await _number(control, "PRAGMA application_id")
    filled = version or mark or await _number(control, "SELECT count(*) FROM sqlite_schema")
    if filled and mark != APPLICATION_ID:
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
        raise corrupt_at_start(path, verdict[0] if verdict else "no verdict")
    if flaw := mismatch(version, await control.execute_fetchall(TABLES)):
        raise DatabaseError(
            f"the database {path} says that it is a scache database of version {version}, but it "
            f"{flaw}: move it away, or choose another --database"
        )
    # Set the mark before WAL mode: it must be in the file itself, to be found if that is damaged.
    await control.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    await control.execute("PRAGMA journal_mode = WAL")
    await control.execute("PRAGMA synchronous = NORMAL")
    try:
        await control.executescript(pending_script(version, known))
        run = await _recover(control, start)
    except sqlite3.Error as error:
        found = await additions_to(control)
        if found and primary_code(error) in _OF_A_STATEMENT:
            raise DatabaseError(
                f"the database {path} refuses what the daemon writes at its start, because of "
                f"{blamed(found, str(error))} ({error}): drop that, and start again"
            ) from error
        raise
    if found := await additions_to(control):
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
    rows = [(name, os.fsencode(value)) for name, value in start.settings.items()]
    await control.executemany(_RECORD_SETTING, rows)
    run = (now, start.version, os.getpid(), first + ID_RESERVE, clock.boot, clock.offset)
    async with control.execute(_START, run) as cursor:
        instance_id = cursor.lastrowid
    if await _number(control, _NOT_RECOVERED, (now, instance_id, os.getpid())):
        raise sqlite3.IntegrityError("RAISE(IGNORE)")
    await control.execute("COMMIT")
    assert instance_id is not None
    return instance_id, first


async def end_run(control: aiosqlite.Connection, ids: Ids, now: float, audit_rows: int) -> None:
    """Record the orderly end of a run, whose cached connections are lost."""
    await control.execute("BEGIN IMMEDIATE")
    await _lose_live_rows(control, now, audit_rows, "the daemon stopped")
    await _trim_events(control, audit_rows)
    await control.execute(_STOP, (now, ids.last, ids.instance_id))
    await control.execute("COMMIT")


async def additions_to(control: aiosqlite.Connection) -> list[Addition]:
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


async def _number(control: aiosqlite.Connection, sql: str, parameters: Parameters = ()) -> int:
    async with control.execute(sql, parameters) as cursor:
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])
