"""The start of the daemon on a database file that it cannot use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from scache import Client
from scache.errors import EXIT_DATABASE
from tests.support.daemon import Daemon
from tests.support.database_files import (
    make_another_programs,
    make_database,
    make_empty,
    make_newer,
    overwrite_the_middle,
    truncate,
)
from tests.support.starting import UNPRIVILEGED, refused, unchanged
from tests.support.store_fixture import locked


class TestDatabase:
    @pytest.mark.parametrize(
        ("make", "text"),
        [
            (Path.mkdir, "is a directory"),
            (lambda file: file.write_text("hello\n"), "is not a SQLite database"),
            (lambda file: file.write_bytes(bytes(range(256)) * 99), "is not a SQLite database"),
            (overwrite_the_middle, "is corrupt"),
            (truncate, "is corrupt"),
            (make_another_programs, "is a database of another program"),
            (make_newer, "was made by a newer version of scache"),
            (partial(make_empty, user_version=1), "scache database of version 1, but it has not"),
            (
                partial(make_empty, user_version=1, application_id=0),
                "is a database of another program",
            ),
            (
                partial(make_empty, user_version=0, application_id=7),
                "is a database of another program",
            ),
            (partial(make_database, user_version=0), "0, but it has tables of a later version"),
        ],
        ids=[
            *("directory", "text", "bytes", "overwritten", "truncated", "another", "newer"),
            *("empty", "unmarked", "other_mark", "no_version"),
        ],
    )
    def test_daemon_refuses_and_keeps_a_file_that_is_not_its_database(
        self, make: Callable[[Path], None], text: str, path: Path, tmp_path: Path
    ) -> None:
        """The message names the kind of the file, and no byte of it changes."""
        file = tmp_path / "data" / "cache.db"
        file.parent.mkdir()
        make(file)
        with unchanged(tmp_path):
            assert text in refused(path, file, EXIT_DATABASE, "env", "SCACHE_ON_CORRUPT=refuse")

    def test_daemon_does_not_make_a_missing_directory(self, path: Path, tmp_path: Path) -> None:
        """The message names the directory, which is not made."""
        with unchanged(tmp_path):
            line = refused(path, tmp_path / "missing" / "cache.db", EXIT_DATABASE)
        assert f"there is no directory {tmp_path}/missing" in line

    @pytest.mark.parametrize("mode", [0o000, 0o400])
    def test_daemon_refuses_a_file_without_permissions(
        self, mode: int, path: Path, tmp_path: Path
    ) -> None:
        """The daemon must be able to read and write its file."""
        file = tmp_path / "cache.db"
        make_database(file)
        file.chmod(mode)
        line = refused(path, file, EXIT_DATABASE, *UNPRIVILEGED)
        assert "permission denied" in line

    @pytest.mark.parametrize("mode", [0o555, 0o600, 0o000])
    def test_daemon_refuses_a_directory_without_permissions(
        self, mode: int, path: Path, tmp_path: Path
    ) -> None:
        """SQLite must be able to make files beside the database, and to find them."""
        file = tmp_path / "data" / "cache.db"
        file.parent.mkdir()
        make_database(file)
        file.parent.chmod(mode)
        with unchanged(tmp_path):
            line = refused(path, file, EXIT_DATABASE, *UNPRIVILEGED)
        assert "its directory" in line

    def test_daemon_refuses_a_file_in_use_by_another_daemon(
        self, path: Path, tmp_path: Path
    ) -> None:
        """The first daemon goes on serving, and the second leaves no socket."""
        file = tmp_path / "cache.db"
        with Daemon(path, database=file), Client(path) as client:
            line = refused(tmp_path / "other", file, EXIT_DATABASE)
            assert "another scache daemon uses" in line
            assert client.save_dest(60, "d", "q", "e")
        assert not (tmp_path / "other").exists()

    @pytest.mark.slow
    def test_daemon_refuses_a_file_that_stays_locked(self, path: Path, tmp_path: Path) -> None:
        """The daemon waits a little for the lock, then reports it."""
        file = tmp_path / "cache.db"
        make_database(file)
        with locked(file):
            assert "locked by another program" in refused(path, file, EXIT_DATABASE)
