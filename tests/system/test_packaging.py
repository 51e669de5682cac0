"""Installation: from a wheel, and from a fresh clone."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from zipfile import ZipFile

import pytest

from scache import Client, __version__, errors
from scache.settings.declarations import default_socket
from tests.support.commands import ROOT, clean_environment, run_command
from tests.support.daemon import DaemonProcess
from tests.support.manual import PAGES, README, blocks, section
from tests.support.sessions import demonstration

CHANGELOG = ROOT.joinpath("CHANGELOG.md").read_text(encoding="utf-8")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MAN_PAGES = [
    "share/man/man1/scache.1",
    "share/man/man8/scache-master.8",
    "share/man/man8/scache-serve.8",
]


def pip(*arguments: str | Path) -> None:
    """Run the pip of this environment."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, env=clean_environment())


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a source distribution of the tree, which pip alone cannot."""
    directory = tmp_path_factory.mktemp("sdist")
    pip("install", "-qq", "--target", directory / "hatchling", "hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(directory)]
    environment = clean_environment(PYTHONPATH=str(directory / "hatchling"))
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    (sdist,) = directory.glob("scached-*.tar.gz")
    return sdist


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from the source distribution, as pip does if there is no wheel."""
    directory = tmp_path_factory.mktemp("wheel")
    pip("wheel", "-qq", "--no-deps", "--wheel-dir", directory, sdist)
    (wheel,) = directory.glob("scached-*.whl")
    return wheel


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clone the last commit into an empty directory."""
    if not (ROOT / ".git").exists():
        pytest.skip("this checkout is not a git repository, so it cannot be cloned")
    directory = tmp_path_factory.mktemp("fresh") / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, directory], check=True)
    return directory


@pytest.fixture
def free_default_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the default socket of this user; skip the test if a daemon listens on it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = default_socket()
    made_here = not path.parent.exists()
    with socket.socket(socket.AF_UNIX) as probe, suppress(FileNotFoundError, ConnectionError):
        probe.connect(str(path))
        pytest.skip(f"a daemon of this machine listens on {path}")
    yield path
    if made_here:
        shutil.rmtree(path.parent)


def test_sdist_has_the_files_of_the_checkout(sdist: Path) -> None:
    """A wheel and the tests can be made of it; it has no environment and no cache of a tool."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"PKG-INFO", "LICENSE", "CHANGELOG.md", "tools/build_hook.py"} <= names
    assert "tests/system/test_packaging.py" in names
    assert {f"migrations/{path.name}" for path in ROOT.glob("migrations/*.sql")} <= names
    assert not [name for name in names if name.startswith((".venv", ".git/", "dist/", ".mypy"))]


def test_wheel_has_the_name_and_the_version_of_the_changelog(wheel: Path) -> None:
    """The name `scache` belongs to another project on PyPI."""
    with ZipFile(wheel) as archive:
        metadata = archive.read(f"scached-{__version__}.dist-info/METADATA").decode()
    assert f"\nName: scached\nVersion: {__version__}\n" in metadata
    headings = re.findall(r"^## \[(.+?)\]( - \d{4}-\d\d-\d\d)?$", CHANGELOG, re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    assert headings[1][0] == __version__
    assert all(date for _, date in headings[1:])


def test_wheel_has_the_migrations(wheel: Path) -> None:
    """Every migration of the tree is in the package under its own name."""
    shipped = {name for name in ZipFile(wheel).namelist() if name.endswith(".sql")}
    assert shipped == {f"scache/migrations/{path.name}" for path in ROOT.glob("migrations/*.sql")}
    assert shipped


def test_wheel_has_the_manual(wheel: Path) -> None:
    """Every page of the tree is in the package."""
    shipped = {name for name in ZipFile(wheel).namelist() if name.endswith(".md")}
    assert shipped == {f"scache/manual/{topic}.md" for topic in PAGES}


def test_install_page_has_the_oldest_versions_of_the_dependencies() -> None:
    """They are the lower bounds, which CI tests."""
    project = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    rows = dict(re.findall(r"^\| (\w+) \| ([\d.]+) \|", PAGES["install"], re.MULTILINE))
    assert rows.pop("Python") == project["requires-python"].removeprefix(">=")
    assert [f"{name}>={oldest}" for name, oldest in rows.items()] == project["dependencies"]


def test_ci_runs_tests_that_exist() -> None:
    """Those with the oldest dependencies are named one by one."""
    named = re.findall(r"tests/\S+\.py", ROOT.joinpath(".ci", "run").read_text(encoding="utf-8"))
    assert named
    assert all(ROOT.joinpath(name).is_file() for name in named)


def test_wheel_has_the_man_pages(wheel: Path) -> None:
    """Their place in the wheel is the one from which pip puts them under share/man."""
    data = f"scached-{__version__}.data/data/"
    shipped = [name for name in ZipFile(wheel).namelist() if name.startswith(data)]
    assert sorted(name.removeprefix(data) for name in shipped) == MAN_PAGES


def test_install_and_start_of_the_readme_work(wheel: Path, tmp_path: Path) -> None:
    """The two commands of the README work with other paths, and the manual is installed."""
    (block,) = blocks(section(README, "Install and start"), "sh")
    install, start = block.text.replace("/opt/scache", f"{tmp_path}/opt").splitlines()
    assert f"./{wheel.name}" in install
    assert PAGES["install"].count(f"./{wheel.name}") == PAGES["install"].count(".whl")
    environment = clean_environment(PIP_DISABLE_PIP_VERSION_CHECK="1")
    subprocess.run(["sh", "-ec", install], cwd=wheel.parent, env=environment, check=True)
    command = [*shlex.split(start), "--socket", str(tmp_path / "s")]
    with DaemonProcess(command) as daemon:
        assert daemon.terminate() == errors.EXIT_OK
    assert all(tmp_path.joinpath("opt", page).is_file() for page in MAN_PAGES)
    for topic in PAGES:
        assert run_command(command[0], "help", topic).stdout == PAGES[topic]


def test_installed_wheel_serves(wheel: Path, tmp_path: Path) -> None:
    """In a clean environment the command serves from a database file, and the README is true."""
    environment = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip("--python", environment / "bin" / "python", "install", "-qq", wheel)
    path, database = tmp_path / "s", tmp_path / "cache.db"
    serve = ("serve", "--socket", path, "--database", database)
    with DaemonProcess((environment / "bin" / "scache", *serve)) as daemon:
        with Client(path) as client:
            assert client.find_endp("nothing") is None
        assert daemon.terminate() == errors.EXIT_OK
    assert database.exists()
    with demonstration(tmp_path, environment / "bin" / "python3") as shell:
        for session in blocks(README, "console"):
            shell.run(session.text)


def test_fresh_clone_serves_on_the_default_socket(clone: Path, free_default_socket: Path) -> None:
    """tools/run makes the environment and runs the daemon; a second run only runs it."""
    environment = clean_environment(PYTHON=sys.executable)
    for attempt in ("first", "second"):
        with DaemonProcess([clone / "tools" / "run"], environment, timeout=280) as daemon:
            lines = daemon.log()
            assert str(free_default_socket) in lines[-1]
            assert len(lines) == 1 or attempt == "first"
            with Client(free_default_socket) as client:
                assert client.find_endp("nothing") is None
            assert daemon.terminate() == errors.EXIT_OK


def test_tool_repairs_an_incomplete_environment(clone: Path) -> None:
    """A tool removes an environment whose installation was killed, and makes a new one."""
    half_made = clone / ".venv"
    shutil.rmtree(half_made, ignore_errors=True)
    (half_made / "bin").mkdir(parents=True)
    (half_made / "bin" / "python").symlink_to(os.devnull)
    run = str(clone / "tools" / "run")
    result = run_command(run, "--show-config", PYTHON=sys.executable)
    assert result.returncode == errors.EXIT_OK
    assert "socket" in result.stdout


def test_tool_refuses_an_unsuitable_interpreter(clone: Path) -> None:
    """The message is one line with the required version and the variable to set."""
    run = str(clone / "tools" / "run")
    result = run_command(run, PYTHON="/bin/false")
    assert result.returncode == 1
    assert result.stderr == (
        "run: needs Python 3.11 or later, which /bin/false is not: name one in PYTHON\n"
    )
