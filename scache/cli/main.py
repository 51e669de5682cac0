"""The subcommands of ``scache``, and the one place where errors become text.

Whatever goes wrong is one line on stderr and an exit code of `scache.errors`.
A subcommand is imported when it is wanted, and imports what it needs when it runs.
"""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import cast

import click

from scache.cli.streams import OutputError, guard
from scache.errors import EXIT_FAILURE, EXIT_OK, EXIT_SETTINGS, ScacheError
from scache.escape import one_line
from scache.version import __version__

EXIT_INTERRUPTED = 128 + signal.SIGINT
"""The exit code of a question that is not answered; a shell reports the same after Ctrl-C."""

EPILOG = """\b
Examples:
  scache serve
  scache stats
  scache sql "SELECT * FROM live_connection"
  scache events --follow
  scache serve --help

`scache help` lists the pages of the manual, and `scache help TOPIC` shows one.
"""

COMMANDS = ("serve", "stats", "events", "sql", "dump", "check", "purge", "help")
"""Each is a function in the module of its name."""


class Commands(click.Group):
    """The subcommands: whoever runs one does not wait for the others to be imported."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Return their names, as the help lists them."""
        return list(COMMANDS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        """Return the one of this name."""
        if name not in COMMANDS:
            return None
        return cast(click.Command, getattr(import_module(f"scache.cli.commands.{name}"), name))


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Keep live connections for other processes, as Postfix's scache(8) does; look inside."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def run() -> int:
    """Run the command that the process was started with; return its exit code."""
    guard()
    code = execute(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OutputError as error:
        return _fail(str(error), error.exit_code)
    return code


def execute(arguments: Sequence[str]) -> int:
    """Run one command line; return its exit code, having said in one line what went wrong."""
    try:
        with cli.make_context("scache", list(arguments)) as context:
            cli.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        return _fail(error.format_message(), EXIT_SETTINGS)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last line of defence
        return _fail_with(error)
    return EXIT_OK


def _fail_with(error: Exception) -> int:
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # what a task group wrapped
    if isinstance(error, ScacheError):
        return _fail(str(error), error.exit_code)
    code = _fail(f"unforeseen {type(error).__name__}: {error} (please report it)", EXIT_FAILURE)
    if logging.getLogger("scache").isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    return code


def _fail(text: str, code: int) -> int:
    with suppress(OSError):  # where stderr takes nothing, the code says it all
        click.echo(f"scache: {one_line(text)}", err=True)
    return code
