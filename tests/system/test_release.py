"""The tool that makes a release."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType

import pytest

from scache import __version__
from tests.support.commands import import_tool, run_tool

CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n"


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the module of the tool."""
    return import_tool(monkeypatch, "harness.release")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Make a clone of a version that the changelog does not have."""
    (tmp_path / "scache").mkdir()
    (tmp_path / "scache" / "version.py").write_text('__version__ = "9.8.7"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return tmp_path


def test_release_reads_the_version_of_the_clone(release: ModuleType, clone: Path) -> None:
    """The version of the checkout may be another one."""
    (clone / "CHANGELOG.md").write_text(f"{CHANGELOG}## [9.8.7] - 2026-12-31\n")
    assert release.version_of(clone) == "9.8.7"


@pytest.mark.parametrize(
    "section",
    [
        "",
        "## [9.8.7]\n",
        "## 9.8.7 - 2026-12-31\n",
        "## [9.8] - 2026-12-31\n",
        "## [9x8.7] - 2026-12-31",
    ],
)
def test_release_refuses_a_version_without_a_dated_section_in_the_changelog(
    release: ModuleType, clone: Path, section: str
) -> None:
    """The message names the version."""
    (clone / "CHANGELOG.md").write_text(f"{CHANGELOG}{section}")
    with pytest.raises(SystemExit, match=r"no section with a date for 9\.8\.7"):
        release.version_of(clone)


def test_release_announces_files_sizes_hashes_and_commands(
    release: ModuleType, tmp_path: Path
) -> None:
    """sha256 is the hash that PyPI shows."""
    file = tmp_path / "scached-9.8.7.tar.gz"
    file.write_bytes(b"x" * 1234)
    text = release.announcement("9.8.7", "c0ffee", [file])
    assert str(file) in text
    assert "1,234 bytes" in text
    assert hashlib.sha256(b"x" * 1234).hexdigest() in text
    assert f"twine upload {file}" in text
    assert "git tag -a v9.8.7 -m 'scache 9.8.7' c0ffee" in text


@pytest.mark.long
def test_release_builds_and_tries_both_files(tmp_path: Path) -> None:
    """CI does the same step by step in test_packaging.py."""
    done = run_tool("-m", "harness.release", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    names = {f"scached-{__version__}-py3-none-any.whl", f"scached-{__version__}.tar.gz"}
    assert {file.name for file in tmp_path.iterdir() if file.name.startswith("scached")} == names
    for name in names:
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() in done.stdout
