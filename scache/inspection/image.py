"""A private copy of the whole cache in memory, for queries.

A query on an image delays neither the daemon nor its database, and changes only the image.
"""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from scache.errors import DatabaseError, QueryError, reason_of
from scache.store.files import APPLICATION_ID, check_companions, exclusive_holder
from scache.store.migrations import migrations
from scache.store.names import check_name
from scache.store.replacing import replace
from scache.store.serialized import FORMAT_VERSIONS, ROLLBACK_JOURNAL, load
from scache.store.sqlite_errors import cannot_read, corrupt_to_read, primary_code
from scache.unix.paths import check_ours, followed

Value = int | float | bytes | None
"""A value of a result. Text and blobs are their exact bytes."""

READ_TIMEOUT = 5.0
"""Seconds to wait for a database file that another program keeps locked."""

INTERRUPT_STEPS = 10_000
"""Instructions of SQLite's virtual machine between two checks by `Image.stop_if`: about 1 ms."""

_MAGIC = b"SQLite format 3\0"
_APPLICATION_ID = slice(68, 72)
_HEADER_SIZE = 100

_RELATIONS = """
    SELECT name, type FROM sqlite_schema
    WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
    ORDER BY type, rowid
"""
_SCHEMA = "SELECT sql FROM sqlite_schema WHERE name = CAST(:name AS TEXT)"
_COLUMNS = "SELECT name FROM pragma_table_info(CAST(:name AS TEXT))"

_WITHOUT_VALUE = re.compile(r"binding (?:parameter )?[:@$](\w+)")
"""The error of sqlite3 for a named parameter without a value, in Python 3.11 to 3.13."""

_WITHOUT_NAME = re.compile(r"Binding \d+ has no name")
"""The error of sqlite3 for a parameter that is a question mark."""

_NO_ATTACH = (
    "ATTACH and VACUUM are not allowed: a statement works on a private copy of the cache "
    "(scache dump --output writes one to a file)"
)


class Result(NamedTuple):
    """The result of a statement."""

    columns: list[str]
    """Empty if the statement returns no rows."""
    rows: Iterator[tuple[Value, ...]]
    """Read them once, before the next statement. Raises QueryError if reading a row fails."""
    changed: int
    """Number of rows inserted, updated or deleted; -1 for other statements."""


class Relation(NamedTuple):
    """A table or a view."""

    name: str
    """Bytes that are not UTF-8 are surrogates (surrogateescape)."""
    is_view: bool
    columns: list[str]
    """Empty for a view of a table that does not exist."""


class Image:
    """A database in memory with the content of the cache at one moment.

    It can execute any SQL, which may change the image but cannot reach a file or another database.
    It is a context manager that closes the image.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Take over a connection to a database in memory."""
        self._connection = connection
        self._refusal = ""
        self._asked_to_stop: Callable[[], bool] | None = None
        connection.text_factory = bytes
        connection.set_authorizer(self._authorize)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def from_bytes(cls, data: bytes, what: str = "the image") -> Self:
        """Create an image from the bytes of a database file.

        Raises DatabaseError, which names them ``what``, if they are not a database of scache.
        """
        try:
            connection = load(data)
        except sqlite3.Error as error:
            raise cannot_read(what, error) from error
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            _check(connection, what)
            return cls(connection)
        except sqlite3.Error as error:
            connection.close()
            raise cannot_read(what, error) from error
        except BaseException:
            connection.close()
            raise

    @classmethod
    def from_file(cls, path: str | Path, *, sound: bool = True) -> Self:
        """Create an image from a database file, which a daemon may be using.

        The file is read in one short transaction, which blocks no writer, and is closed before
        this returns. Raises DatabaseError, also for a corrupt file if ``sound`` is true.
        """
        what = f"the database {path}"
        file = _readable(Path(path), what)
        check_name(file, what)
        try:
            data = _copy(file, what)
        except sqlite3.Error as error:
            raise cannot_read(what, error) from error
        image = cls.from_bytes(data, what)
        try:
            if sound:
                image.check(what)
        except BaseException:
            image.close()
            raise
        return image

    def check(self, what: str = "the image") -> None:
        """Raise DatabaseError, which names the image ``what``, if SQLite finds it corrupt."""
        try:
            ((verdict,),) = self._connection.execute("PRAGMA quick_check(1)")
        except sqlite3.Error as error:
            raise cannot_read(what, error) from error
        if verdict != b"ok":
            raise corrupt_to_read(what, verdict.decode(errors="replace"))

    def close(self) -> None:
        """Close the image and free its memory."""
        self._connection.close()

    def execute(self, sql: str, parameters: Mapping[str, Value | str] | None = None) -> Result:
        """Execute one statement with named parameters. Raises QueryError."""
        self._refusal = ""
        cursor = self._connection.cursor()
        with self._faults_explained():
            cursor.execute(sql, parameters or {})
        columns = [column[0] for column in cursor.description or ()]
        return Result(columns, self._rest(cursor), cursor.rowcount)

    def define(self, name: str, function: Callable[[Any], Value | str]) -> None:
        """Define an SQL function of one argument, whose result depends on the argument only.

        A statement must cast text to BLOB in the call, because the text may not be valid UTF-8.
        """
        self._connection.create_function(name, 1, function, deterministic=True)

    def stop_if(self, asked: Callable[[], bool]) -> None:
        """Raise KeyboardInterrupt in statements, and in reading rows, once ``asked`` returns true.

        ``asked`` is called every `INTERRUPT_STEPS` instructions and at each row.
        """
        self._asked_to_stop = asked
        self._connection.set_progress_handler(asked, INTERRUPT_STEPS)

    def relations(self) -> list[Relation]:
        """Return the tables and then the views, each in the order of creation."""
        found = []
        for name, kind in list(self.execute(_RELATIONS).rows):
            assert isinstance(name, bytes)
            columns = []
            with suppress(QueryError):
                for (column,) in self.execute(_COLUMNS, {"name": name}).rows:
                    assert isinstance(column, bytes)
                    columns.append(_name(column))
            found.append(Relation(_name(name), kind == b"view", columns))
        return found

    def schema_of(self, relation: str) -> str:
        """Return the SQL that created a table or view."""
        ((sql,),) = self.execute(_SCHEMA, {"name": relation.encode(errors="surrogateescape")}).rows
        assert isinstance(sql, bytes)
        return sql.decode(errors="backslashreplace")

    def all_of(self, relation: str, limit: int = -1) -> Result:
        """Return the rows of a table or view, at most ``limit`` if it is not negative.

        Raises QueryError, also if the name is not UTF-8.
        """
        return self.execute(f"SELECT * FROM {_quoted(relation)} LIMIT {limit}")

    def count(self, relation: str) -> int:
        """Return the number of rows of a table or view. Raises the exceptions of `all_of`."""
        ((number,),) = self.execute(f"SELECT count(*) FROM {_quoted(relation)}").rows
        assert isinstance(number, int)
        return number

    def write_to(self, path: Path) -> None:
        """Write the image to a database file that only its owner can read.

        The file is written atomically. An existing file is replaced if it is an image that this
        method wrote. Raises DatabaseError, also for any other existing file.
        """
        try:
            _check_replaceable(followed(str(path)))
            replace(path, self._connection.serialize())
        except OSError as error:
            raise DatabaseError(f"cannot write {path}: {reason_of(error)}") from error

    def _authorize(self, action: int, *_: object) -> int:
        # VACUUM attaches its target or a temporary database, so it is refused as well.
        if action == sqlite3.SQLITE_ATTACH:
            self._refusal = _NO_ATTACH
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    def _rest(self, cursor: sqlite3.Cursor) -> Iterator[tuple[Value, ...]]:
        with self._faults_explained():
            # Not "yield from": it closes an abandoned cursor, perhaps after the image is closed.
            for row in cursor:
                if self._asked_to_stop is not None and self._asked_to_stop():
                    raise KeyboardInterrupt
                yield row

    @contextmanager
    def _faults_explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            match primary_code(error):
                case sqlite3.SQLITE_INTERRUPT:
                    raise KeyboardInterrupt from None
                case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                    raise cannot_read("the image", error) from error
            raise QueryError(self._refusal or _sentence(error)) from error


def _sentence(error: Exception) -> str:
    """Return the error message for a failed statement, with a remedy if scache knows one."""
    text = str(error)
    if isinstance(error, UnicodeEncodeError):
        return "the statement is not UTF-8: write such bytes as CAST(x'ff' AS TEXT)"
    if isinstance(error, sqlite3.ProgrammingError):
        if missing := _WITHOUT_VALUE.search(text):
            return f"the parameter {missing[1]} has no value: add -p {missing[1]}=..."
        if _WITHOUT_NAME.match(text):
            return "a parameter needs a name: write :name instead of ?, and add -p name=..."
    return text


def _quoted(relation: str) -> str:
    """Return a name of a table or view in the form of SQL."""
    try:
        relation.encode()
    except UnicodeEncodeError:
        raise QueryError(
            f"the name {relation} is not UTF-8 and cannot be asked for: name others"
        ) from None
    return '"{}"'.format(relation.replace('"', '""'))


def _name(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


def _readable(path: Path, what: str) -> Path:
    """Resolve links and return the file, because SQLite looks for the log beside the target."""
    try:
        file = Path(os.path.abspath(followed(str(path))))  # noqa: PTH100 - which has no links
        status = file.lstat()
        if stat.S_ISREG(status.st_mode):
            check_ours(str(file), status, status.st_uid)
    except FileNotFoundError:
        raise DatabaseError(f"{what} does not exist: name the file of a daemon") from None
    except OSError as error:
        raise DatabaseError(f"{what} cannot be read: {reason_of(error)}") from None
    if not stat.S_ISREG(status.st_mode):
        raise DatabaseError(f"{what} is no regular file: name the file of a daemon")
    if not status.st_size and not _has_log(file):
        raise DatabaseError(f"{what} is empty: no daemon has used it yet")
    if not os.access(file, os.R_OK):
        raise DatabaseError(
            f"{what} cannot be read, permission denied: ask as the user of the daemon, or as root"
        )
    check_companions(str(file), status.st_uid)
    return file


def _copy(file: Path, what: str) -> bytes:
    # Without a log the file is read as immutable. An ordinary open would create a log that belongs
    # to this user and that the daemon's user may not be able to write. The copy is consistent if
    # there is still no log afterwards, because a daemon creates the log before its first write.
    if not _has_log(file):
        with suppress(sqlite3.Error):
            data = _read(file, "mode=ro&immutable=1", what)
            if not _has_log(file):
                check_name(file, what)
                return data
    return _read(file, "mode=ro", what)


def _has_log(file: Path) -> bool:
    return any(Path(f"{file}-{suffix}").exists() for suffix in ("wal", "journal"))


def _read(file: Path, options: str, what: str) -> bytes:
    uri = f"{file.as_uri()}?{options}"
    with closing(
        sqlite3.connect(uri, uri=True, isolation_level=None, timeout=READ_TIMEOUT)
    ) as connection:
        connection.execute("BEGIN")
        _check(connection, what)
        return connection.serialize()


def _check(connection: sqlite3.Connection, what: str) -> None:
    """Raise DatabaseError unless this is a database of scache with the current schema version."""
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()  # raises if it is damaged
    ((application_id,),) = connection.execute("PRAGMA application_id")
    ((version,),) = connection.execute("PRAGMA user_version")
    newest = migrations()[-1].version
    if application_id != APPLICATION_ID:
        raise DatabaseError(f"{what} is of another program: name the file of a daemon")
    ((encoding,),) = connection.execute("PRAGMA encoding")
    if encoding not in ("UTF-8", b"UTF-8"):
        raise DatabaseError(f"{what} is not encoded in UTF-8: no daemon can use it")
    if version > newest:
        raise DatabaseError(f"{what} was made by a newer version of scache: upgrade this one")
    ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_schema WHERE type = 'table'")
    if not tables and not version:
        # The daemon marks a new file before the log exists, and makes the tables in the log.
        raise DatabaseError(
            f"{what} is incomplete without its write-ahead log, which has the tables: copy the "
            "file and the log (-wal) together, or copy with scache dump --output"
        )
    if not tables:
        raise DatabaseError(
            f"{what} says that it is a scache database of version {version}, but it has no "
            "tables: name the file of a daemon"
        )
    if version < newest:
        raise DatabaseError(
            f"{what} was made by an older version of scache: restart its daemon with this "
            "version, or, if it is a copy, copy its write-ahead log (-wal) with it"
        )


def _check_replaceable(path: str) -> None:
    """Raise DatabaseError if the file exists and is not an image of scache, or is in use."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DatabaseError(f"{path} is no regular file: choose another name")
        header = os.pread(descriptor, _HEADER_SIZE, 0)
    finally:
        os.close(descriptor)
    # The file of a daemon is in WAL mode, unlike an image.
    if (
        not header.startswith(_MAGIC)
        or header[_APPLICATION_ID] != APPLICATION_ID.to_bytes(4, "big")
        or header[FORMAT_VERSIONS] != ROLLBACK_JOURNAL
        or _has_log(Path(path))
    ):
        raise DatabaseError(f"{path} exists and is no dump of scache: choose another name")
    if other := exclusive_holder(path):
        use = "is in use by a daemon" if other.is_daemon else f"is locked by {other}"
        raise DatabaseError(f"{path} {use}: choose another name")
