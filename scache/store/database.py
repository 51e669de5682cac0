"""The control plane's side of a database: open it, hold it still, recreate lost files, close it.

Operations that may wait for a disk run on aiosqlite's thread, not on the event loop.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import aiosqlite
import anyio
import anyio.to_thread

from scache.errors import CorruptError, DatabaseError, ResourceError, reason_of
from scache.store import files
from scache.store.audit import AuditLog
from scache.store.batch import FAULT_RETRY_INTERVAL, Batch
from scache.store.checkpoint import STARVED, WriteAheadLog, checkpoint, limit_log
from scache.store.counters import Counters
from scache.store.files import Files, Loss
from scache.store.ids import Ids
from scache.store.recovery import Start, additions_to, end_run, prepare
from scache.store.schema import blamed
from scache.store.sqlite_errors import cannot_start
from scache.unix.process import thread_needed

MEMORY = ":memory:"

_STOP_ATTEMPTS = 5
"""Attempts to make the last commit of a run, FAULT_RETRY_INTERVAL apart."""

_CHANGE_SETTING = "UPDATE setting SET value = CAST(? AS TEXT) WHERE name = ?"

_LOST: Mapping[Loss, str] = {
    "deleted": "its file was deleted; what is cached stays, and the file is made anew",
    "replaced": "another file was put in its place, which is left alone; what is cached stays, "
    "and nothing of it lasts until that file is moved away, or the daemon is restarted",
    "log": "its write-ahead log was deleted; what is cached stays, and the file is made anew",
}

logger = logging.getLogger(__name__)


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
        self.counters = Counters(self.batch)
        self.wal = WriteAheadLog(None if handles.files is None else handles.files.path)
        self.audit_rows = audit_rows
        """Most rows of the audit log; 0 if nothing is recorded."""
        self._handles = handles
        self.control_lock = anyio.Lock()
        """A lock to hold while the control plane's thread works and requests are served."""
        self._commit_lock = anyio.Lock()
        self._lost: Loss | None = None
        self._cannot_renew = ""
        """Why the last attempt to recreate a lost file failed; empty if none failed."""
        self.sizes: dict[str, int] = {}
        """Bytes of the database file and its log at the last look; empty for one in memory."""
        self._measure()

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
    def fault(self) -> str | None:
        """The current faults as a text for the administrator; None if there is none."""
        faults = []
        if self.batch.fault is not None:
            faults.append(self.batch.faults.in_words)
        if self._lost is not None:
            faults.append(f"{_LOST[self._lost]}{self._cannot_renew}")
        if self.wal.starved:
            faults.append(STARVED)
        return "; ".join(faults) or None

    def record_settings(self, settings: Mapping[str, str]) -> None:
        """Record the settings after a reload in the table ``setting``."""
        for name, value in settings.items():
            self.batch.execute_eventually(_CHANGE_SETTING, (os.fsencode(value), name))
        self.batch.on_pending()

    async def commit(self) -> bool:
        """Commit the batch once no task holds the database still; see `Batch.commit`."""
        async with self._commit_lock:
            return self.batch.commit()

    @asynccontextmanager
    async def held_still(self) -> AsyncIterator[None]:
        """Block commits and operations of the control plane's thread while the context is open."""
        async with self.control_lock:
            if self.is_file:
                # A checkpoint whose caller was cancelled may still run on the thread. This
                # statement is executed after it. Commits are not blocked meanwhile.
                with suppress(sqlite3.Error):
                    await self._control.execute_fetchall("SELECT 1")
            async with self._commit_lock:
                yield

    def let_go(self) -> None:
        """Close the claim in a forked child, so that only the daemon holds the lock on the file."""
        if self._handles.files is not None:
            self._handles.files.close()

    async def checkpoint(self) -> None:
        """Copy committed pages from the log into the database file; see `checkpoint.checkpoint`."""
        await checkpoint(self._control)

    def look_at_files(self) -> bool:
        """Check the files and the size of the log, and log each change; return True after a loss.

        This costs a few calls of stat(2). Lost files are still used, because they are open.
        """
        if self._handles.files is None:
            return False
        self.wal.look(self.path)
        self._measure()
        lost = self._handles.files.loss()
        if lost != self._lost:
            self._lost, self._cannot_renew = lost, ""
            logger.warning(
                "the database %s: %s", self.path, "it is back" if lost is None else _LOST[lost]
            )
        if lost == "replaced":
            self._handles.files.leave_to_another()
        return lost is not None

    def _measure(self) -> None:
        if self._handles.files is not None:
            self.sizes = {"database": self._handles.files.size(), "log": self.wal.size}

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
            with thread_needed():
                fresh = await self._copied()
        except (OSError, sqlite3.Error, DatabaseError, ResourceError) as error:
            if not self._cannot_renew:
                self._cannot_renew = f", which fails ({reason_of(error)})"
                logger.warning(
                    "the database %s cannot be made anew: %s", self.path, reason_of(error)
                )
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
            await self._control.execute("VACUUM INTO CAST(? AS TEXT)", (os.fsencode(name),))
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
            await end_run(self._control, self.ids, now, self.audit_rows)
            if self.is_file:
                await self._control.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            culprits = blamed(await additions_to(self._control), str(error))
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
            # A database in memory belongs to one connection, so both planes share it.
            connecting = aiosqlite.connect(path, factory=lambda *_, **_options: data)
        else:
            claim = files.claim(file)
            stack.callback(os.close, claim)
            files.check_companions(file)
            connecting = aiosqlite.connect(file, isolation_level=None)
        try:
            control = await connecting
            stack.push_async_callback(control.close)
            instance_id, first_id = await prepare(path, control, start)
            if claim is None:
                _configure_data_plane(data)
            else:
                data = _open_data_plane(file)
        except (sqlite3.Error, CorruptError) as error:
            ours = claim is not None and files.is_ours(claim)
            problem = (
                cannot_start(path, error, ours=ours) if isinstance(error, sqlite3.Error) else error
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
    # A batch stays in memory until its commit.
    data.execute("PRAGMA cache_spill = OFF")
    limit_log(data)
