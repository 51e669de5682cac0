"""The metadata for Datasette that ``scache help datasette --metadata`` writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from scache import errors
from scache.inspection.image import Image
from tests.support.datasette import datasette
from tests.support.looking import Capture, failure, run
from tests.support.manual import PAGES, section


@pytest.fixture
def metadata(capsys: Capture) -> dict[str, Any]:
    """Return the metadata of a database with the usual name."""
    written = json.loads(run(capsys, "help", "datasette", "--metadata"))
    assert list(written["databases"]) == ["scache"]
    of_database: dict[str, Any] = written["databases"]["scache"]
    return of_database


def test_metadata_describes_every_column(metadata: dict[str, Any], file: Path) -> None:
    """The page `sql` has a row for each column of each table and view."""
    with Image.from_file(file) as image:
        columns = {relation.name: relation.columns for relation in image.relations()}
    tables = metadata["tables"]
    assert {name: list(each["columns"]) for name, each in tables.items()} == columns
    texts = [text for each in tables.values() for text in each["columns"].values()]
    assert all(text and "`" not in text for text in texts)
    assert tables["live_connection"]["description"].startswith("One row for each connection: its")
    assert tables["counter"]["columns"]["value"] == "the total since the database was made"
    assert tables["client_activity"]["columns"]["purge_id_ok"].endswith("that succeeded")
    assert tables["client"]["columns"]["pid"] != tables["instance"]["columns"]["pid"]


def test_metadata_uses_every_row_of_the_page(metadata: dict[str, Any]) -> None:
    """No row describes a column that does not exist."""
    texts = {text for each in metadata["tables"].values() for text in each["columns"].values()}
    rows = section(PAGES["sql"], "Columns").split("|---|---|\n")[1].strip().splitlines()
    assert {row.split(" | ", 1)[1].removesuffix(" |").replace("`", "") for row in rows} == texts


def test_metadata_has_every_question(metadata: dict[str, Any]) -> None:
    """Each question of the manual is a query with its title."""
    questions = section(PAGES["sql"], "Questions")
    titles = [query["title"] for query in metadata["queries"].values()]
    assert len(titles) == questions.count("```sql") > 5
    assert all(f"**{title}**" in questions for title in titles)


@pytest.mark.parametrize("name", ["scache.db", "cache", "my cache.2.sqlite"])
def test_datasette_accepts_metadata_for_any_file_name(
    filled: Path, tmp_path: Path, capsys: Capture, name: str
) -> None:
    """It answers a question at the address of the manual, and shows descriptions of columns."""
    path = tmp_path / "elsewhere" / name
    path.parent.mkdir()
    shutil.copy(filled, path)
    metadata = tmp_path / "metadata.json"
    metadata.write_text(run(capsys, "help", "datasette", "--metadata", "--database", path))
    with datasette(["datasette", "--metadata", str(metadata)], path) as server:
        assert [row["way_out"] for row in server.rows("lifetime")] == ["expired"]
        found = server.rows("why-did-a-connection-leave-the-cache", id=2)
        assert [row["kind"] for row in found] == ["save_endp", "expired"]
        assert "ages of the connections when they left" in server.page("lifetime")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sql", "--metadata"], "--metadata is for the topic datasette: give both"),
        (["--metadata"], "--metadata is for the topic datasette: give both"),
        (["datasette", "--database", "x"], "--database is for --metadata: give both"),
    ],
)
def test_metadata_options_are_for_their_topic(
    capsys: Capture, arguments: list[str], sentence: str
) -> None:
    """An option without effect is refused."""
    assert failure(capsys, "help", *arguments) == (errors.EXIT_SETTINGS, sentence)
