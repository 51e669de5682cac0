"""The subcommands of ``scache``; errors become messages and exit codes here.

Each failure is one line on stderr and an exit code of `scache.errors`. A subcommand is imported
when it is used, and imports its dependencies when it runs.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import cast

import click

from scache.cli.failures import explained
from scache.cli.shell_completion import VARIABLE, answer
from scache.cli.streams import OutputError, echo, guard
from scache.errors import (
    EXIT_FAILURE,
    EXIT_OK,
    EXIT_SETTINGS,
    ResourceError,
)
from scache.escape import one_line
from scache.version import __version__

EXIT_INTERRUPTED = 128 + signal.SIGINT
"""Exit code if input ends at a question; a shell reports the same after Ctrl-C."""

MIN_OPEN_FILES = 10
"""Smallest limit on open files that a command starts with. Reading a database takes 7 descriptors;
with fewer, SQLite says that it cannot open the file, which may be read."""

EPILOG = """\b
Examples:
  scache serve
  scache stats
  scache sql "SELECT * FROM live_connection"
  scache events --follow
  scache serve --help

`scache help` lists the pages of the manual, and `scache help TOPIC` shows one.
"""

COMMANDS = (
    *("serve", "stats", "events", "why", "sql", "dump", "check", "ping", "purge"),
    *("exporter", "unit"),
    *("completion", "help"),
)
"""Names of the subcommands, each a function in the module of the same name."""


class Commands(click.Group):
    """The group of subcommands, which imports only the one that is used."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        """Import and return the subcommand of this name, or None."""
        if name not in COMMANDS:
            return None
        return cast(click.Command, getattr(import_module(f"scache.cli.commands.{name}"), name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the subcommand that the first argument names; raise UsageError for none."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            from scache.cli.naming import no_such

            raise no_such("command", repr(name), COMMANDS)
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Cache live connections for other processes, as Postfix's scache(8) does; look inside."""
    if context.invoked_subcommand != "serve":  # which needs more, and says so itself
        _check_open_files()
    if context.invoked_subcommand is None:
        echo(context.get_help())


def _check_open_files() -> None:
    """Raise ResourceError if the limit on open files is less than MIN_OPEN_FILES."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < MIN_OPEN_FILES:
        raise ResourceError(
            f"only {limit} files may be open, and a command needs {MIN_OPEN_FILES}: "
            "raise the limit (ulimit -n)"
        )


def run() -> int:
    """Run the command line of this process; return its exit code."""
    guard()
    if request := os.environ.get(VARIABLE):
        code = _reported(lambda: answer(request, cli))
    else:
        code = execute(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OutputError as error:
        return _fail(str(error), error.exit_code)
    return code


def execute(arguments: Sequence[str]) -> int:
    """Run one command line; return its exit code. A failure is one line on stderr."""

    def invoke() -> int:
        with cli.make_context("scache", list(arguments)) as context:
            cli.invoke(context)
        return EXIT_OK

    return _reported(invoke)


def _reported(action: Callable[[], int]) -> int:
    try:
        return action()
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        return _fail(_text_of(error), EXIT_SETTINGS)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - every other error becomes a message, too
        return _fail_with(error)


def _text_of(error: click.ClickException) -> str:
    """Return the message; the choices of a missing argument are in one line, too."""
    text = error.format_message()
    return " ".join(text.split()) if isinstance(error, click.MissingParameter) else text


def _fail_with(error: Exception) -> int:
    text, code = explained(error)
    _fail(text, code)
    if code == EXIT_FAILURE and logging.getLogger("scache").isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    return code


def _fail(text: str, code: int) -> int:
    with suppress(OSError):  # stderr may be closed: the exit code is left
        echo(f"scache: {one_line(text)}", err=True)
    return code
