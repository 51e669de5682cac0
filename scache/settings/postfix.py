"""Values of Postfix's main.cf and master.cf that apply to a connection cache (postconf(5))."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from scache.errors import SettingsError, reason_of
from scache.settings.declarations import SETTINGS
from scache.settings.loading import Given

PARAMETERS: Final = (
    "connection_cache_service_name",
    "connection_cache_status_update_time",
    "connection_cache_ttl_limit",
    "data_directory",
    "mail_owner",
    "max_idle",
    "syslog_facility",
    "syslog_name",
)
"""The parameters that are read."""

DEFAULTS: Final = {
    "connection_cache_service_name": "scache",
    "connection_cache_status_update_time": "600s",
    "connection_cache_ttl_limit": "2s",
    "data_directory": "/var/lib/postfix",
    "mail_owner": "postfix",
    "max_idle": "100s",
    "syslog_facility": "mail",
    "syslog_name": "postfix",
}
"""Postfix's defaults, for a parameter that cannot be read."""

ADOPTED: Final = {
    "ttl_limit": "connection_cache_ttl_limit",
    "status_interval": "connection_cache_status_update_time",
    "max_idle": "max_idle",
}
"""The settings that have the values of parameters of Postfix."""

TIMEOUT = 2.0
"""Seconds to wait for postconf(1), which takes 10 to 25 ms on an idle machine."""

_COMMAND_PATH = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin:/opt/postfix/sbin"
_TIME = re.compile(r"(\d+)([smhdw]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def seconds(text: str) -> float:
    """Return the seconds of a time value such as ``2s``, ``10m`` or ``100`` (postconf(5)).

    Raises ValueError with the end of a sentence if it is not one.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"must be a time such as 100s or 10m, not {text!r}")
    return float(int(match[1]) * _SECONDS[match[2]])


def overrides(options: Iterable[str]) -> dict[str, str]:
    """Return the parameters of the options ``-o name=value`` or ``-o { name = value }``."""
    found = {}
    for option in options:
        name, _, value = option.strip().removeprefix("{").removesuffix("}").partition("=")
        found[name.strip()] = value.strip()
    return found


def adopted(values: Mapping[str, str]) -> tuple[list[Given], list[str]]:
    """Return the values for the settings in ADOPTED, and a warning for each unusable value.

    The default of Postfix replaces an unusable value.
    """
    given, warnings = [], []
    for setting in SETTINGS:
        if (parameter := ADOPTED.get(setting.name)) is None:
            continue
        try:
            value = setting.check(seconds(values[parameter]), parameter)
        except (ValueError, SettingsError) as error:
            text = str(error).removeprefix(f"{parameter} ")
            warnings.append(f"{parameter} {text}: {DEFAULTS[parameter]} is used")
            value = seconds(DEFAULTS[parameter])
        given.append(Given(setting, value, parameter, f"main.cf or -o: {parameter}"))
    return given, warnings


class Postconf:
    """A run of postconf(1) in the background, so that the caller can do other work meanwhile."""

    def __init__(self, configuration: str | None, given: Mapping[str, str]) -> None:
        """Read main.cf in this directory (default: Postfix's own); ``given`` overrides it."""
        command: list[str] = [shutil.which("postconf", path=_COMMAND_PATH) or "postconf", "-x"]
        if configuration:
            command += ["-c", configuration]
        for name, value in given.items():
            command += ["-o", f"{name}={value}"]
        self._process: subprocess.Popen[str] | None = None
        self._error = ""
        try:
            self._process = subprocess.Popen(
                [*command, *PARAMETERS],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="surrogateescape",
            )
        except OSError as error:
            self._error = reason_of(error)

    def finish(self) -> tuple[dict[str, str], list[str]]:
        """Return the parameters, and a warning if they could not be read.

        Parameters that could not be read have their defaults.
        """
        values = dict(DEFAULTS)
        if self._process is not None:
            try:
                output, _ = self._process.communicate(timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
                self._error = f"no answer in {TIMEOUT:g} s"
            else:
                values |= _parse(output.splitlines())
                if self._process.returncode:
                    self._error = f"exit code {self._process.returncode}"
        if not self._error:
            return values, []
        return values, [f"cannot read main.cf with postconf(1) ({self._error}): using defaults"]


def _parse(lines: Sequence[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if equals:
            found[name.strip()] = value.strip()
    return found
