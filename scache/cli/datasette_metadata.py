"""Metadata for Datasette, made from the page ``sql`` of the manual."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

_SECTION = re.compile(r"^## (.+)\n((?:(?!## ).*\n)*)", re.MULTILINE)
_ROW = re.compile(r"^\| (`.+?) \| (.+) \|$", re.MULTILINE)
_NAME = re.compile(r"`([^`]+)`")
_QUESTION = re.compile(r"^\*\*(.+?\?)\*\*.*?^```sql\n(.*?)^```", re.MULTILINE | re.DOTALL)


def metadata(page: str, database: str, columns: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the metadata for a database of this name with these columns of tables and views."""
    sections = dict(_SECTION.findall(page))
    about = _descriptions(sections["Tables"]) | _descriptions(sections["Views"])
    meanings = _descriptions(sections["Columns"])
    tables = {
        name: {
            "description": f"One row for {about[name]}.",
            "columns": {each: _meaning(meanings, name, each) for each in of_table},
        }
        for name, of_table in columns.items()
    }
    queries = {
        _slug(question): {"title": question, "sql": sql}
        for question, sql in _QUESTION.findall(sections["Questions"])
    }
    return {"databases": {database: {"tables": tables, "queries": queries}}}


def _descriptions(section: str) -> dict[str, str]:
    """Return the second cells of the rows of a Markdown table by the names in their first cells."""
    return {
        name: text.replace("`", "")
        for names, text in _ROW.findall(section)
        for name in _NAME.findall(names)
    }


def _meaning(meanings: Mapping[str, str], table: str, column: str) -> str:
    """Return the meaning of a column; that of a name with a point comes first."""
    for name, text in meanings.items():
        if "." in name and fnmatchcase(f"{table}.{column}", name):
            return text
    return meanings[column]


def _slug(question: str) -> str:
    """Return a name for an URL."""
    return re.sub(r"[^a-z0-9]+", "-", question.lower()).strip("-")
