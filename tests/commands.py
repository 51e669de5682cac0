"""Running the command line as a person would: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

SCACHE = (sys.executable, "-m", "scache")


def clean_environment(**more: str) -> dict[str, str]:
    """Return the environment without what the tests' own surroundings set for scache."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SCACHE_")}
    for name in ("PYTHON", "VENV"):
        ours.pop(name, None)
    return ours | more


def run_command(
    *command: str, stdout: int | IO[bytes] = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return what it said."""
    return subprocess.run(
        command,
        env=clean_environment(**environment),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


@contextmanager
def listening(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run a daemon; yield it, and the lines that it wrote to stderr, once it listens."""
    process = subprocess.Popen(
        command,
        env=clean_environment(**(environment or {})),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if "listening" in line:
                    break
            else:
                raise AssertionError(f"the daemon never listened, and said: {''.join(lines)}")
            yield process, lines
        finally:
            if process.poll() is None:
                process.kill()
