"""``scache serve``: run the daemon in the foreground."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scache.cli.daemon_log import start_logging
from scache.cli.shell_completion import files, words
from scache.cli.streams import echo
from scache.escape import one_line
from scache.settings.declarations import CLASS_TABLES, SETTINGS
from scache.settings.loading import (
    CONFIG_VARIABLE,
    DEFAULT,
    RETIRED_OPTIONS,
    Sourced,
    from_command_line,
    from_environment,
    from_file,
    gather,
)
from scache.settings.reloading import AT_START
from scache.settings.values import COUNT, FILE_NAME, POSITIVE_COUNT, SOCKET_PATH, SWITCH, Kind

if TYPE_CHECKING:
    from scache.cli.shell_completion import Completer

EPILOG = """Each option is also an environment variable (--ttl-limit is SCACHE_TTL_LIMIT)
and a key of the configuration file, which is TOML (ttl_limit = 60). An option
wins over the variable, and the variable over the file.

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
    """Add an option for each setting to a command, which gets its text or None."""
    for setting in reversed(SETTINGS):
        text = f"{setting.help}  [default: {setting.default}]"
        if setting.kind is SWITCH:
            names = f"{setting.option}/--no-{setting.option.removeprefix('--')}"
            option = click.option(names, setting.name, default=None, help=text)
        else:
            option = click.option(
                setting.option,
                setting.name,
                metavar=setting.kind.metavar,
                shell_complete=_completer(setting.kind),
                help=text,
            )
        command = option(command)
    for name, spelled in RETIRED_OPTIONS.items():
        command = click.option(spelled, name, hidden=True)(command)
    return command


def _completer(kind: Kind) -> Completer | None:
    """Return the function that completes values of this type in a shell."""
    if kind in (SOCKET_PATH, FILE_NAME):
        return files
    return words(lambda: kind.choices) if kind.choices else None


@click.command(epilog=EPILOG)
@settings_options
@click.option(
    "--config",
    metavar="FILE",
    envvar=CONFIG_VARIABLE,
    type=click.Path(path_type=Path),
    help="TOML file with settings.",
)
@click.option("--show-config", is_flag=True, help="Print each value and its source; exit.")
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

    It stops at SIGTERM and SIGINT, and after --max-idle seconds without a client.
    """

    def read() -> Sourced:
        return gather(
            from_file(config),
            from_environment(os.environ),
            from_command_line(options),
        )

    sourced = read()
    retired = "ignoring %s: this setting was removed; take it out"
    named = ", ".join(map(one_line, sourced.retired))
    if show_config:
        if named:
            echo(f"scache: warning: {retired % named}", err=True)
        echo(describe(sourced))
        return
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # writing to a closed socket is an error, no end
    start_logging(sourced.settings.log_level, sourced.settings.log_format)
    if named:
        logger.warning(retired, named)
    gc.disable()  # faster start; the daemon enables it when it serves

    from scache.daemon import Launch, Supervisor, run
    from scache.daemon.systemd import systemd
    from scache.unix.activation import activated_socket

    activated = activated_socket(os.environ)
    if activated is not None:
        _warn_of_another_socket(sourced, activated.getsockname())
    launch = Launch(
        systemd(os.environ) or Supervisor(),
        activated,
        reread=lambda: read().settings,
    )
    context.exit(run(sourced.settings, launch))


def _warn_of_another_socket(sourced: Sourced, passed: str) -> None:
    """Log a warning if the supervisor passed another socket than the settings name."""
    wanted = sourced.settings.socket
    given = sourced.origins["socket"] != DEFAULT
    if given and os.path.realpath(wanted) != os.path.realpath(passed):
        logger.warning(
            "socket = %s is ignored, because the supervisor passed %s: remove or change its "
            "socket unit",
            one_line(os.fspath(wanted)),
            one_line(passed),
        )


def describe(sourced: Sourced) -> str:
    """Return the settings as a configuration file, with the source of each in a comment.

    The comment also says which settings SIGHUP does not change.
    """
    import json

    lines = {}
    for setting in SETTINGS:
        value = getattr(sourced.settings, setting.name)
        text = setting.kind.write(value)
        if not isinstance(value, bool | float) and setting.kind not in _NUMBERS:
            text = json.dumps(text, ensure_ascii=False)  # TOML quotes as JSON does
            # TOML cannot hold bytes that are not UTF-8, so they are shown as \xff.
            text = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
        source = one_line(sourced.origins[setting.name])
        if setting.name in AT_START:
            source += "; read at the start only"
        lines[f"{setting.name} = {text}"] = source
    width = max(map(len, lines))
    text = "\n".join(f"{line:{width}}  # {source}" for line, source in lines.items())
    if sourced.settings.classes:
        text += f"\n# {one_line(sourced.origins[CLASS_TABLES.name])}\n"
        text += CLASS_TABLES.kind.write(sourced.settings.classes)
    return text
