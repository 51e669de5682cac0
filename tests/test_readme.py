"""What the README shows is what happens."""

from __future__ import annotations

import io
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import anyio
import click
import pytest

import scache
from scache import errors
from scache.cli import execute
from scache.cli.commands import cli
from tests.support.cached import filling
from tests.support.daemon import Daemon

README = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
EXAMPLE, ASYNC_EXAMPLE = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
DEMO_SOCKET = "/tmp/demo.sock"


def test_example(path: Path, database: str) -> None:
    """The example in Python runs as it stands."""
    with Daemon(path, database=database) as daemon:
        exec(EXAMPLE.replace(DEMO_SOCKET, str(daemon.path)), {})


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_async_example(path: Path, database: str, backend: str) -> None:
    """The example for async programs runs as it stands, within a function."""
    function = "async def example():\n" + textwrap.indent(ASYNC_EXAMPLE, "    ")
    with Daemon(path, database=database) as daemon:
        namespace: dict[str, Any] = {"scache": scache}
        exec(function.replace(DEMO_SOCKET, str(daemon.path)), namespace)
        anyio.run(namespace["example"], backend=backend)


def test_exit_codes() -> None:
    """Every exit code is in the README's table, and no other is."""
    table = README.split("## Exit codes")[1].split("\n## ")[0]
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == codes


def test_tables_and_views() -> None:
    """Every table and view of the database is in the README, and no other is."""
    section = README.split("## What is in the database")[1].split("\n## ")[0]
    migrations = Path(__file__).parents[1].joinpath("migrations").glob("*.sql")
    schema = "".join(path.read_text(encoding="utf-8") for path in migrations)
    tables = set(re.findall(r"^CREATE (?:TABLE|VIEW) (\w+)", schema, re.MULTILINE))
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == tables


LOOKS = README.split("## Look inside")[1].split("```")[1].splitlines()[1:]


@pytest.mark.parametrize("line", LOOKS)
def test_looks_inside(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command that looks inside is one, and works on a database as well."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"SELECT 1")))
    program, name, *arguments = shlex.split(line, comments=True)
    assert program == "scache"
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    command.make_context(name, list(arguments)).close()
    with filling(tmp_path / "cache.db"):
        pass
    if name != "purge" and not {"--follow", "--watch"} & set(arguments):
        assert execute([name, *arguments, "--database", "cache.db"]) == errors.EXIT_OK
