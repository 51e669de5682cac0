"""``scache-master``: the daemon as a service of Postfix's master(8), in the place of scache(8)."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from scache.cli.commands.serve import settings_options
from scache.cli.daemon_log import log_to, occupy_standard_descriptors
from scache.cli.mail_log import drain, mail_log
from scache.errors import EXIT_FAILURE, EXIT_OK, ScacheError, SettingsError
from scache.settings.declarations import SETTINGS
from scache.settings.loading import Given, from_command_line, from_file, gather
from scache.settings.postfix import DEFAULTS, Postconf, adopted, overrides

DATABASE = "scache.db"
"""The name of the default database file in Postfix's data_directory."""

_DECIDED_BY_MASTER = ("socket", "socket_mode", "socket_owner", "user")
"""Settings that do not apply, because master(8) makes the socket and main.cf names the user."""

logger = logging.getLogger(__name__)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-l", "single", is_flag=True, hidden=True)
@click.option("-n", "service", default="scache", hidden=True)
@click.option("-t", "transport", default="unix", hidden=True)
@click.option("-u", "unprivileged", is_flag=True, hidden=True)
@click.option("-c", "chroot", is_flag=True, hidden=True)
@click.option("-v", "verbose", count=True, hidden=True)
@click.option("-o", "overridden", metavar="NAME=VALUE", multiple=True, help="A main.cf parameter.")
@click.option("--config", metavar="FILE", type=click.Path(path_type=Path), help="Settings (TOML).")
@settings_options
def command(**options: Any) -> Any:  # noqa: ANN401 - the options, as click has parsed them
    """Run as a service of Postfix's master(8), which passes the options -l, -n, -t and -u.

    The parameters of main.cf and -o in master.cf apply. Settings of `scache serve` are options
    of one word each behind --, such as -- --database=FILE.
    """
    return options


def main() -> int:
    """Run the daemon for master(8); return the exit code.

    The exit code is 1 if the daemon cannot start. master(8) waits for a minute before it starts
    a service again that has ended with it, so this is only for mistakes in master.cf.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    occupy_standard_descriptors()
    log_to(mail_log(os.environ, os.environ.get("MAIL_LOGTAG") or DEFAULTS["syslog_name"]), "info")
    try:
        # postconf(1) takes the "o" of an option for -o, and edits it, unless it is behind --.
        arguments = [argument for argument in sys.argv[1:] if argument != "--"]
        options = command.main(arguments, "scache-master", standalone_mode=False)
        return _serve(options) if isinstance(options, dict) else EXIT_OK  # EXIT_OK: --help
    except click.ClickException as error:
        logger.critical("%s", error.format_message())
    except ScacheError as error:
        logger.critical("%s", error)
    except Exception as error:
        logger.critical("unforeseen error, please report it", exc_info=error)
    finally:
        drain()
    return EXIT_FAILURE


def _serve(options: dict[str, Any]) -> int:
    given = overrides(options["overridden"])
    postconf = Postconf(os.environ.get("MAIL_CONFIG"), given)
    gc.disable()  # as in `scache serve`

    from scache.daemon import Launch, run
    from scache.daemon.postfix_master import LISTENING_DESCRIPTOR, PostfixMaster, generation_of
    from scache.unix.activation import inherited_socket

    values, warning = postconf.finish()
    handler = mail_log(os.environ, values["syslog_name"], values["syslog_facility"])
    from_postfix, unusable = adopted(values)
    mistakes = [*_mistakes(options, values["connection_cache_service_name"])]
    options |= dict.fromkeys(_DECIDED_BY_MASTER)
    sourced = gather(
        [*_defaults(values), *from_postfix],
        from_file(options["config"]),
        from_command_line(options),
    )
    log_to(handler, "debug" if options["verbose"] else sourced.settings.log_level)
    retired = [f"{spelled} is ignored: this setting was removed" for spelled in sourced.retired]
    if sourced.settings.log_format != "text":
        mistakes.append("log_format = json is ignored: the log of Postfix has lines of text")
    for text in (*warning, *unusable, *mistakes, *retired):
        logger.warning("%s", text)
    if not options["single"]:
        raise SettingsError(
            "master.cf lets several processes serve this socket, and they would not share "
            "connections: set the process limit (maxproc) of the service to 1"
        )
    master = PostfixMaster(generation_of(os.environ.get("GENERATION", "")))
    launch = Launch(master, inherited_socket(LISTENING_DESCRIPTOR), memory_on_fault=True)
    return run(sourced.settings, launch)


def _defaults(values: Mapping[str, str]) -> Iterator[Given]:
    """Yield the defaults that differ from those of `scache serve`."""
    defaults = {
        "database": str(Path(values["data_directory"], DATABASE)),
        "on_data": "close",
        "user": values["mail_owner"],
    }
    for setting in SETTINGS:
        if setting.name in defaults:
            yield Given(setting, defaults[setting.name], setting.name, "scache-master")


def _mistakes(options: Mapping[str, Any], used: str) -> Iterator[str]:
    """Yield warnings about entries of master.cf and main.cf that do not do what they seem to."""
    if options["chroot"]:
        yield "master.cf says chroot, which is ignored: set it to n"
    if used != options["service"]:
        yield (
            f"main.cf says connection_cache_service_name = {used}, so smtp(8) does not use this "
            f"service, {options['service']}: remove that parameter, or give the service its name"
        )
    for name in _DECIDED_BY_MASTER:
        if options[name] is not None:
            yield f"--{name.replace('_', '-')} is ignored: master(8) decides it"
