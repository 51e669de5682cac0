"""What people start from: a wheel, and a fresh clone."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from zipfile import ZipFile

import pytest

from scache import Client, errors
from scache.settings.declarations import default_socket
from tests.support.commands import ROOT, clean_environment, listening, run_command
from tests.support.manual import PAGES, README, blocks, section

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def pip(*arguments: str | Path) -> None:
    """Run the pip of this environment."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, env=clean_environment())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel of the tree."""
    directory = tmp_path_factory.mktemp("wheel")
    pip("wheel", "-qq", "--no-deps", "--wheel-dir", directory, ROOT)
    (wheel,) = directory.glob("scache-*.whl")
    return wheel


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clone what is committed, into an empty directory."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone to make another from")
    directory = tmp_path_factory.mktemp("fresh") / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, directory], check=True)
    return directory


@pytest.fixture
def free_default_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the default socket: the test's own, or the machine's if root's daemon has none."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = default_socket()
    made_here = not path.parent.exists()
    with socket.socket(socket.AF_UNIX) as probe, suppress(FileNotFoundError, ConnectionError):
        probe.connect(str(path))
        pytest.skip(f"a daemon of this machine listens on {path}")
    yield path
    if made_here:
        shutil.rmtree(path.parent)


def test_a_wheel_carries_the_migrations(wheel: Path) -> None:
    """Every migration of the tree is in the package, under its own name."""
    shipped = {name for name in ZipFile(wheel).namelist() if name.endswith(".sql")}
    assert shipped == {f"scache/migrations/{path.name}" for path in ROOT.glob("migrations/*.sql")}
    assert shipped


def test_wheel_carries_the_manual(wheel: Path) -> None:
    """Every page of the tree."""
    shipped = {name for name in ZipFile(wheel).namelist() if name.endswith(".md")}
    assert shipped == {f"scache/manual/{topic}.md" for topic in PAGES}


def test_install_and_start_of_the_readme_work(wheel: Path, tmp_path: Path) -> None:
    """The two commands as they are printed, with other paths; then the manual is at hand."""
    (block,) = blocks(section(README, "Install and start"), "sh")
    install, start = block.text.replace("/opt/scache", f"{tmp_path}/opt").splitlines()
    assert f"./{wheel.name}" in install
    environment = clean_environment(PIP_DISABLE_PIP_VERSION_CHECK="1")
    subprocess.run(["sh", "-ec", install], cwd=wheel.parent, env=environment, check=True)
    command = [*shlex.split(start), "--socket", str(tmp_path / "s")]
    with listening(command) as (process, _):
        process.terminate()
        assert process.wait() == errors.EXIT_OK
    for topic in PAGES:
        assert run_command(command[0], "help", topic).stdout == PAGES[topic]


def test_an_installed_wheel_serves(wheel: Path, tmp_path: Path) -> None:
    """In a clean environment the command serves from a database file, until it is stopped."""
    environment = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip("--python", environment / "bin" / "python", "install", "-qq", wheel)
    path, database = tmp_path / "s", tmp_path / "cache.db"
    command = [environment / "bin" / "scache", "serve", "--socket", path, "--database", database]
    with listening([str(each) for each in command]) as (process, _):
        with Client(path) as client:
            assert client.find_endp("nobody") is None
        process.terminate()
        assert process.wait() == errors.EXIT_OK
    assert database.exists()


def test_a_fresh_clone_answers_on_the_default_socket(
    clone: Path, free_default_socket: Path
) -> None:
    """One command makes the environment and runs the daemon; a second run finds all there."""
    environment = clean_environment(PYTHON=sys.executable)
    for attempt in ("first", "second"):
        with listening([str(clone / "tools" / "run")], environment) as (process, lines):
            assert str(free_default_socket) in lines[-1]
            assert len(lines) == 1 or attempt == "first"
            with Client(free_default_socket) as client:
                assert client.find_endp("nobody") is None
            process.terminate()
            assert process.wait() == errors.EXIT_OK


def test_a_tool_mends_what_was_left_half_made(clone: Path) -> None:
    """An environment whose making was killed is made anew by the next run."""
    half_made = clone / ".venv"
    shutil.rmtree(half_made, ignore_errors=True)
    (half_made / "bin").mkdir(parents=True)
    (half_made / "bin" / "python").symlink_to(os.devnull)
    run = str(clone / "tools" / "run")
    result = run_command(run, "--show-config", PYTHON=sys.executable)
    assert result.returncode == errors.EXIT_OK
    assert "socket" in result.stdout


def test_a_tool_refuses_an_interpreter_that_will_not_do(clone: Path) -> None:
    """What is no Python 3.11 is refused in one line."""
    run = str(clone / "tools" / "run")
    result = run_command(run, PYTHON="/bin/false")
    assert result.returncode == 1
    assert result.stderr == (
        "run: needs Python 3.11 or later, which /bin/false is not: name one in PYTHON\n"
    )
