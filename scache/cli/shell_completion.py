"""Completion of command lines in bash, zsh and fish, with the scripts and classes of click.

The script that ``scache completion`` prints runs ``scache`` with `VARIABLE` set at each Tab.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import click

from scache.cli.streams import echo
from scache.errors import EXIT_FAILURE, EXIT_OK, SettingsError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

SHELLS: Final = ("bash", "zsh", "fish")

VARIABLE: Final = "_SCACHE_COMPLETE"
"""The variable with the request of a shell: ``bash_source``, ``bash_complete`` and so on."""

_PROGRAM = "scache"


def script(shell: str, cli: click.Command) -> str:
    """Return the script that makes a shell complete the command lines of scache."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, f"click does not know {shell}"
    completion = kind(cli, {}, _PROGRAM, VARIABLE)
    return completion.source_template % completion.source_vars()


def answer(request: str, cli: click.Command) -> int:
    """Write what a shell asks for in `VARIABLE`; return the exit code.

    Raises SettingsError for an unknown request.
    """
    from click.shell_completion import shell_complete

    shell, _, what = request.partition("_")
    if shell not in SHELLS or what not in ("source", "complete"):
        raise SettingsError(
            f"{VARIABLE} must not be {request!r}: unset it, and see `scache completion --help`"
        )
    if what == "source":
        echo(script(shell, cli), nl=False)
        return EXIT_OK
    try:
        return shell_complete(cli, {}, _PROGRAM, VARIABLE, request)
    except Exception:  # noqa: BLE001 - a message would appear inside the line that is being typed
        return EXIT_FAILURE


def files(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete the name of a file."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def words(choices: Callable[[], Iterable[str]]) -> Completer:
    """Return a function that completes words that ``choices`` returns."""

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(word) for word in choices() if word.startswith(incomplete)]

    return complete
