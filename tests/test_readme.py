"""What the README shows is what happens."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import anyio
import pytest

import scache
from scache import errors
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


def test_tables() -> None:
    """Every table of the database is in the README, and no other is."""
    section = README.split("## What is in the database")[1].split("\n## ")[0]
    migrations = Path(__file__).parents[1].joinpath("migrations").glob("*.sql")
    schema = "".join(path.read_text(encoding="utf-8") for path in migrations)
    tables = set(re.findall(r"^CREATE TABLE (\w+)", schema, re.MULTILINE))
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == tables
