"""tools/bench and its load generator, which checks every reply."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT, run_tool
from tests.support.daemon import Daemon
from tests.support.scripted import hang, hear, saying, serving, then

LOAD = ROOT / "tools" / "harness" / "bench" / "load.c"

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")

ANNOUNCEMENT = b"protocol\0connection_cache_protocol\0\0"


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the load generator; a warning is an error."""
    program = tmp_path_factory.mktemp("load") / "load"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, LOAD], check=True)
    return program


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run a daemon, and yield its socket."""
    path = tmp_path_factory.mktemp("daemon") / "socket"
    with Daemon(path):
        yield path


def drive(load: Path, server: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the load generator to its end."""
    return subprocess.run([load, server, *options], capture_output=True, text=True, check=False)


def benchmark(*options: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the module of tools/bench with this interpreter."""
    return run_tool("-m", "harness.bench", *options, **environment)


@pytest.mark.parametrize(
    "options",
    [
        ["clients=3"],
        ["protocol=inline", "clients=3"],
        ["protocol=inline", "depth=253"],
        ["protocol=inline", "depth=32", "clients=4"],
        ["work=save"],
        ["work=save", "protocol=inline", "depth=7"],
        ["work=bind", "clients=2"],
        ["work=bind", "protocol=inline"],
    ],
    ids=" ".join,
)
def test_load_does_the_exact_number_of_exchanges(
    load: Path, daemon: Path, options: list[str]
) -> None:
    """The number is not rounded to a multiple of the depth or of the clients."""
    result = drive(load, daemon, "count=1000", *options)
    assert result.stderr == ""
    assert json.loads(result.stdout)["done"] == 1000


def test_load_stops_after_its_time(load: Path, daemon: Path) -> None:
    """The warm-up is not measured."""
    measured = json.loads(drive(load, daemon, "ms=100", "warmup=1500").stdout)
    assert 0 < measured["done"] < measured["issued"]
    assert 100_000 <= measured["elapsed"] < 1_500_000
    assert 0 < measured["find_median"] <= measured["find_worst"]


@pytest.mark.parametrize(
    ("replies", "complaint"),
    [
        ([b"status\x002\0\0"], "a wrong reply, which begins with status 2"),
        ([b"dummy\0\0\0", b"status\x002\0\0"], "a wrong reply, which begins with status 2"),
        (
            [b"dummy\0\0\0", b"status\x000\0\0", b"status\x000\0property\0another's\0\0"],
            "a wrong reply, which begins with status 0",
        ),
    ],
    ids=["no dummy", "not saved", "another's properties"],
)
def test_load_rejects_a_wrong_reply(
    load: Path, tmp_path: Path, replies: list[bytes], complaint: str
) -> None:
    """A reply that differs in one byte ends the program."""
    path = tmp_path / "socket"
    with serving(path, then(saying(ANNOUNCEMENT, *replies), hang)):
        result = drive(load, path, "count=1")
    assert result.returncode == 1
    assert complaint in result.stderr


def test_load_rejects_a_missing_descriptor(load: Path, tmp_path: Path) -> None:
    """The byte after a hit must have a descriptor attached."""
    path = tmp_path / "socket"

    def answer(client: socket.socket) -> None:
        saying(ANNOUNCEMENT, b"dummy\0\0\0", b"status\x000\0\0")(client)
        label = hear(client).split(b"\0")[3]
        client.sendall(b"status\x000\0property\0" + label[-20:] + b"\0\0")
        saying(b"", b"\0")(client)
        hang(client)

    with serving(path, answer):
        result = drive(load, path, "count=1")
    assert "0 descriptors came instead of 1" in result.stderr


@pytest.mark.parametrize("option", ["depth", "depth=x", "depth=254", "work=none", "colour=1"])
def test_load_refuses_unknown_options(load: Path, tmp_path: Path, option: str) -> None:
    """A wrong option is an error before the program connects."""
    result = drive(load, tmp_path / "socket", "count=1", "protocol=inline", option)
    assert result.returncode == 1
    assert "cannot connect" not in result.stderr


@pytest.mark.slow
def test_bench_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    """Both have every wanted row, measured or with the reason why not."""
    path = tmp_path / "figures.json"
    result = benchmark("--quick", "--rows", "base-16", "--rows", "file", "--json", path)
    assert result.returncode == 0, result.stderr
    assert "base protocol, 16 connections" in result.stdout
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert rows.keys() == {"base-16", "file"}
    assert rows["base-16"]["ours"]["median"] > 0
    assert rows["base-16"]["ratio"] or rows["base-16"]["note"].startswith("Postfix not run: ")
    assert rows["file"]["verdict"] in {"aim", "ok", "MISSED", "unclear"}
    assert len(rows["file"]["ratio"]["rounds"]) == 2


def test_bench_refuses_an_unknown_row() -> None:
    """A pattern must match a row."""
    result = benchmark("--rows", "no such row")
    assert result.returncode == 2
    assert "no row has this name" in result.stderr


@pytest.mark.slow
def test_bench_draws_a_plot(tmp_path: Path) -> None:
    """The plot is a PNG."""
    path = tmp_path / "cost.png"
    result = benchmark("--quick", "--plot", path)
    assert result.returncode == 0, result.stderr
    assert path.read_bytes().startswith(b"\x89PNG")
