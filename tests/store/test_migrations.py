"""The schema: its migrations, and databases that earlier versions made."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from scache.store import migrations
from scache.store.database import MEMORY
from scache.store.files import APPLICATION_ID
from scache.store.live_rows import LiveRows
from scache.store.schema import SCHEMA, ours
from tests.support.sample_database import filling
from tests.support.store_fixture import NOW, Opened, connection, read


class TestMigrations:
    def test_new_database_has_the_newest_version_and_the_mark(self, opened: Opened) -> None:
        """The mark is the application id of scache."""
        assert opened.rows("PRAGMA user_version") == [(migrations.migrations()[-1].version,)]
        assert opened.rows("PRAGMA application_id") == [(APPLICATION_ID,)]

    def test_new_database_has_the_public_tables_and_columns(self, opened: Opened) -> None:
        """These names are a public interface."""
        for table, columns in {
            "connection": "id endpoint properties saved_at expires_at client_id",
            "binding": "id destination endpoint properties saved_at expires_at client_id",
            "client": "id pid uid gid connected_at disconnected_at",
            "instance": "id started_at stopped_at version",
            "counter": "name value",
        }.items():
            found = {
                str(name, "ascii") for _, name, *_ in opened.rows(f"PRAGMA table_info({table})")
            }
            assert set(columns.split()) <= found

    def test_opening_again_changes_no_schema(self, file: Path) -> None:
        """An up-to-date database is not migrated again."""
        schemas = []
        for _ in range(2):
            with Opened(file) as opened:
                schemas.append(opened.rows("PRAGMA schema_version"))
        assert schemas[0] == schemas[1]

    def test_migration_and_its_version_share_one_transaction(self) -> None:
        """A migration that fails leaves neither its tables nor its version."""
        known = [
            migrations.Migration(1, "CREATE TABLE one (x);"),
            migrations.Migration(2, "CREATE TABLE two (x); CREATE TABLE one (x);"),
        ]
        with closing(sqlite3.connect(MEMORY, isolation_level=None)) as connection:
            with pytest.raises(sqlite3.OperationalError):
                connection.executescript(migrations.pending_script(0, known))
            connection.rollback()
            assert connection.execute("PRAGMA user_version").fetchone() == (1,)
            tables = connection.execute("SELECT name FROM sqlite_schema").fetchall()
        assert tables == [("one",)]

    def test_only_pending_migrations_are_applied(self) -> None:
        """Migrations up to the version of a database are omitted."""
        known = [migrations.Migration(n, f"-- step {n}") for n in (1, 2, 3)]
        assert "step 2" not in migrations.pending_script(2, known)
        assert "step 3" in migrations.pending_script(2, known)
        assert migrations.pending_script(3, known) == ""

    def test_files_are_numbered_without_a_gap(self) -> None:
        """The numbers begin with 1."""
        versions = [step.version for step in migrations.migrations()]
        assert versions == list(range(1, len(versions) + 1))
        assert versions

    @pytest.mark.parametrize("installed", [True, False])
    def test_files_are_found_in_a_package_and_in_a_checkout(
        self, installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An installed package contains its migrations; a checkout has them at the top."""
        (tmp_path / "migrations").mkdir()
        package = tmp_path / "scache"
        if installed:
            (package / "migrations").mkdir(parents=True)
        directory = (package if installed else tmp_path) / "migrations"
        (directory / "0001_first.sql").write_text("-- found")
        monkeypatch.setattr(migrations, "__file__", str(package / "store" / "migrations.py"))
        assert migrations.migrations.__wrapped__() == (migrations.Migration(1, "-- found"),)


STATEMENTS = {
    1: "29d6c8eaea953b2366a007ace586d88c31b5eabc5d02905319a861ba12f31ced",
    2: "7ef51d4f6a494ce7daf19da57ccbc688da16fb247a6613ea49cfe89e12e44440",
    3: "73f4cd9d445f9fc145480f4dba7b9fed63e6fd87f36ae7c2c6d53d0fc5e72765",
    4: "c0aa363e6fb018766b60c89da6d72ca3b17166d23a3d6bcd0c8490a2f3eb01e6",
    5: "eed538035f13a811418047afb6a6e03d6e461ffe2bcf5f326e8071e5dd81ef5c",
    6: "d65ecd6a941f9b062101bbd71924459d08681d912e75ee65f85ab5ef6b08b524",
}
"""The SHA-256 of the statements of each migration that a release has applied to databases."""


def statements_of(script: str) -> Iterator[str]:
    """Yield the statements of a migration, without the comments between them."""
    statement = ""
    for line in script.splitlines(keepends=True):
        if statement or not (line.isspace() or line.startswith("--")):
            statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@pytest.mark.parametrize("step", migrations.migrations(), ids=lambda step: f"{step.version}")
def test_applied_migrations_keep_their_statements(step: migrations.Migration) -> None:
    """Databases have the text of the statements, with the comments inside them, as their schema."""
    statements = "".join(statements_of(step.script))
    assert hashlib.sha256(statements.encode()).hexdigest() == STATEMENTS[step.version]


def fill(file: Path, version: int) -> None:
    """Make the database of a daemon that crashed, with the schema of an earlier version."""
    with filling(file, newest=version) as cached:
        cached.instance(last_id=1_000_000)
        cached.client(1)
        cached.connection(2)
        cached.binding(3, b"d", b"e")
        cached.binding(4, b"expired", b"e", expires_at=NOW)
        cached.count(save_endp_ok=1, save_dest_ok=2)
        if version >= 2:
            cached.event("save_endp", 0, endpoint=b"e", connection_id=2, client_id=1, ttl=60)
            cached.event("save_dest", 0, destination=b"d", endpoint=b"e", binding_id=3, ttl=60)
            cached.setting(ttl_limit="100")
            cached.descriptor(2, fd=9)
        if version >= 4:
            cached.insert("clock_step", at=NOW, offset=2.5)


@pytest.mark.parametrize("version", STATEMENTS)
class TestEarlierVersion:
    def test_database_is_recovered(self, version: int, file: Path) -> None:
        """The daemon keeps live bindings, records the lost connection, and uses no id again."""
        fill(file, version)
        with Opened(file, now=NOW + 1) as opened:
            assert opened.database.ids.take() == 1_000_001
            assert read(file, "PRAGMA user_version") == [(migrations.migrations()[-1].version,)]
            assert read(file, "SELECT id, destination FROM binding") == [(3, b"d")]
            assert read(file, "SELECT id FROM connection") == []
            assert read(file, "SELECT fd FROM descriptor") == []
            gone = "SELECT kind, connection_id, binding_id FROM event WHERE status IS NULL"
            assert read(file, gone) == [(b"lost", 2, None), (b"expired", None, 4)]
            counters = dict(read(file, "SELECT name, value FROM counter"))
            assert counters[b"connections_lost"] == counters[b"bindings_expired"] == 1
            assert read(file, "SELECT id, started_at FROM instance ORDER BY id") == [
                (1, NOW),
                (2, NOW + 1),
            ]

    def test_database_is_used(self, version: int, file: Path) -> None:
        """A save, a find and the end of the run succeed, and so does a query of each view."""
        fill(file, version)
        with Opened(file) as opened:
            rows = LiveRows(opened.database.batch)
            rows.save_connection(connection(5))
            assert rows.oldest_of_destination(b"d", NOW) == (connection(5), b"q", 3)
            opened.database.audit_log.connection_saved(connection(5), 60)
            assert opened.database.batch.commit()
            for (view,) in read(file, "SELECT name FROM sqlite_schema WHERE type = 'view'"):
                read(file, f"SELECT * FROM {view.decode()}")
            opened.run(opened.database.stop(NOW + 1))
        with closing(sqlite3.connect(file)) as closed:
            found = {(kind, name): sql for kind, name, sql in closed.execute(SCHEMA)}
        assert found == ours()
