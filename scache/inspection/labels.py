r"""Selection of labels by a pattern, by their printed form, or by whole fields.

Postfix's labels consist of fields that end with a newline, such as ``smtp\n203.0.113.5\n587\n0\n``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

from scache.escape import joined, shown
from scache.inspection.image import Image, Value

_ESCAPE = re.compile(rb"\\u([0-9a-f]{4})|\\U([0-9a-f]{8})")
_NEWLINE = b"\n"
_BACKSLASH = b"\\"
_SPACE = b" "

_CONNECTIONS = "SELECT id, endpoint FROM connection WHERE {0} ORDER BY endpoint, id"
_BINDINGS = "SELECT id, destination, endpoint FROM binding WHERE {0} ORDER BY destination, id"
_ENDPOINTS_BOUND = "endpoint IN (SELECT endpoint FROM binding WHERE {0})"
_COUNT = "SELECT count(*), count(*) FILTER (WHERE {2}) FROM {0} WHERE {1}"
_ANY = "SELECT EXISTS (SELECT 1 FROM ({0}) WHERE {1})"
_BINDING = "SELECT destination FROM binding WHERE id = :id"
_TABLES = {"endpoint": "connection", "destination": "binding"}
_NEAR = """
    SELECT label FROM ({0}) WHERE label LIKE '%' || CAST(:word AS TEXT) || '%'
    ORDER BY label LIMIT :limit
"""
_CACHED = "SELECT endpoint AS label FROM connection UNION SELECT destination FROM binding"
_RECORDED = "SELECT endpoint AS label FROM event UNION SELECT destination FROM event"


class Selection(NamedTuple):
    """The connections and bindings to purge."""

    connections: list[tuple[int, bytes]]
    """Id and endpoint of each connection."""
    bindings: list[tuple[int, bytes, bytes]]
    """Id, destination and endpoint of each binding."""

    @property
    def endpoints(self) -> list[bytes]:
        """The endpoints of the connections, each once."""
        return list(dict.fromkeys(endpoint for _, endpoint in self.connections))

    @property
    def destinations(self) -> list[bytes]:
        """The destinations of the bindings, each once."""
        return list(dict.fromkeys(destination for _, destination, _ in self.bindings))


def fits(column: str, parameter: str, pattern: bytes) -> str:
    """Return an SQL condition that a label matches the pattern or is equal to it.

    The pattern is one of SQLite's GLOB. If it has a backslash, it is also compared with the printed
    form of the label, and if it has a space, with the joined fields of the label. Pass the pattern
    as this parameter to an image on which `prepare` was called.
    """
    readings = _readings(column, parameter, pattern)
    found = (f"{each} = {text} OR {each} GLOB {text}" for each, text in readings)
    return "(" + " OR ".join(found) + ")"


def is_exactly(column: str, parameter: str, pattern: bytes) -> str:
    """Return an SQL condition that a label, or another form of it, is equal to the pattern."""
    readings = _readings(column, parameter, pattern)
    return "(" + " OR ".join(f"{each} = {text}" for each, text in readings) + ")"


def has_field(column: str, parameter: str, field: bytes) -> str:
    """Return an SQL condition that a label has this field, verbatim or in printed form."""
    fields = [(column, f"CAST(:{parameter} AS TEXT)")]
    if _BACKSLASH in field:
        fields.append((f"printed_fields(CAST({column} AS BLOB))", _unescaped_text(parameter)))
    end = "char(10)"
    found = (
        f"instr({end} || {each} || {end}, {end} || {text} || {end}) > 0" for each, text in fields
    )
    return "(" + " OR ".join(found) + ")"


def is_one_of(column: str, ids: Sequence[int]) -> str:
    """Return an SQL condition that an id is one of these."""
    return f"{column} IN ({', '.join(map(str, ids))})"


def prepare(image: Image) -> None:
    """Define the SQL functions that the conditions of this module use in an image."""
    image.define("printed", _printed)
    image.define("joined", _joined)
    image.define("unescaped", _unescaped)
    image.define("printed_fields", _printed_fields)


def select(
    image: Image,
    *,
    endpoint: bytes | None = None,
    destination: bytes | None = None,
    fields: Sequence[bytes] = (),
    ids: Sequence[int] = (),
) -> Selection:
    """Return the cached connections and bindings that one criterion selects; all without any.

    The criterion is a pattern for the endpoint, a pattern for the destination, a list of fields
    that a label must have, or a list of connection ids. A destination also selects the connections
    of the endpoints that it is bound to.
    """
    prepare(image)
    parameters: dict[str, Value | str] = {}
    if endpoint is not None:
        parameters["endpoint"] = endpoint
        connections, bindings = fits("endpoint", "endpoint", endpoint), "0"
    elif destination is not None:
        parameters["destination"] = destination
        bindings = fits("destination", "destination", destination)
        connections = _ENDPOINTS_BOUND.format(bindings)
    elif fields:
        parameters |= field_parameters(fields)
        bindings = has_fields("destination", fields)
        connections = f"{has_fields('endpoint', fields)} OR {_ENDPOINTS_BOUND.format(bindings)}"
    elif ids:
        connections, bindings = is_one_of("id", ids), "0"
    else:
        connections = bindings = "1"
    return Selection(
        list(image.execute(_CONNECTIONS.format(connections), parameters).rows),  # type: ignore[arg-type]
        list(image.execute(_BINDINGS.format(bindings), parameters).rows),  # type: ignore[arg-type]
    )


def has_fields(column: str, fields: Sequence[bytes]) -> str:
    """Return an SQL condition that a label has all of these fields; see `field_parameters`."""
    each = (has_field(column, f"field{number}", field) for number, field in enumerate(fields))
    return "(" + " AND ".join(each) + ")"


def field_parameters(fields: Sequence[bytes]) -> dict[str, Value | str]:
    """Return the parameters of `has_fields`."""
    return {f"field{number}": field for number, field in enumerate(fields)}


def count_fits(image: Image, column: str, pattern: bytes, *, recorded: bool) -> tuple[int, int]:
    """Count the rows whose label matches a pattern, and the rows whose label is equal to it.

    The rows are those of the audit log if ``recorded`` is true, otherwise those of the cache. The
    column is ``endpoint`` or ``destination``.
    """
    prepare(image)
    table = "event" if recorded else _TABLES[column]
    conditions = fits(column, "text", pattern), is_exactly(column, "text", pattern)
    sql = _COUNT.format(table, *conditions)
    ((fitting, exact),) = image.execute(sql, {"text": pattern}).rows
    assert isinstance(fitting, int)
    assert isinstance(exact, int)
    return fitting, exact


def any_has_fields(image: Image, fields: Sequence[bytes], *, recorded: bool) -> bool:
    """Return True if a label of the audit log (``recorded``) or the cache has all these fields."""
    prepare(image)
    source = _RECORDED if recorded else _CACHED
    sql = _ANY.format(source, has_fields("label", fields))
    ((found,),) = image.execute(sql, field_parameters(fields)).rows
    return found == 1


def binding_of(image: Image, binding_id: int) -> bytes | None:
    """Return the destination of a binding; None if there is no binding with this id."""
    for (destination,) in image.execute(_BINDING, {"id": binding_id}).rows:
        assert isinstance(destination, bytes)
        return destination
    return None


def near(image: Image, word: bytes, limit: int, *, recorded: bool) -> list[bytes]:
    """Return up to ``limit`` labels that contain a word, in upper or lower case.

    The labels are those of the audit log if ``recorded`` is true, otherwise those of the cache.
    """
    sql = _NEAR.format(_RECORDED if recorded else _CACHED)
    rows = image.execute(sql, {"word": word, "limit": limit}).rows
    return [label for (label,) in rows if isinstance(label, bytes)]


def _readings(column: str, parameter: str, pattern: bytes) -> list[tuple[str, str]]:
    """Return each form of a label as SQL, and the text with which it is compared."""
    readings = [(column, f"CAST(:{parameter} AS TEXT)")]
    if _BACKSLASH in pattern:
        readings.append((f"printed(CAST({column} AS BLOB))", _unescaped_text(parameter)))
    if _SPACE in pattern:
        readings.append((f"joined(CAST({column} AS BLOB))", _unescaped_text(parameter)))
    return readings


def _unescaped_text(parameter: str) -> str:
    return f"CAST(unescaped(CAST(:{parameter} AS BLOB)) AS TEXT)"


def _unescaped(pattern: bytes) -> bytes:
    r"""Replace \u00fc and so on, which is printed if the output lacks the character."""

    def character(escape: re.Match[bytes]) -> bytes:
        code = int(escape[1] or escape[2], 16)
        char = chr(code) if code <= sys.maxunicode else ""
        return char.encode() if char.isprintable() and char else escape[0]

    return _ESCAPE.sub(character, pattern)


def _printed(label: bytes | None) -> str | None:
    return None if label is None else shown(label)


def _joined(label: bytes | None) -> str | None:
    return None if label is None else joined(label)


def _printed_fields(label: bytes | None) -> str | None:
    return None if label is None else "\n".join(map(shown, label.split(_NEWLINE)))
