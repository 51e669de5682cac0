"""The list of mutations, and tools/mutants, which reports the ones that no test notices."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import ROOT, run_tool

LIST = ROOT / "tools" / "mutations.toml"
MUTATIONS: list[dict[str, Any]] = tomllib.loads(LIST.read_text(encoding="utf-8"))["mutation"]


def test_mutations_are_all_different() -> None:
    """Two READMEs tell their number."""
    number = len(MUTATIONS)
    assert len({(each["file"], each["old"]) for each in MUTATIONS}) == number
    for name in ("README.md", "tests/README.md"):
        assert f"| {number} mutations of the code" in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: str(each["file"]))
def test_mutation_fits_the_code(mutation: dict[str, Any]) -> None:
    """Its text occurs in the file exactly once, and the changed file is valid Python."""
    text = (ROOT / mutation["file"]).read_text(encoding="utf-8")
    assert text.count(mutation["old"]) == 1, "change tools/mutations.toml: this text has changed"
    compile(text.replace(mutation["old"], mutation["new"]), mutation["file"], "exec")
    assert mutation["tests"]
    assert all((ROOT / "tests" / name).is_file() for name in mutation["tests"])


@pytest.mark.slow
def test_mutants_reports_survivors_and_stale_entries(tmp_path: Path) -> None:
    """The exit code is 0 only if all mutants are killed."""
    killed = {
        "file": "scache/protocol/codec.py",
        "old": "LARGEST_ID = 2**63 - 1\n",
        "new": "LARGEST_ID = 2**63\n",
    }
    others = [
        killed | {"new": "LARGEST_ID = 2**63 - 1  # the same\n"},
        killed | {"old": "SMALLEST_ID = 1\n"},
        killed | {"file": "scache/absent.py"},
    ]
    path = tmp_path / "list.toml"
    for mutations, code in ([killed], 0), ([killed, *others], 1):
        entries = (
            "[[mutation]]\n" + "".join(f"{name} = {text!r}\n" for name, text in each.items())
            for each in mutations
        )
        tests = 'tests = ["protocol/test_codec.py"]\n'
        path.write_text("".join(f"{entry}{tests}" for entry in entries).replace("'", '"'))
        done = run_tool("-m", "harness.mutants", "--list", path)
        assert done.returncode == code, done.stdout + done.stderr
    words = [line.split()[0] for line in done.stdout.splitlines()]
    assert words[1:5] == ["killed", "SURVIVED", "STALE", "STALE"]
    assert "occurs 0 times in scache/protocol/codec.py" in done.stdout


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_mutant_is_killed() -> None:
    """The quick tests notice each mutation of the list."""
    done = run_tool("-m", "harness.mutants")
    assert done.returncode == 0, done.stdout + done.stderr
