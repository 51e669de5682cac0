"""Terminal sessions as the README shows them, run again and compared."""

from __future__ import annotations

import re
import select
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, Self

from tests.support.commands import clean_environment, default_signals
from tests.support.terminal import on_terminal
from tests.support.wire import DEADLINE

DEMO_SOCKET = "/tmp/demo.sock"
DEMO_PORT = "8025"
"""The socket and the port in the sessions of the README."""

PYTHON = Path(sys.executable).with_name("python3")
"""The interpreter of the tests, by the name that the audit log shows in the README."""

_HEREDOC = re.compile(r"<<'(\w+)'")
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")

_VOLATILE = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"), "<time>"),
    (re.compile(r"\d{4}-\d\d-\d\d"), "<date>"),
    (re.compile(r"\d\d:\d\d:\d\d\.\d{3}"), "<time>"),
    (re.compile(r"\b\d+\.\d+s?\b"), "<number>"),
    (re.compile(r"(?<=\[)\d+(?=\])|(?<=process )\d+|(?<=at local port )\d+"), "<id>"),
    (re.compile(r"─+"), "─"),
    (re.compile(r" +"), " "),
)
"""Values that differ from run to run, and the widths of columns, which depend on them."""


class Step(NamedTuple):
    """A command of a session and its output."""

    command: str
    shown: str


def steps(session: str) -> Iterator[Step]:
    """Yield the commands of a session: lines that begin with a dollar sign, and here-documents."""
    lines = session.splitlines()
    while lines:
        command = lines.pop(0)
        assert command.startswith("$ "), command
        command = command[2:]
        if end := _HEREDOC.search(command):
            while not command.endswith(f"\n{end[1]}"):
                command += f"\n{lines.pop(0)}"
        shown = []
        while lines and not lines[0].startswith("$ "):
            shown.append(lines.pop(0))
        yield Step(command, "\n".join(shown))


def lasting(shown: str) -> list[str]:
    """Return the lines of an output, with names in place of values that differ from run to run."""
    for pattern, name in _VOLATILE:
        shown = pattern.sub(name, shown)
    return [line.rstrip() for line in shown.splitlines()]


class Shell:
    """A shell that runs sessions one after another, and kills their background jobs at the end."""

    def __init__(self, directory: Path, names: Mapping[str, str], python: Path) -> None:
        """Replace the ``names`` (paths, ports) in a session; find scache in ``python``.

        Shims in the directory stand for both commands.
        """
        self._names = names
        self._environment: dict[str, str] = {}
        self._background: list[subprocess.Popen[str]] = []
        self._shims = directory / "bin"
        self._shims.mkdir()
        for name, command in ("python3", f"{python}"), ("scache", f"{python} -m scache"):
            shim = self._shims / name
            shim.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            shim.chmod(0o755)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as ending:
            for process in self._background:
                ending.enter_context(process)
                process.kill()

    def run(self, session: str) -> list[str]:
        """Run a session; return what each command has shown.

        Raises AssertionError if the output differs from the session.
        """
        outcomes = []
        for command, shown in steps(session):
            outcome = self._run(self._replaced(command), shown.count("\n") + 1)
            for ours, theirs in self._names.items():
                outcome = outcome.replace(theirs, ours)
            assert lasting(outcome) == lasting(shown), f"{command}\n{outcome}"
            outcomes.append(outcome)
        return outcomes

    def _run(self, command: str, lines: int) -> str:
        words = shlex.split(command.split("\n")[0])
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            self._environment[name] = value
            return ""
        if words[-1] == "&":
            return self._start(command.removesuffix("&"), lines)
        path = self._variables()
        with on_terminal("sh", "-c", command, columns=80, **path) as terminal:
            return _ESCAPE.sub("", terminal.read_to_end()).replace("\r\n", "\n").rstrip("\n")

    def _start(self, command: str, lines: int) -> str:
        """Start a command in the background, and wait for its first lines; return them."""
        with default_signals():
            process = subprocess.Popen(
                ["sh", "-c", f"exec {command}"],
                env=clean_environment(**self._variables()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                bufsize=1,
            )
        self._background.append(process)
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], DEADLINE)[0], command
        return "".join(process.stdout.readline() for _ in range(lines)).rstrip("\n")

    def _variables(self) -> dict[str, str]:
        return {"PATH": f"{self._shims}:/usr/bin:/bin", **self._environment}

    def _replaced(self, command: str) -> str:
        for ours, theirs in self._names.items():
            command = command.replace(ours, theirs)
        return command


@contextmanager
def demonstration(directory: Path, python: Path = PYTHON) -> Iterator[Shell]:
    """Yield a shell in which the sessions of the README have a port and a socket of their own.

    The path is short, because `scache stats` shortens its lines to the width of the terminal.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with TemporaryDirectory(prefix="scache-test-") as name:
        names = {DEMO_SOCKET: f"{name}/s", DEMO_PORT: port}
        with Shell(directory, names, python) as shell:
            yield shell
