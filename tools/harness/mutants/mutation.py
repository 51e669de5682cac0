"""The list of mutations, and the result of the tests with one applied to a copy of the tree."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
LIST = ROOT / "tools" / "mutations.toml"

_TEST_TIMEOUT, _TIMEOUT = 60, 300
"""Seconds for one test, and for all tests of a mutant."""

_OK, _FAILED, _LATE = 0, 1, -1
"""Exit codes of pytest, and a value for a run that was stopped. Any other code is an error."""


class StaleError(Exception):
    """The text that a mutation replaces is not in its file exactly once."""


class Mutation(NamedTuple):
    """A change that breaks the code."""

    file: str
    """The path in the checkout."""
    old: str
    """Text that occurs in the file exactly once: whole lines."""
    new: str
    """The replacement."""
    tests: tuple[str, ...]
    """Test files of which one must fail; empty for all of them."""

    def apply(self, text: str) -> str:
        """Return the text of the file with the change; raise StaleError if it does not fit."""
        count = text.count(self.old)
        if count != 1:
            raise StaleError(f"its text occurs {count} times in {self.file}: mend the list")
        return text.replace(self.old, self.new)

    @property
    def summary(self) -> str:
        """The first line that changes."""
        new = self.new.splitlines()
        return next((line.strip() for line in self.old.splitlines() if line not in new), self.new)


class Outcome(Enum):
    """The result for a mutant."""

    KILLED = "killed"
    SURVIVED = "SURVIVED"
    STALE = "STALE"
    """The list does not fit the code any more."""
    ERROR = "ERROR"
    """The tests cannot run, or fail also without the mutation."""


class Result(NamedTuple):
    """The result for a mutant, and the reason."""

    outcome: Outcome
    detail: str
    """The test that failed, or the error."""


def read_list(path: Path = LIST) -> list[Mutation]:
    """Return the mutations of a list file."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["mutation"]
    return [
        Mutation(each["file"], each["old"], each["new"], tuple(each.get("tests", ())))
        for each in entries
    ]


def run(mutation: Mutation) -> Result:
    """Run the tests with a mutation applied."""
    with copied() as tree:
        file = tree / mutation.file
        try:
            file.write_text(mutation.apply(file.read_text(encoding="utf-8")), encoding="utf-8")
        except (StaleError, FileNotFoundError) as error:
            return Result(Outcome.STALE, str(error))
        code, failed = _test(tree, [f"tests/{name}" for name in mutation.tests])
    if code == _OK:
        return Result(Outcome.SURVIVED, f"by {', '.join(mutation.tests) or 'all quick tests'}")
    if code == _LATE:
        return Result(Outcome.KILLED, f"not done within {_TIMEOUT} seconds")
    if code != _FAILED or not failed:
        return Result(Outcome.ERROR, f"pytest ended with {code}")
    with copied() as tree:  # a new copy, without the compiled files of the mutant
        code, _ = _test(tree, failed)
    if code != _OK:
        return Result(Outcome.ERROR, f"fails without the mutation: {failed[0]}")
    return Result(Outcome.KILLED, failed[0].removeprefix("tests/"))


@contextmanager
def copied() -> Iterator[Path]:
    """Copy the working tree, except the files that git ignores."""
    listing = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listing, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    with tempfile.TemporaryDirectory(prefix="scache-mutant-") as directory:
        tree = Path(directory)
        tree.chmod(0o755)  # tests start daemons that give up root and must reach it
        for name in filter(None, names.split("\0")):
            if (ROOT / name).exists():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tree / name)
        yield tree


def _test(tree: Path, tests: list[str]) -> tuple[int, list[str]]:
    """Run quick tests until one fails; return pytest's exit code, and the tests that failed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-m", "not slow"]
    options = ("-o", f"timeout={_TEST_TIMEOUT}", "--hypothesis-profile=mutants")
    with subprocess.Popen(
        [*command, *options, *tests],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            code = process.wait(_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return _LATE, []
    failed = tree / ".pytest_cache" / "v" / "cache" / "lastfailed"
    return code, [*json.loads(failed.read_text())] if failed.exists() else []
