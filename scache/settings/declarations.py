"""The settings of the daemon: meaning, allowed values and defaults.

`Settings` declares each setting once. The command-line options, the environment variables, the
keys of the configuration file, the output of ``--show-config`` and the settings page of the manual
are derived from its fields.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeGuard

from scache.errors import SettingsError

OnData = Literal["keep", "close"]
ON_DATA_CHOICES: Final = ("keep", "close")

LogLevel = Literal["debug", "info", "warning", "error"]
LOG_LEVELS: Final = ("debug", "info", "warning", "error")

OnCorrupt = Literal["set-aside", "refuse"]
ON_CORRUPT: Final = ("set-aside", "refuse")

MAX_SECONDS: Final = 1_000_000_000
"""The longest time of a setting, about thirty years. It is low enough for sums of times."""

MAX_COUNT: Final = 1_000_000_000
"""The largest count of a setting."""

UNCHANGED: Final = -1
"""The id that tells chown(2) to leave an owner or group unchanged."""

_ID_DIGITS = 10

_ANY, _NONE = "any", "none"
"""The words for an empty list: all users or groups are permitted, or none is."""

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


def default_socket() -> Path:
    """Return the default socket path, which is different for root and for each user."""
    uid = os.geteuid()
    if uid == 0:
        return Path("/run/scache/scache.sock")
    runtime_directory = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime_directory.startswith("/"):  # XDG requires that a relative path is ignored
        return Path(runtime_directory, "scache.sock")
    return Path(f"/tmp/scache-{uid}/scache.sock")


def _refusal(allowed: str, value: object) -> ValueError:
    return ValueError(f"must be {allowed}, not {value!r}")


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


def _count(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT:
        return value
    raise _refusal(f"a whole number from 0 to {MAX_COUNT}", value)


def _positive_count(value: object) -> int:
    if value != 0:
        return _count(value)
    raise _refusal(f"a whole number from 1 to {MAX_COUNT}", value)


def _path(value: object) -> Path:
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


def _owner(value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _refusal("USER or USER:GROUP", value)
    _owner_ids(value)
    return value


def _owner_ids(owner: str) -> tuple[int, int]:
    """Return the uid and gid of ``USER[:GROUP]``, interpreted as by chown(1)."""
    user, colon, group = owner.partition(":")
    uid = _uid(user)
    return uid, _gid(group) if colon else UNCHANGED


def _id_of(name: str, kind: str, look_up: Callable[[str], int]) -> int:
    with contextlib.suppress(KeyError, ValueError):  # ValueError: not a possible name
        return look_up(name)
    # A number needs no entry in the user database. The highest one means "unchanged" to chown(2).
    if name.isdecimal() and len(name) <= _ID_DIGITS and int(name) < 2**32 - 1:
        return int(name)
    raise ValueError(f"names a {kind} that does not exist: {name!r}")


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


def _uid(user: str) -> int:
    return _id_of(user, "user", lambda name: pwd.getpwnam(name).pw_uid)


def _gid(group: str) -> int:
    return _id_of(group, "group", lambda name: grp.getgrnam(name).gr_gid)


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _refusal("true or false", value)


def _choice(value: object, choices: tuple[str, ...]) -> str:
    if value in choices:
        return str(value)
    raise _refusal(f"one of {', '.join(choices)}", value)


def _number_in(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def _count_in(text: str) -> object:
    return int(text) if text.isdecimal() and len(text) <= _ID_DIGITS else text


def _truth_in(text: str) -> object:
    word = text.lower()
    return word in _TRUE if word in _TRUE + _FALSE else text


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


def _write_number(number: float) -> str:
    return repr(number).removesuffix(".0")


def _names_kind(what: str, look_up: Callable[[str], int], unlisted: str) -> Kind:
    return Kind(
        what.upper(),
        lambda value: _names(value, what, look_up, unlisted),
        write=lambda names: ",".join(names) or unlisted,
    )


POSITIVE_SECONDS = Kind("SECONDS", _positive_seconds, _number_in, _write_number)
SECONDS_OR_NEVER = Kind("SECONDS", _seconds_or_never, _number_in, _write_number)
COUNT = Kind("COUNT", _count, _count_in)
POSITIVE_COUNT = Kind("COUNT", _positive_count, _count_in)
PATH = Kind("PATH", _path)
FILE_NAME = Kind("PATH", _file_name)
MODE = Kind("OCTAL", _mode, write=lambda mode: f"{mode:04o}")
OWNER = Kind("USER[:GROUP]", _owner, write=lambda owner: owner or "")
ALLOWED_USERS, ADMIN_USERS = (_names_kind("users", _uid, word) for word in (_ANY, _NONE))
ALLOWED_GROUPS, ADMIN_GROUPS = (_names_kind("groups", _gid, word) for word in (_ANY, _NONE))
SWITCH = Kind("BOOLEAN", _switch, _truth_in, lambda switch: str(switch).lower())
ON_CORRUPT_ACTION = Kind("ACTION", lambda value: _choice(value, ON_CORRUPT))
LOG_LEVEL = Kind("LEVEL", lambda value: _choice(value, LOG_LEVELS))
ON_DATA = Kind("ACTION", lambda value: _choice(value, ON_DATA_CHOICES))


def _field(default: object, kind: Kind, text: str, shown: str | None = None) -> Any:  # noqa: ANN401
    """Return a field; ``shown`` replaces the default in the help if its value is not clear."""
    about = {"kind": kind, "help": text, "default": shown}
    if callable(default):
        return field(default_factory=default, metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of the daemon. They are checked on creation, so every instance is valid.

    Raises SettingsError, which names the setting and its allowed values.
    """

    socket: Path = _field(
        default_socket,
        PATH,
        "UNIX socket to listen on.",
        "$XDG_RUNTIME_DIR/scache.sock, for root /run/scache/scache.sock",
    )
    """The path of the listening socket; the default is `default_socket`."""

    database: str = _field(
        ":memory:", FILE_NAME, "SQLite database: the path of a file, or :memory:."
    )
    """The path of a file, or ``:memory:``."""

    on_corrupt: OnCorrupt = _field(
        "set-aside",
        ON_CORRUPT_ACTION,
        "What to do with a corrupt database: set-aside and start empty, or refuse.",
    )
    """``set-aside`` renames the file and starts empty; ``refuse`` does not start."""

    ttl_limit: float = _field(
        300.0, POSITIVE_SECONDS, "Longest time to live in seconds; a longer one is lowered to it."
    )
    """Seconds, more than 0. A longer time to live is lowered silently, as in scache(8)."""

    max_idle: float = _field(
        100.0, SECONDS_OR_NEVER, "Exit after this many seconds without a client; 0: never."
    )
    """Seconds; cached connections do not keep the daemon alive. 0 means never."""

    status_interval: float = _field(
        600.0, SECONDS_OR_NEVER, "Seconds between two logs of the statistics; 0: never."
    )
    """Seconds; at 0 the statistics are logged only at SIGHUP and at exit."""

    exchange_timeout: float = _field(
        5.0,
        POSITIVE_SECONDS,
        "Seconds until a client that stops within an exchange is disconnected.",
    )
    """Seconds, more than 0, that a client may pause within an exchange."""

    max_clients: int = _field(
        1000, POSITIVE_COUNT, "Clients served at the same time; further ones are refused."
    )
    """Clients, at least 1; a low limit on open files lowers it. See `scache.daemon.capacity`."""

    max_connections: int = _field(
        0, COUNT, "Connections cached at the same time; 0: as many as open files allow.", "0"
    )
    """Connections; at the limit, a save evicts the connection that expires first."""

    max_connections_per_endpoint: int = _field(
        10_000, COUNT, "Connections cached for one endpoint; 0: no limit."
    )
    """Connections; further ones are refused."""

    max_bindings_per_destination: int = _field(
        1000, COUNT, "Bindings of one destination; 0: no limit."
    )
    """Bindings; further ones are refused."""

    max_bindings: int = _field(100_000, COUNT, "Bindings in total; 0: no limit.")
    """Bindings; further ones are refused."""

    max_message_size: int = _field(
        65_536, POSITIVE_COUNT, "Bytes of one request; a longer one is malformed."
    )
    """Bytes, at least 1."""

    max_ahead_size: int = _field(
        262_144, POSITIVE_COUNT, "Bytes of requests that a client may send ahead of a dummy."
    )
    """Bytes, at least 1, that are kept until the ``dummy`` of the client arrives."""

    descriptor_reserve: int = _field(64, COUNT, "Open files kept free of connections and clients.")
    """Open files, for the daemon's own files and for descriptors in transit."""

    on_data: OnData = _field(
        "keep", ON_DATA, "When the peer of a cached connection sends data: keep it, or close it."
    )
    """``close`` treats data from the peer of a cached connection as a hang-up."""

    audit_rows: int = _field(
        100_000, COUNT, "Events kept in the audit log, the newest; 0: record none."
    )
    """Rows of the table ``event``, the newest; 0 records nothing."""

    socket_mode: int = _field(0o600, MODE, "Mode of the socket, in octal: who may connect.")
    """Permission bits, 0 to 0o777; as text they are octal digits."""

    socket_owner: str | None = _field(
        None, OWNER, "Owner of the socket, by name or number; empty: unchanged.", "unchanged"
    )
    """An existing ``USER`` or ``USER:GROUP``; None leaves the owner unchanged. See `owner_ids`."""

    user: str | None = _field(None, OWNER, "User to run as after the socket is made.", "unchanged")
    """An existing ``USER`` or ``USER:GROUP``; None keeps the current user. See `user_ids`."""

    allow_uids: tuple[str, ...] = _field(
        (), ALLOWED_USERS, "Users who are served, of those that the socket lets in."
    )
    """Names or numbers of users, separated by commas, or ``any``. See `allowed_ids`."""

    allow_gids: tuple[str, ...] = _field(
        (), ALLOWED_GROUPS, "Groups whose members are served, in addition to allow_uids."
    )
    """Names or numbers of groups, separated by commas. With ``any``, only `allow_uids` counts."""

    admin_uids: tuple[str, ...] = _field(
        (), ADMIN_USERS, "Users who may look inside and purge, besides root and the daemon's user."
    )
    """Names or numbers of users, separated by commas, or ``none``. See `admin_ids`."""

    admin_gids: tuple[str, ...] = _field(
        (), ADMIN_GROUPS, "Groups whose members may look inside and purge."
    )
    """Names or numbers of groups, separated by commas, or ``none``. See `admin_ids`."""

    announce: bool = _field(
        True, SWITCH, "Announce the protocol first, as clients of Postfix 3.6 and later expect."
    )
    """True if the daemon sends the name of the protocol when a client connects."""

    log_level: LogLevel = _field(
        "info", LOG_LEVEL, "Lowest level that is logged: debug, info, warning or error."
    )
    """The lowest level that is logged to stderr; ``debug`` adds tracebacks."""

    def __post_init__(self) -> None:
        for setting in SETTINGS:
            value = setting.check(getattr(self, setting.name), setting.name)
            object.__setattr__(self, setting.name, value)

    def as_text(self) -> dict[str, str]:
        """Return the name and the value of each setting, as text that is valid as input."""
        return {each.name: each.kind.write(getattr(self, each.name)) for each in SETTINGS}

    @property
    def socket_is_default(self) -> bool:
        """True if the socket is `default_socket`, whose directory the daemon creates."""
        return self.socket == default_socket()

    @property
    def owner_ids(self) -> tuple[int, int]:
        """The uid and gid for chown(2) of the socket; UNCHANGED for one that is not set."""
        if self.socket_owner is None:
            return UNCHANGED, UNCHANGED
        return _owner_ids(self.socket_owner)

    @property
    def user_ids(self) -> tuple[int, int]:
        """The uid and gid to run as; UNCHANGED for one that is not set."""
        return (UNCHANGED, UNCHANGED) if self.user is None else _owner_ids(self.user)

    @property
    def allowed_ids(self) -> tuple[list[int], list[int]]:
        """The uids and gids of `allow_uids` and `allow_gids`; if both are empty, all users."""
        return list(map(_uid, self.allow_uids)), list(map(_gid, self.allow_gids))

    @property
    def admin_ids(self) -> tuple[list[int], list[int]]:
        """The uids and gids of `admin_uids` and `admin_gids`."""
        return list(map(_uid, self.admin_uids)), list(map(_gid, self.admin_gids))


class Setting(NamedTuple):
    """One field of `Settings`, with its option, variable and key."""

    name: str
    """The name of the field, which is also the key in a configuration file."""
    kind: Kind
    help: str
    """One line."""
    default: str
    """The default as readable text."""

    @property
    def option(self) -> str:
        """The command-line option."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "SCACHE_" + self.name.upper()

    def check(self, value: object, spelled: str) -> Any:  # noqa: ANN401 - a field's value
        """Return the value of the field, or raise SettingsError.

        ``spelled`` is the name of the setting in the source that the value comes from.
        """
        try:
            return self.kind.check(value)
        except ValueError as error:
            raise SettingsError(f"{spelled} {error}") from None


def _settings() -> tuple[Setting, ...]:
    found = []
    for each in fields(Settings):
        kind, text, default = (each.metadata[key] for key in ("kind", "help", "default"))
        found.append(Setting(each.name, kind, text, default or kind.write(each.default)))
    return tuple(found)


SETTINGS: Final = _settings()
"""Every setting, in the order of the fields of `Settings`."""

RETIRED: Final = ("priority_boost",)
"""Settings of earlier versions. All sources accept them; their only effect is a warning."""
