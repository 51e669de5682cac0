"""Programs that run a statement on a database file."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scache.inspection.image import Image
from tests.support.commands import SCACHE, run_command
from tests.support.wire import DEADLINE

Row = dict[str, Any]
Parameters = Mapping[str, int | str]


def ask(database: Path, statement: str, parameters: Parameters) -> list[Row]:
    """Run a statement in this process, as ``scache sql`` does; text comes as bytes."""
    with Image.from_file(database) as image:
        result = image.execute(statement, dict(parameters))
        return [dict(zip(result.columns, row, strict=True)) for row in result.rows]


def shown(rows: list[Row]) -> list[Row]:
    """Return rows with text decoded as programs show it."""
    return [
        {
            name: value.decode(errors="replace") if isinstance(value, bytes) else value
            for name, value in row.items()
        }
        for row in rows
    ]


def ask_scache(database: Path, statement: str, parameters: Parameters) -> list[Row]:
    """Run a statement with ``scache sql``; the rows are as those of `shown`."""
    options = [word for name, value in parameters.items() for word in ("-p", f"{name}={value}")]
    run = run_command(
        *(*SCACHE, "sql", "--database", str(database), "--format", "json"),
        *(statement, *options),
    )
    assert (run.returncode, run.stderr) == (0, "")
    return list(json.loads(run.stdout, object_hook=_text_of_base64))


def _text_of_base64(found: Row) -> Any:  # noqa: ANN401 - a row, or a text in it
    if "$base64" in found:
        return base64.b64decode(found["encoded"]).decode(errors="replace")
    return found


def ask_sqlite3(
    command: Sequence[str], database: Path, statement: str, parameters: Parameters
) -> list[Row]:
    """Run a statement with this command of sqlite3; the rows are as those of `shown`."""
    if shutil.which(command[0]) is None:
        raise RuntimeError(
            f"this test needs the program {command[0]}, which tools/test installs "
            "from Debian's package sqlite3"
        )
    given = [f""".parameter set :{name} "'{value}'\"""" for name, value in parameters.items()]
    run = subprocess.run(
        [*command, "-batch", "-json", str(database), *given, statement],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=DEADLINE,
    )
    assert (run.returncode, run.stderr) == (0, b"")
    return list(json.loads(run.stdout.decode(errors="replace") or "[]"))
