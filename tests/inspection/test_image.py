"""Images: private copies of a cache, made from files in any state."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scache.errors import DatabaseError, QueryError
from scache.inspection import image as module
from scache.inspection.image import Image, Result
from scache.store.files import APPLICATION_ID
from scache.store.migrations import migrations, pending_script
from tests.support.database_files import copy_without_log, make_empty
from tests.support.sample_database import ODD, filling

NAMES = ["cache.db", "odd ?#%41&mode=rw;'\"é\n.db", "%2f..%00", ":memory:", "file:x?mode=memory"]


ENDLESS = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n
"""


def rows(result: Result) -> list[tuple[object, ...]]:
    """Return the rows of a result."""
    return list(result.rows)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Make a database file with a connection for each odd label, closed by its daemon."""
    path = tmp_path / "cache.db"
    with filling(path) as cached:
        for number, label in enumerate(ODD.values()):
            cached.connection(number, label)
    return path


@pytest.fixture
def image(file: Path) -> Iterator[Image]:
    """Open an image of that file."""
    with Image.from_file(file) as image:
        yield image


def refusal(path: Path | str) -> str:
    """Return the sentence that refuses a file."""
    with pytest.raises(DatabaseError) as caught:
        Image.from_file(path)
    text = str(caught.value)
    assert text.startswith(f"the database {path} ")
    return text.removeprefix(f"the database {path} ")


class TestFiles:
    @pytest.mark.parametrize("name", NAMES)
    def test_image_of_file_with_any_name(self, file: Path, name: str) -> None:
        """No character of the name has a meaning for SQLite."""
        path = file.rename(file.with_name(name.replace("/", "_")))
        with Image.from_file(path) as image:
            assert rows(image.execute("SELECT count(*) FROM connection")) == [(len(ODD),)]

    def test_image_of_file_whose_name_is_not_utf_8(self, file: Path) -> None:
        """The name is passed on as bytes."""
        path = file.rename(file.with_name(os.fsdecode(b"\xff.db")))
        Image.from_file(path).close()

    def test_image_leaves_no_files(self, file: Path) -> None:
        """Reading a file that no daemon uses creates no log beside it."""
        before = file.read_bytes()
        Image.from_file(file).close()
        assert list(file.parent.iterdir()) == [file]
        assert file.read_bytes() == before

    def test_image_of_a_link_has_the_log_of_its_target(self, file: Path) -> None:
        """The log is beside the target, not beside the link."""
        link = file.parent / "elsewhere" / "link"
        link.parent.mkdir()
        link.symlink_to(file)
        with closing(sqlite3.connect(file)) as writer:
            writer.execute("DELETE FROM connection")
            writer.commit()
            with Image.from_file(link) as image:
                assert rows(image.execute("SELECT count(*) FROM connection")) == [(0,)]

    def test_image_of_file_in_use_has_committed_rows(self, file: Path) -> None:
        """Committed rows of the log are in the image; the image does not wait for a writer."""
        with closing(sqlite3.connect(file, isolation_level=None)) as writer:
            writer.execute("PRAGMA wal_autocheckpoint = 0")
            writer.execute("DELETE FROM connection WHERE id > 0")
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("DELETE FROM connection")
            with Image.from_file(file) as image:
                assert rows(image.execute("SELECT id FROM connection")) == [(0,)]
            writer.execute("COMMIT")

    def test_image_does_not_delay_a_checkpoint(self, file: Path) -> None:
        """While an image is queried, the whole log can be copied and restarted."""
        with closing(sqlite3.connect(file, isolation_level=None)) as writer:
            writer.execute("DELETE FROM connection WHERE id > 0")
            with Image.from_file(file) as image:
                result = image.execute("SELECT id FROM event UNION ALL SELECT id FROM connection")
                writer.execute("DELETE FROM connection")
                ((busy, _, _),) = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                assert not busy
                assert rows(result) == [(0,)]

    @pytest.mark.root
    def test_user_without_write_permission_can_read(self, file: Path) -> None:
        """The user cannot write to the directory; a daemon may or may not use the file."""
        file.chmod(0o644)
        for directory in file.parents[:-1]:
            directory.chmod(directory.stat().st_mode | 0o111)
        script = (
            "import os, urllib.parse; from scache.inspection import image;"
            "from scache.store import migrations;"
            "known = migrations.migrations(); image.migrations = lambda: known;"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534);"
            f"image = image.Image.from_file({str(file)!r});"
            "print(*next(image.execute('SELECT count(*) FROM connection').rows))"
        )
        command = [sys.executable, "-c", script]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (run.stdout, run.stderr) == (f"{len(ODD)}\n", "")
        with closing(sqlite3.connect(file, isolation_level=None)) as writer:
            writer.execute("DELETE FROM connection")
            run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (run.stdout, run.stderr) == ("0\n", "")

    def test_image_has_the_log_of_a_daemon_that_starts_meanwhile(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If a log appears during the read, the file is read again with the log."""
        connect = sqlite3.connect
        with closing(connect(file, isolation_level=None)) as writer:
            asked = []

            def connect_while_written(name: str, **options: Any) -> Any:  # noqa: ANN401 - sqlite3's
                asked.append(name.partition("?")[2])
                writer.execute("DELETE FROM connection")
                return connect(name, **options)

            monkeypatch.setattr(sqlite3, "connect", connect_while_written)
            with Image.from_file(file) as image:
                assert rows(image.execute("SELECT count(*) FROM connection")) == [(0,)]
        assert asked[:2] == ["mode=ro&immutable=1", "mode=ro"]


class TestRefusals:
    """Files that are no cache are refused with one sentence that names a remedy."""

    def test_missing_file_is_refused(self, tmp_path: Path) -> None:
        """The file is not created."""
        assert refusal(tmp_path / "no") == "does not exist: name the file of a daemon"
        assert not list(tmp_path.iterdir())

    def test_directory_is_refused(self, tmp_path: Path) -> None:
        """It is no regular file."""
        assert refusal(tmp_path) == "is no regular file: name the file of a daemon"

    def test_link_to_itself_is_refused(self, tmp_path: Path) -> None:
        """The sentence has the reason of the system."""
        link = tmp_path / "link"
        link.symlink_to(link)
        assert refusal(link).startswith("cannot be read: ")

    @pytest.mark.parametrize("content", [b"[scache]\nttl_limit = 5\n", b"x" * 5000])
    def test_text_file_is_refused(self, tmp_path: Path, content: bytes) -> None:
        """The file is not a SQLite database."""
        path = tmp_path / "text"
        path.write_bytes(content)
        assert refusal(path) == "is not a SQLite database: name the file of a daemon"

    @pytest.mark.parametrize("statement", ["VACUUM", "CREATE TABLE connection (id)"])
    def test_database_of_another_program_is_refused(self, tmp_path: Path, statement: str) -> None:
        """It has no mark of scache, but may have a table with the same name."""
        path = tmp_path / "other.db"
        with closing(sqlite3.connect(path)) as other:
            other.execute(statement)
        assert refusal(path) == "is of another program: name the file of a daemon"

    def test_empty_file_is_refused(self, tmp_path: Path) -> None:
        """SQLite accepts an empty file as a database, but it has no mark."""
        path = tmp_path / "empty"
        path.touch()
        assert "is empty: no daemon has used it yet" in refusal(path)

    def test_schema_of_a_newer_version_is_refused(self, file: Path) -> None:
        """Its tables may have another meaning."""
        with closing(sqlite3.connect(file)) as newer:
            newer.execute(f"PRAGMA user_version = {migrations()[-1].version + 1}")
        assert refusal(file) == "was made by a newer version of scache: upgrade this one"

    def test_schema_of_an_older_version_is_refused(self, tmp_path: Path) -> None:
        """Only a daemon migrates a database."""
        path = tmp_path / "old.db"
        with closing(sqlite3.connect(path)) as older:
            older.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            older.executescript(pending_script(0, migrations()[:1]))
        assert refusal(path) == (
            "was made by an older version of scache: restart its daemon with this version, or, if "
            "it is a copy, copy its write-ahead log (-wal) with it"
        )

    def test_copy_without_its_log_is_refused_as_incomplete(self, tmp_path: Path) -> None:
        """The tables of a new file are in the log until the first checkpoint."""
        path, copy = tmp_path / "cache.db", tmp_path / "copy.db"
        copy_without_log(path, copy)
        sentence = (
            "is incomplete without its write-ahead log, which has the tables: copy the file and "
            "the log (-wal) together, or copy with scache dump --output"
        )
        assert refusal(copy) == sentence
        with pytest.raises(DatabaseError) as caught:
            Image.from_bytes(copy.read_bytes())
        assert str(caught.value) == f"the image {sentence}"

    @pytest.mark.parametrize("version", [1, migrations()[-1].version])
    def test_file_without_the_tables_of_its_version_is_refused(
        self, version: int, tmp_path: Path
    ) -> None:
        """A copy of the header alone is of no older version."""
        path = tmp_path / "empty.db"
        make_empty(path, user_version=version)
        assert refusal(path) == (
            f"says that it is a scache database of version {version}, but it has no tables: name "
            "the file of a daemon"
        )

    @pytest.mark.parametrize("where", ["header", "tree", "end"])
    def test_corrupt_file_is_refused(self, file: Path, where: str) -> None:
        """The damage may be anywhere in the file."""
        data = bytearray(file.read_bytes())
        match where:
            case "header":
                data[100:108] = b"\xff" * 8
            case "tree":
                data[3 * 4096 : 3 * 4096 + 8] = b"\xff" * 8
            case _:
                del data[-5000:]
        file.write_bytes(data)
        assert refusal(file).startswith("is corrupt (")

    def test_locked_file_is_refused_after_a_timeout(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The image waits READ_TIMEOUT for the other program."""
        monkeypatch.setattr(module, "READ_TIMEOUT", 0.01)
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            other.execute("DELETE FROM connection")
            assert refusal(file) == "is locked by another program: try again when that is done"

    @pytest.mark.parametrize("allowed", [False, True])
    def test_unreadable_file_is_refused(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
    ) -> None:
        """The sentence says which users can read it, if access(2) or SQLite reports the error."""
        if allowed:
            unreachable = partial(sqlite3.connect, "/nowhere/at/all")
            monkeypatch.setattr(sqlite3, "connect", lambda *_, **_options: unreachable())
        else:
            monkeypatch.setattr(os, "access", lambda *_: False)
        assert refusal(file).endswith(": ask as the user of the daemon, or as root")

    @pytest.mark.parametrize("data", [b"", b"nonsense" * 1000])
    def test_bytes_that_are_no_database_are_refused(self, data: bytes) -> None:
        """The sentence begins with the name that the caller gave."""
        with pytest.raises(DatabaseError, match="the answer is "):
            Image.from_bytes(data, "the answer")


class TestQueries:
    def test_text_is_returned_as_bytes(self, image: Image) -> None:
        """Text has the bytes that were saved; numbers and NULL keep their types."""
        found = rows(image.execute("SELECT endpoint FROM connection ORDER BY id"))
        assert found == [(label,) for label in ODD.values()]
        assert rows(image.execute("SELECT 1, 1.5, NULL, 'a', x'ff'")) == [
            (1, 1.5, None, b"a", b"\xff")
        ]

    def test_parameters_have_names(self, image: Image) -> None:
        """A statement refers to its parameters by name."""
        result = image.execute("SELECT :number + 1 AS more, :text", {"number": 1, "text": "é"})
        assert result.columns == ["more", ":text"]
        assert rows(result) == [(2, "é".encode())]

    def test_changes_stay_in_the_image(self, image: Image, file: Path) -> None:
        """A row that a statement deletes is still in the file."""
        result = image.execute("DELETE FROM connection")
        assert (result.columns, result.changed) == ([], len(ODD))
        image.execute("DROP TABLE event")
        with Image.from_file(file) as another:
            assert rows(another.execute("SELECT count(*) FROM connection")) == [(len(ODD),)]

    @pytest.mark.parametrize("sql", ["ATTACH '{}' AS o", "VACUUM INTO '{}'", "ATTACH :f AS o"])
    def test_statement_cannot_reach_a_file(self, image: Image, tmp_path: Path, sql: str) -> None:
        """A statement that would open another database is refused; the next statement succeeds."""
        target = tmp_path / "other.db"
        with pytest.raises(QueryError, match="ATTACH and VACUUM are not allowed"):
            image.execute(sql.format(target), {"f": str(target)})
        assert not target.exists()
        with pytest.raises(QueryError, match="syntax error"):
            image.execute("SELEC")

    @pytest.mark.parametrize(
        "sql",
        [
            "SELECT",
            "SELECT * FROM absent",
            "SELECT :absent",
            "SELECT ?",
            "SELECT 1; SELECT 2",
            "SELECT '\udcff'",
            "SELECT '\0'",
            "SELECT load_extension('x')",
            "INSERT INTO setting VALUES (NULL, 1)",
        ],
    )
    def test_failed_statement_is_a_query_error(self, image: Image, sql: str) -> None:
        """The error has the reason, and the image does not change."""
        with pytest.raises(QueryError):
            image.execute(sql)
        assert rows(image.execute("SELECT count(*) FROM connection")) == [(len(ODD),)]

    def test_error_in_a_later_row_is_a_query_error(self, image: Image) -> None:
        """The first rows are returned before."""
        sql = "SELECT abs(column1) FROM (VALUES (1), (-9223372036854775808))"
        result = image.execute(sql)
        with pytest.raises(QueryError, match="overflow"):
            rows(result)

    def test_too_large_integer_is_a_query_error(self, image: Image) -> None:
        """SQLite cannot store the parameter."""
        with pytest.raises(QueryError):
            image.execute("SELECT :n", {"n": 2**63})

    def test_stop_if_interrupts_a_statement(self, image: Image) -> None:
        """An endless statement is interrupted, and the next statement succeeds."""
        answers = iter([False, False, True])
        image.stop_if(lambda: next(answers, False))
        with pytest.raises(KeyboardInterrupt):
            image.execute(ENDLESS)
        assert next(answers, None) is None
        assert rows(image.execute("SELECT 1")) == [(1,)]

    def test_stop_if_interrupts_the_reading_of_rows(self, image: Image) -> None:
        """The function is called for each row, also if the row takes few steps of SQLite."""
        stop = False
        image.stop_if(lambda: stop)
        result = image.execute("SELECT column1 FROM (VALUES (1), (2), (3))")
        assert next(result.rows) == (1,)
        stop = True
        with pytest.raises(KeyboardInterrupt):
            next(result.rows)

    def test_rows_can_be_closed_early(self, file: Path) -> None:
        """The generator can be closed before its last row, also after the image is closed."""
        with Image.from_file(file) as image:
            result = image.execute("SELECT endpoint FROM connection")
            next(result.rows)
        assert isinstance(result.rows, Generator)
        result.rows.close()

    def test_relations_are_tables_and_then_views(self, image: Image) -> None:
        """Each has its columns; a view of a table that was dropped has none."""
        relations = {relation.name: relation for relation in image.relations()}
        assert next(iter(relations)) == "instance"
        assert relations["counter"].columns == ["name", "value"]
        assert relations["lifetime"].is_view
        assert not relations["connection"].is_view
        image.execute("DROP TABLE binding")
        relations = {relation.name: relation for relation in image.relations()}
        assert "binding" not in relations
        assert relations["live_binding"].columns == []

    def test_all_of_quotes_the_name_of_the_table(self, image: Image) -> None:
        """A name may have any characters."""
        image.execute('CREATE TABLE "a ""b""" (x)')
        assert rows(image.all_of('a "b"')) == []


class TestFilesThatAreWritten:
    def test_dump_is_a_complete_database(self, image: Image, tmp_path: Path) -> None:
        """It has no log and the mark of scache, and only its owner can read it."""
        path = tmp_path / "dump.db"
        image.write_to(path)
        with closing(sqlite3.connect(path)) as other:
            other.text_factory = bytes
            assert other.execute("PRAGMA journal_mode").fetchall() == [(b"delete",)]
            assert other.execute("PRAGMA integrity_check").fetchall() == [(b"ok",)]
            found = other.execute("SELECT endpoint FROM connection ORDER BY id").fetchall()
        assert found == [(label,) for label in ODD.values()]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with Image.from_file(path) as again:
            assert [each.name for each in again.relations()] == [
                each.name for each in image.relations()
            ]

    def test_dump_replaces_an_earlier_dump(self, image: Image, tmp_path: Path) -> None:
        """Writing again to the same name replaces the dump, and leaves no other file."""
        path = tmp_path / "dump.db"
        image.write_to(path)
        image.execute("DELETE FROM connection")
        image.write_to(path)
        with Image.from_file(path) as again:
            assert rows(again.all_of("connection")) == []
        assert {each.name for each in tmp_path.iterdir()} == {"cache.db", "dump.db"}

    @pytest.mark.parametrize("what", ["text", "other", "daemon", "directory", "device"])
    def test_dump_replaces_no_other_file(
        self, image: Image, tmp_path: Path, file: Path, what: str
    ) -> None:
        """A text, a database of another program and that of a daemon stay as they are."""
        path = tmp_path / what
        match what:
            case "text":
                path.write_text("SQLite format 3 is a good thing")
            case "other":
                with closing(sqlite3.connect(path)) as other:
                    other.execute("CREATE TABLE t (x)")
            case "daemon":
                path = file
            case "directory":
                path.mkdir()
            case _:
                path = Path(os.devnull)
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(DatabaseError, match="choose another name"):
            image.write_to(path)
        assert not path.is_file() or path.read_bytes() == before

    def test_dump_that_another_program_writes_is_not_replaced(
        self, image: Image, tmp_path: Path
    ) -> None:
        """A file with a journal beside it is in use."""
        path = tmp_path / "dump.db"
        image.write_to(path)
        Path(f"{path}-journal").touch()
        with pytest.raises(DatabaseError, match="choose another name"):
            image.write_to(path)

    def test_dump_does_not_create_directories(self, image: Image, tmp_path: Path) -> None:
        """The error has the reason of the system."""
        with pytest.raises(DatabaseError, match=r"cannot write .*: No such file or directory"):
            image.write_to(tmp_path / "no" / "dump.db")
