"""Loading of settings from the command line, the environment and a configuration file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from scache.errors import SettingsError, reason_of
from scache.settings.classes import KEY
from scache.settings.declarations import CLASS_TABLES, RETIRED, SETTINGS, Setting, Settings
from scache.unix.paths import open_ours

CONFIG_VARIABLE = "SCACHE_CONFIG"
"""The variable with the path of the configuration file; the same as the option ``--config``."""

DEFAULT = "default"

_VARIABLE_PREFIX = "SCACHE_"

RETIRED_OPTIONS: Final = {name: "--" + name.replace("_", "-") for name in RETIRED}
"""The options of retired settings, by name."""


class Given(NamedTuple):
    """A value that was given for a setting."""

    setting: Setting | None
    """The setting; None for a retired one."""
    value: object
    spelled: str
    """The name of the setting in the source, with which error messages begin."""
    origin: str
    """The source of the value, as ``--show-config`` prints it."""


class Sourced(NamedTuple):
    """The settings, and the source of each value."""

    settings: Settings
    origins: Mapping[str, str]
    """The source of each value, by the name of the setting."""
    retired: Sequence[str]
    """The names of the given retired settings, as spelled in their sources."""


def gather(*sources: Iterable[Given]) -> Sourced:
    """Return the settings from these sources; a later source overrides an earlier one.

    Raises SettingsError for any invalid value, even if another source would override it.
    """
    values: dict[str, Any] = {}
    origins = {setting.name: DEFAULT for setting in (*SETTINGS, CLASS_TABLES)}
    retired = []
    for setting, value, spelled, origin in chain(*sources):
        if setting is None:
            retired.append(spelled)
            continue
        values[setting.name] = setting.check(value, spelled)
        origins[setting.name] = origin
    return Sourced(Settings(**values), origins, retired)


def from_command_line(options: Mapping[str, str | bool | None]) -> Iterator[Given]:
    """Yield the values of the command-line options; None means that an option was not given."""
    for setting in SETTINGS:
        value = options[setting.name]
        if isinstance(value, str):
            yield Given(setting, setting.kind.read(value), setting.option, "command line")
        elif value is not None:
            yield Given(setting, value, setting.option, "command line")
    for name, option in RETIRED_OPTIONS.items():
        if options[name] is not None:
            yield Given(None, options[name], option, "command line")


def from_environment(environment: Mapping[str, str]) -> Iterator[Given]:
    """Yield the values of the ``SCACHE_*`` variables; raise SettingsError for an unknown one."""
    known = {setting.variable: setting for setting in SETTINGS}
    retired = [_VARIABLE_PREFIX + name.upper() for name in RETIRED]
    for variable in environment:
        if not variable.startswith(_VARIABLE_PREFIX):
            continue
        if variable == CONFIG_VARIABLE:
            if not environment[variable]:
                raise SettingsError(f"{variable} must be a path, not ''")
            continue
        if variable in retired:
            yield Given(None, environment[variable], variable, "environment")
            continue
        if variable not in known:
            hint = did_you_mean(variable, [*known, CONFIG_VARIABLE])
            raise SettingsError(f"there is no environment variable {variable}{hint}")
        setting = known[variable]
        value = setting.kind.read(environment[variable])
        yield Given(setting, value, variable, f"environment variable {variable}")


def from_file(path: Path | None) -> Iterator[Given]:
    """Yield the values of a configuration file (TOML); raise SettingsError for an unknown key."""
    if path is None:
        return
    known = {setting.name: setting for setting in SETTINGS}
    for key, value in _read_toml(path).items():
        if key == KEY:
            yield Given(CLASS_TABLES, value, f"{path}: {key}", f"file {path}")
            continue
        if isinstance(value, dict) or (isinstance(value, list) and _has_tables(value)):
            raise SettingsError(
                f"{path}: [{key}] is a table, but a configuration file has no tables except "
                f"[[{KEY}]]: write each setting on a line of its own, such as ttl_limit = 60"
            )
        if key in RETIRED:
            yield Given(None, value, f"{path}: {key}", f"file {path}")
            continue
        if key not in known:
            raise SettingsError(f"{path}: there is no setting {key!r}{did_you_mean(key, known)}")
        # Text has the form of an argument with these bytes, because it may be a path.
        given = os.fsdecode(value.encode()) if isinstance(value, str) else value
        yield Given(known[key], given, f"{path}: {key}", f"file {path}")


def _has_tables(values: list[object]) -> bool:
    return any(isinstance(value, dict) for value in values)


def _read_toml(path: Path) -> dict[str, object]:
    import tomllib

    try:
        with os.fdopen(open_ours(str(path)), encoding="utf-8") as file:
            return tomllib.loads(file.read())
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {reason_of(error)}") from None
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8
        raise SettingsError(f"{path}: is not TOML: {error}") from None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that suggests a similar known name; empty if there is none.

    Case does not matter.
    """
    import difflib

    by_folded = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return f", did you mean {by_folded[close[0]]}?" if close else ""
