"""Rules for the structure of the code: imports, and functions that must not await."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT

PACKAGE = ROOT / "scache"

MODULES = sorted(PACKAGE.rglob("*.py"))

# Modules that change the state of the cache, or decide about it, without an interruption.
PLAIN = [
    *PACKAGE.glob("protocol/*.py"),
    *PACKAGE.glob("cache/*.py"),
    PACKAGE / "store" / "live_rows.py",
    PACKAGE / "store" / "batch.py",
]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function of a module, methods and inner ones included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def name_of(path: Path) -> str:
    """Return the id of a test about this file."""
    return path.relative_to(ROOT).as_posix()


def test_import_contracts_hold() -> None:
    """import-linter finds no violation of the contracts in pyproject.toml."""
    lint_imports = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [lint_imports, "--no-logo", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(("directory", "limit"), [("scache", 400), ("tests", 500)])
def test_files_are_short(directory: str, limit: int) -> None:
    """Split a longer file by subject."""
    files = (ROOT / directory).rglob("*.py")
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {name: count for name, count in lines.items() if count > limit}


@pytest.mark.parametrize("path", PLAIN, ids=name_of)
def test_changes_of_state_do_not_await(path: Path) -> None:
    """The protocol, the cache and the live rows have plain functions only."""
    assert not [each.name for each in functions(path) if isinstance(each, ast.AsyncFunctionDef)]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_use_no_codec_that_python_must_import(path: Path) -> None:
    """Python loads UTF-8 at its start; with ``--user`` it may be unable to read other codecs."""
    codecs = {
        node.value.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "encoding"
        if isinstance(node.value, ast.Constant)
    }
    assert codecs <= {"utf-8"}
