"""The settings of the daemon: what each means, what it allows, what it is by default.

`Settings` is where a setting is spelled, once. The options of the command
line, the environment variables, the keys of the configuration file, the output
of ``--show-config`` and the manual's page of settings come from its fields.
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
"""The longest time that a setting takes: some thirty years, which sums of times survive."""

MAX_COUNT: Final = 1_000_000_000
"""The most that a setting counts."""

UNCHANGED: Final = -1
"""What chown(2) takes for an owner or group that stays as it is."""

_ID_DIGITS = 10

_ANY, _NONE = "any", "none"
"""What a list of those who may says when nobody is listed, by what that means."""

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


def default_socket() -> Path:
    """Return the socket of whoever does not name one: one for root, one for each user."""
    uid = os.geteuid()
    if uid == 0:
        return Path("/run/scache/scache.sock")
    runtime_directory = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime_directory.startswith("/"):  # a relative one is to be ignored (XDG base directories)
        return Path(runtime_directory, "scache.sock")
    return Path(f"/tmp/scache-{uid}/scache.sock")


def _refusal(allowed: str, value: object) -> ValueError:
    return ValueError(f"must be {allowed}, not {value!r}")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Both ranges also refuse nan, which is neither above nor below anything.
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
    """Return the uid and gid that ``USER[:GROUP]`` means, as chown(1) understands it."""
    user, colon, group = owner.partition(":")
    uid = _uid(user)
    return uid, _gid(group) if colon else UNCHANGED


def _id_of(name: str, kind: str, look_up: Callable[[str], int]) -> int:
    with contextlib.suppress(KeyError, ValueError):  # ValueError: no name could look like this
        return look_up(name)
    # A number needs no entry in the database. The highest one means "unchanged" to chown(2).
    if name.isdecimal() and len(name) <= _ID_DIGITS and int(name) < 2**32 - 1:
        return int(name)
    raise ValueError(f"names a {kind} that does not exist: {name!r}")


def _names(
    value: object, what: str, look_up: Callable[[str], int], unlisted: str
) -> tuple[str, ...]:
    """Return the names or numbers in a list, or in a text with commas, all of which exist.

    ``unlisted`` is the word for none of them. A list that is merely empty is refused, as it comes
    from a variable that was not set, and would let everybody in.
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
    """A sort of value: what it is called, what is allowed, how it is written."""

    metavar: str
    check: Callable[[object], object]
    """Return the value as the field holds it, or raise ValueError with the end of a sentence."""
    read: Callable[[str], object] = _text_in
    """Return what `check` takes for this text; text that means nothing stays as it is."""
    write: Callable[[Any], str] = str
    """Return the text that `read` and `check` turn back into this value of a field."""


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
    """Return a field; ``shown`` is the text for a default whose value does not say enough."""
    about = {"kind": kind, "help": text, "default": shown}
    if callable(default):
        return field(default_factory=default, metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the daemon is told; checked at once, so every instance makes sense.

    Raises SettingsError, which names the setting and says what is allowed.
    """

    socket: Path = _field(
        default_socket,
        PATH,
        "UNIX socket to listen on.",
        "$XDG_RUNTIME_DIR/scache.sock, for root /run/scache/scache.sock",
    )
    """Where clients connect; `default_socket` unless somebody names another."""

    database: str = _field(
        ":memory:", FILE_NAME, "SQLite database: the path of a file, or :memory:."
    )
    """The path of a file, or ``:memory:``."""

    on_corrupt: OnCorrupt = _field(
        "set-aside",
        ON_CORRUPT_ACTION,
        "What to do with a corrupt database: set-aside and start empty, or refuse.",
    )
    """``set-aside`` keeps the file under another name; ``refuse`` does not start."""

    ttl_limit: float = _field(
        300.0, POSITIVE_SECONDS, "Longest time to live in seconds; a longer one is lowered to it."
    )
    """Seconds, more than 0; as silently as scache(8) does it."""

    max_idle: float = _field(
        100.0, SECONDS_OR_NEVER, "Exit after this many seconds without a client; 0: never."
    )
    """Seconds; cached connections do not keep the daemon alive. 0 means never."""

    status_interval: float = _field(
        600.0, SECONDS_OR_NEVER, "Seconds between two logs of the statistics; 0: never."
    )
    """Seconds between two logs of the statistics; 0 leaves those at SIGHUP and at exit."""

    exchange_timeout: float = _field(
        5.0,
        POSITIVE_SECONDS,
        "Seconds until a client that stops within an exchange is disconnected.",
    )
    """Seconds, more than 0, without a step in the middle of an exchange."""

    max_clients: int = _field(
        1000, POSITIVE_COUNT, "Clients served at the same time; further ones are refused."
    )
    """Clients, at least 1; fewer if few files may be open. See `scache.daemon.capacity`."""

    max_connections: int = _field(
        0, COUNT, "Connections cached at the same time; 0: as many as open files allow.", "0"
    )
    """At the limit the connection that is nearest to its expiry gives way."""

    max_connections_per_endpoint: int = _field(
        10_000, COUNT, "Connections cached for one endpoint; 0: no limit."
    )
    """Connections; more are refused."""

    max_bindings_per_destination: int = _field(
        1000, COUNT, "Bindings of one destination; 0: no limit."
    )
    """Bindings; more are refused."""

    max_bindings: int = _field(100_000, COUNT, "Bindings in total; 0: no limit.")
    """Bindings; more are refused."""

    max_message_size: int = _field(
        65_536, POSITIVE_COUNT, "Bytes of one request; a longer one is malformed."
    )
    """Bytes, at least 1."""

    max_ahead_size: int = _field(
        262_144, POSITIVE_COUNT, "Bytes of requests that a client may send ahead of a dummy."
    )
    """Bytes, at least 1, that are kept for a client that owes us a ``dummy``."""

    descriptor_reserve: int = _field(64, COUNT, "Open files kept free of connections and clients.")
    """Open files, for the daemon's own and for what is on its way."""

    on_data: OnData = _field(
        "keep", ON_DATA, "When the peer of a cached connection sends data: keep it, or close it."
    )
    """``close`` counts what a peer sends while its connection is cached as a hang-up."""

    audit_rows: int = _field(
        100_000, COUNT, "Events kept in the audit log, the newest; 0: record none."
    )
    """Rows of the table ``event``, the newest; 0 records nothing."""

    socket_mode: int = _field(0o600, MODE, "Mode of the socket, in octal: who may connect.")
    """Permission bits, 0 to 0o777; as text they are octal digits."""

    socket_owner: str | None = _field(
        None, OWNER, "Owner of the socket, by name or number; empty: unchanged.", "unchanged"
    )
    """``USER`` or ``USER:GROUP``, which exist; None leaves it to the process. See `owner_ids`."""

    user: str | None = _field(None, OWNER, "User to run as after the socket is made.", "unchanged")
    """``USER`` or ``USER:GROUP``, which exist; None stays who it is. See `user_ids`."""

    allow_uids: tuple[str, ...] = _field(
        (), ALLOWED_USERS, "Users who are served, of those that the socket lets in."
    )
    """Users, by name or number, with commas in between; ``any``: all. See `allowed_ids`."""

    allow_gids: tuple[str, ...] = _field(
        (), ALLOWED_GROUPS, "Groups whose members are served, in addition to allow_uids."
    )
    """Groups, by name or number, with commas in between; ``any``: as `allow_uids` says."""

    admin_uids: tuple[str, ...] = _field(
        (), ADMIN_USERS, "Users who may look inside and purge, besides root and the daemon's user."
    )
    """Users, by name or number, with commas in between, or ``none``. See `admin_ids`."""

    admin_gids: tuple[str, ...] = _field(
        (), ADMIN_GROUPS, "Groups whose members may look inside and purge."
    )
    """Groups, by name or number, with commas in between, or ``none``. See `admin_ids`."""

    announce: bool = _field(
        True, SWITCH, "Announce the protocol first, as clients of Postfix 3.6 and later expect."
    )
    """Whether a client is greeted with the name of the protocol when it connects."""

    log_level: LogLevel = _field(
        "info", LOG_LEVEL, "Lowest level that is logged: debug, info, warning or error."
    )
    """The least that goes to stderr; ``debug`` adds tracebacks."""

    def __post_init__(self) -> None:
        for setting in SETTINGS:
            value = setting.check(getattr(self, setting.name), setting.name)
            object.__setattr__(self, setting.name, value)

    def as_text(self) -> dict[str, str]:
        """Return each setting's name and its value as a person would write it."""
        return {each.name: each.kind.write(getattr(self, each.name)) for each in SETTINGS}

    @property
    def socket_is_default(self) -> bool:
        """Whether the socket is `default_socket`, whose directory is ours to make."""
        return self.socket == default_socket()

    @property
    def owner_ids(self) -> tuple[int, int]:
        """The uid and gid for chown(2) on the socket; UNCHANGED for what stays as it is."""
        if self.socket_owner is None:
            return UNCHANGED, UNCHANGED
        return _owner_ids(self.socket_owner)

    @property
    def user_ids(self) -> tuple[int, int]:
        """The uid and gid to run as; UNCHANGED for what stays as it is."""
        return (UNCHANGED, UNCHANGED) if self.user is None else _owner_ids(self.user)

    @property
    def allowed_ids(self) -> tuple[list[int], list[int]]:
        """The uids and gids of `allow_uids` and `allow_gids`; none of either: everybody."""
        return list(map(_uid, self.allow_uids)), list(map(_gid, self.allow_gids))

    @property
    def admin_ids(self) -> tuple[list[int], list[int]]:
        """The uids and gids of `admin_uids` and `admin_gids`."""
        return list(map(_uid, self.admin_uids)), list(map(_gid, self.admin_gids))


class Setting(NamedTuple):
    """One field of `Settings`, and how people spell it."""

    name: str
    """The field, and the key in a configuration file."""
    kind: Kind
    help: str
    """One line."""
    default: str
    """What it is when nobody sets it, for people to read."""

    @property
    def option(self) -> str:
        """The option of the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "SCACHE_" + self.name.upper()

    def check(self, value: object, spelled: str) -> Any:  # noqa: ANN401 - a field's value
        """Return the value as the field holds it, or raise SettingsError.

        ``spelled`` is what the person who gave the value calls the setting.
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
"""Settings of earlier versions. They are accepted everywhere, and have no effect but a warning."""
