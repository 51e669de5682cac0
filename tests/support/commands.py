"""Runs commands in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:  # tools/stress, which uses this module, does not need pytest
    import pytest

ROOT = Path(__file__).parents[2]
"""The checkout."""

SCACHE = (sys.executable, "-m", "scache")


def clean_environment(**more: str) -> dict[str, str]:
    """Return the environment without variables for scache and its tools."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SCACHE_")}
    for name in ("PYTHON", "VENV", "NO_COLOR", "FORCE_COLOR"):
        ours.pop(name, None)
    return ours | more


@contextmanager
def default_signals() -> Iterator[None]:
    """Start processes with the default action of the signals that end them.

    If the tests were started with some of them ignored (nohup, a script's ``&``), a process would
    inherit that.
    """
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)
    ignored = [number for number in numbers if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def ignoring(number: signal.Signals) -> tuple[str, ...]:
    """Return words to put before a command that starts it with this signal ignored."""
    return ("sh", "-c", f'trap "" {number.value}; exec "$@"', "sh")


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command whose output the caller reads; kill it at the end if it still runs."""
    with default_signals():
        process = subprocess.Popen(
            command,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


def run_command(
    *command: str | Path, stdout: int | IO[bytes] = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; return its exit code and output."""
    return subprocess.run(
        command,
        env=clean_environment(**environment),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


def run_tool(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python that knows the modules of tools/."""
    path = os.pathsep.join(map(str, (ROOT / "tools", ROOT)))
    command = (sys.executable, "-P", *arguments)
    return run_command(*command, stdout=subprocess.PIPE, PYTHONPATH=path, **environment)


def import_tool(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """Import a module of tools/, which is on the module search path until the test ends."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    return import_module(name)


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python code, which may import the tests, and for which warnings are errors."""
    command = (sys.executable, "-W", "error", "-c", code, *map(str, arguments))
    return run_command(*command, PYTHONPATH=str(ROOT))
