"""``scache completion``: print the completion script of a shell."""

from __future__ import annotations

import click

from scache.cli.shell_completion import SHELLS, script
from scache.cli.streams import echo

EPILOG = """\b
Examples:
  eval "$(scache completion bash)"                # in ~/.bashrc
  eval "$(scache completion zsh)"                 # in ~/.zshrc, below compinit
  scache completion fish > ~/.config/fish/completions/scache.fish
"""


@click.command(epilog=EPILOG)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, /, *, shell: str) -> None:
    """Print the script of command completion for a shell.

    The directory of the command scache must be in PATH.
    """
    echo(script(shell, context.find_root().command), nl=False)
