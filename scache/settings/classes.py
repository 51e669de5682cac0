"""Classes of labels: the tables ``[[class]]`` of a configuration file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

KEY: Final = "class"
"""The key of the tables in a configuration file."""

OTHER: Final = "other"
"""The class of labels that fit no configured class."""

MAX_CLASSES: Final = 32
"""Most classes; each adds about 20 series to the metrics."""

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_KEYS = ("name", "endpoint", "destination")


class LabelClass(NamedTuple):
    """A class of labels."""

    name: str
    endpoint: str | None = None
    """A pattern of fnmatch for endpoints, and for destinations without a pattern of their own."""
    destination: str | None = None
    """A pattern of fnmatch for destinations."""


def check_classes(value: object) -> tuple[LabelClass, ...]:
    """Return the classes of an array of tables.

    Raises ValueError with a text that follows the name of the setting.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(  # noqa: TRY004 - as for every setting
            f"must be tables of their own, each below a line [[{KEY}]], not {value!r}"
        )
    if len(value) > MAX_CLASSES:
        raise ValueError(f"must be at most {MAX_CLASSES} tables, not {len(value)}")
    classes: list[LabelClass] = []
    for number, table in enumerate(value, 1):
        each = table if isinstance(table, LabelClass) else _class(table, f"number {number}")
        if each.name in [known.name for known in classes]:
            raise ValueError(f"number {number} has the name {each.name!r} of an earlier one")
        classes.append(each)
    return tuple(classes)


def _class(table: object, which: str) -> LabelClass:
    if not isinstance(table, Mapping):
        raise ValueError(f"{which} must be a table, not {table!r}")  # noqa: TRY004
    for key in table:
        if key not in _KEYS:
            raise ValueError(f"{which} has an unknown key {key!r}: there are {', '.join(_KEYS)}")
    name, patterns = table.get("name"), {key: table.get(key) for key in _KEYS[1:]}
    if name is None:
        raise ValueError(f'{which} has no name: add name = "smtp" or the like')
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{which} must have a name of at most 32 lower-case letters, digits, _ and -, "
            f"the first a letter, not {name!r}"
        )
    if name == OTHER:
        raise ValueError(f"{which} must have another name: {OTHER!r} is for all other labels")
    for key, pattern in patterns.items():
        if pattern is not None and (not isinstance(pattern, str) or not pattern):
            raise ValueError(
                f'{which} must have a pattern as {key}, such as "smtp*", not {pattern!r}'
            )
    if not any(patterns.values()):
        raise ValueError(f'{which} has no pattern: add endpoint = "{name}*" or the like')
    return LabelClass(name, **patterns)


def write_classes(classes: Sequence[LabelClass]) -> str:
    """Return classes as TOML, one table below another."""
    import json

    tables = []
    for each in classes:
        pairs = [(key, value) for key, value in each._asdict().items() if value is not None]
        # TOML quotes as JSON does.
        lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in pairs]
        tables.append("\n".join([f"[[{KEY}]]", *lines]))
    return "\n".join(tables)
