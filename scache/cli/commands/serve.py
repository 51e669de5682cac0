"""``scache serve``: the daemon in the foreground."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from scache.cli.daemon_log import start_logging
from scache.escape import one_line
from scache.settings.declarations import SETTINGS
from scache.settings.loading import (
    CONFIG_VARIABLE,
    RETIRED_OPTIONS,
    Sourced,
    from_command_line,
    from_environment,
    from_file,
    gather,
)
from scache.settings.values import COUNT, POSITIVE_COUNT, SWITCH

EPILOG = """Each option is also an environment variable (--ttl-limit is SCACHE_TTL_LIMIT)
and a key of the configuration file, which is TOML (ttl_limit = 60). The
command line goes before the environment, and that before the file.

\b
Examples:
  scache serve
  scache serve --database /var/lib/scache/cache.db --max-idle 0
  scache serve --socket /var/spool/postfix/private/scache-sql --user postfix \\
      --on-data close --database /var/lib/postfix/scache.db --max-idle 0
  scache serve --config /etc/scache.toml --show-config
"""

Command = Callable[..., None]

logger = logging.getLogger(__name__)

_NUMBERS = (COUNT, POSITIVE_COUNT)


def settings_options(command: Command) -> Command:
    """Give a command an option for each setting, as text or None under the setting's name."""
    for setting in reversed(SETTINGS):
        text = f"{setting.help}  [default: {setting.default}]"
        if setting.kind is SWITCH:
            names = f"{setting.option}/--no-{setting.option.removeprefix('--')}"
            option = click.option(names, setting.name, default=None, help=text)
        else:
            option = click.option(
                setting.option, setting.name, metavar=setting.kind.metavar, help=text
            )
        command = option(command)
    for name, spelled in RETIRED_OPTIONS.items():
        command = click.option(spelled, name, hidden=True)(command)
    return command


@click.command(epilog=EPILOG)
@settings_options
@click.option(
    "--config",
    metavar="FILE",
    envvar=CONFIG_VARIABLE,
    type=click.Path(path_type=Path),
    help="Read settings from this file.",
)
@click.option("--show-config", is_flag=True, help="Say each value and where it came from; exit.")
@click.pass_context
def serve(
    context: click.Context,
    /,
    *,
    config: Path | None,
    show_config: bool,
    **options: Any,  # noqa: ANN401 - str or None, bool for a switch
) -> None:
    """Run the daemon in the foreground.

    It ends when it is told to (SIGTERM, SIGINT), or when no client has been
    connected for the time that --max-idle says.
    """
    sourced = gather(
        from_file(config),
        from_environment(os.environ),
        from_command_line(options),
    )
    retired = "ignoring %s: this setting was removed; take it out"
    named = ", ".join(map(one_line, sourced.retired))
    if show_config:
        if named:
            click.echo(f"scache: warning: {retired % named}", err=True)
        click.echo(describe(sourced))
        return
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a peer that has gone is nothing to die of
    start_logging(sourced.settings.log_level)
    if named:
        logger.warning(retired, named)
    gc.disable()  # there is nothing to collect until it serves, when it is enabled again

    from scache.daemon import run

    context.exit(run(sourced.settings))


def describe(sourced: Sourced) -> str:
    """Return the settings as a configuration file, with the target of each in a comment."""
    import json

    lines = {}
    for setting in SETTINGS:
        value = getattr(sourced.settings, setting.name)
        text = setting.kind.write(value)
        if not isinstance(value, bool | float) and setting.kind not in _NUMBERS:
            text = json.dumps(text, ensure_ascii=False)  # TOML quotes as JSON does
        lines[f"{setting.name} = {text}"] = one_line(sourced.origins[setting.name])
    width = max(map(len, lines))
    return "\n".join(f"{line:{width}}  # {target}" for line, target in lines.items())
