"""The types of settings: checks of values, and conversion from and to text.

A check returns the value of a setting. It raises ValueError with a text that follows the name of
the setting, such as "must be a path, not 5".
"""

from __future__ import annotations

import contextlib
import grp
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeGuard, get_args

from scache.settings.classes import check_classes, write_classes
from scache.unix.namespace import UNCHANGED

OnData = Literal["keep", "close"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
OnCorrupt = Literal["set-aside", "refuse"]

MAX_SECONDS: Final = 1_000_000_000
"""The longest time of a setting, about thirty years. It is low enough for sums of times."""

MAX_COUNT: Final = 1_000_000_000
"""The largest count of a setting."""

_ID_DIGITS = 10

_ANY, _NONE = "any", "none"
"""The words for an empty list: all users or groups are permitted, or none is."""

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


def _refusal(allowed: str, value: object) -> ValueError:
    return ValueError(f"must be {allowed}, not {value!r}")


# Numbers


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Both ranges also refuse nan, because every comparison with nan is false.
def _positive_seconds(value: object) -> float:
    if _is_number(value) and 0 < value <= MAX_SECONDS:
        return float(value)
    raise _refusal(f"a number of seconds above 0 and at most {MAX_SECONDS}", value)


def _seconds_or_never(value: object) -> float:
    if _is_number(value) and 0 <= value <= MAX_SECONDS:
        return float(value)
    raise _refusal(f"a number of seconds from 0 (never) to {MAX_SECONDS}", value)


def _number_in(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def _write_number(number: float) -> str:
    return repr(number).removesuffix(".0")


def _count(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT:
        return value
    raise _refusal(f"a whole number from 0 to {MAX_COUNT}", value)


def _positive_count(value: object) -> int:
    if value != 0:
        return _count(value)
    raise _refusal(f"a whole number from 1 to {MAX_COUNT}", value)


def _count_in(text: str) -> object:
    return int(text) if text.isdecimal() and len(text) <= _ID_DIGITS else text


# Paths and modes


def _socket_path(value: object) -> Path:
    if isinstance(value, str) and value.startswith("@"):
        raise ValueError(
            f"must be a path, not {value!r}: an abstract socket has no file mode, so any user "
            f"could take connections from it; a file of that name is './{value}'"
        )
    return Path(_file_name(str(value) if isinstance(value, Path) else value))


def _file_name(value: object) -> str:
    if isinstance(value, str) and value and "\0" not in value:
        return value
    raise _refusal("a path", value)


def _mode(value: object) -> int:
    mode = _octal_in(value) if isinstance(value, str) else value
    if isinstance(mode, int) and not isinstance(mode, bool) and 0 <= mode <= 0o777:
        return mode
    raise _refusal('an octal mode from 0000 to 0777, such as "0660"', value)


def _octal_in(text: str) -> int | None:
    try:
        return int(text, 8)
    except ValueError:
        return None


# Users and groups


def user_id(user: str) -> int:
    """Return the uid of a user, given by name or number; raise ValueError if there is none."""
    return _id_of(user, "user", lambda name: pwd.getpwnam(name).pw_uid)


def group_id(group: str) -> int:
    """Return the gid of a group, given by name or number; raise ValueError if there is none."""
    return _id_of(group, "group", lambda name: grp.getgrnam(name).gr_gid)


def _id_of(name: str, kind: str, look_up: Callable[[str], int]) -> int:
    with contextlib.suppress(KeyError, ValueError):  # ValueError: not a possible name
        return look_up(name)
    # A number needs no entry in the user database. The highest one means "unchanged" to chown(2).
    if name.isdecimal() and len(name) <= _ID_DIGITS and int(name) < 2**32 - 1:
        return int(name)
    raise ValueError(f"names a {kind} that does not exist: {name!r}")


def owner_ids(owner: str | None) -> tuple[int, int]:
    """Return the uid and gid of ``USER[:GROUP]``, interpreted as by chown(1).

    UNCHANGED stands for a user or group that is not given.
    """
    if owner is None:
        return UNCHANGED, UNCHANGED
    user, colon, group = owner.partition(":")
    uid = user_id(user)
    return uid, group_id(group) if colon else UNCHANGED


def _owner(value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _refusal("USER or USER:GROUP", value)
    owner_ids(value)
    return value


def _names(
    value: object, what: str, look_up: Callable[[str], int], unlisted: str
) -> tuple[str, ...]:
    """Return the names or numbers in a list or a comma-separated text; check that they exist.

    ``unlisted`` is the word for an empty list. Text without names is refused, because it may come
    from an unset variable and would permit all users.
    """
    if value in ((), unlisted):
        return ()
    parts = value.split(",") if isinstance(value, str) else value
    listed = parts if isinstance(parts, list | tuple) else ()
    names = tuple(name for part in listed if (name := str(part).strip()))
    if not names:
        raise _refusal(f'{what}, names or numbers, with commas in between, or "{unlisted}"', value)
    for name in names:
        look_up(name)
    return names


# Switches and words


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _refusal("true or false", value)


def _truth_in(text: str) -> object:
    word = text.lower()
    return word in _TRUE if word in _TRUE + _FALSE else text


def _choice(value: object, choices: tuple[str, ...]) -> str:
    if value in choices:
        return str(value)
    raise _refusal(f"one of {', '.join(choices)}", value)


# Kinds


def _text_in(text: str) -> object:
    return text


class Kind(NamedTuple):
    """A type of setting: its name in the help, the check, and the conversion from and to text."""

    metavar: str
    check: Callable[[object], object]
    """Return the value of the field, or raise ValueError with the end of a sentence."""
    read: Callable[[str], object] = _text_in
    """Convert text to the argument of `check`; return invalid text unchanged."""
    write: Callable[[Any], str] = str
    """Convert the value of a field to text that `read` and `check` accept."""
    choices: tuple[str, ...] = ()
    """The allowed words, if there are only some."""


def _names_kind(what: str, look_up: Callable[[str], int], unlisted: str) -> Kind:
    return Kind(
        what.upper(),
        lambda value: _names(value, what, look_up, unlisted),
        write=lambda names: ",".join(names) or unlisted,
    )


def _choice_kind(metavar: str, choices: object) -> Kind:
    words = get_args(choices)
    return Kind(metavar, lambda value: _choice(value, words), choices=words)


POSITIVE_SECONDS = Kind("SECONDS", _positive_seconds, _number_in, _write_number)
SECONDS_OR_NEVER = Kind("SECONDS", _seconds_or_never, _number_in, _write_number)
COUNT = Kind("COUNT", _count, _count_in)
POSITIVE_COUNT = Kind("COUNT", _positive_count, _count_in)
SOCKET_PATH = Kind("PATH", _socket_path)
FILE_NAME = Kind("PATH", _file_name)
MODE = Kind("OCTAL", _mode, write=lambda mode: f"{mode:04o}")
OWNER = Kind("USER[:GROUP]", _owner, write=lambda owner: owner or "")
ALLOWED_USERS, ADMIN_USERS = (_names_kind("users", user_id, word) for word in (_ANY, _NONE))
ALLOWED_GROUPS, ADMIN_GROUPS = (_names_kind("groups", group_id, word) for word in (_ANY, _NONE))
SWITCH = Kind("BOOLEAN", _switch, _truth_in, lambda switch: str(switch).lower())
ON_CORRUPT = _choice_kind("ACTION", OnCorrupt)
ON_DATA = _choice_kind("ACTION", OnData)
CLASSES = Kind("TABLES", check_classes, write=write_classes)
LOG_LEVEL = _choice_kind("LEVEL", LogLevel)
LOG_FORMAT = _choice_kind("FORMAT", LogFormat)
