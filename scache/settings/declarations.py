"""The settings of the daemon: meaning, allowed values and defaults.

`Settings` declares each setting once. The command-line options, the environment variables, the
keys of the configuration file, the output of ``--show-config`` and the settings page of the manual
are derived from its fields.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

from scache.errors import SettingsError
from scache.settings.classes import LabelClass
from scache.settings.values import (
    ADMIN_GROUPS,
    ADMIN_USERS,
    ALLOWED_GROUPS,
    ALLOWED_USERS,
    CLASSES,
    COUNT,
    FILE_NAME,
    LOG_FORMAT,
    LOG_LEVEL,
    MODE,
    ON_CORRUPT,
    ON_DATA,
    OWNER,
    POSITIVE_COUNT,
    POSITIVE_SECONDS,
    SECONDS_OR_NEVER,
    SOCKET_PATH,
    SWITCH,
    Kind,
    LogFormat,
    LogLevel,
    OnCorrupt,
    OnData,
    group_id,
    owner_ids,
    user_id,
)

ROOT_SOCKET: Final = Path("/run/scache/scache.sock")
"""The default socket path for root, and for a service that root has started."""


def default_socket() -> Path:
    """Return the default socket path, which is different for root and for each user."""
    uid = os.geteuid()
    if uid == 0:
        return ROOT_SOCKET
    runtime_directory = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime_directory.startswith("/"):  # XDG requires that a relative path is ignored
        return Path(runtime_directory, "scache.sock")
    return Path(f"/tmp/scache-{uid}/scache.sock")


def _field(default: object, kind: Kind, text: str, shown: str | None = None) -> Any:  # noqa: ANN401
    """Return a field; ``shown`` replaces the default in the help if its value is not clear."""
    about = {"kind": kind, "help": text, "default": shown}
    if callable(default):
        return field(default_factory=default, metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of the daemon. They are checked on creation, so every instance is valid.

    Raises SettingsError, which names the setting and its allowed values. The text of each field is
    its help. The settings page of the manual has the details.
    """

    socket: Path = _field(
        default_socket,
        SOCKET_PATH,
        "UNIX socket to listen on.",
        "$XDG_RUNTIME_DIR/scache.sock, for root /run/scache/scache.sock",
    )
    database: str = _field(
        ":memory:", FILE_NAME, "SQLite database: the path of a file, or :memory:."
    )
    on_corrupt: OnCorrupt = _field(
        "set-aside",
        ON_CORRUPT,
        "Action on a corrupt database: set-aside and start empty, or refuse to start.",
    )
    ttl_limit: float = _field(
        300.0, POSITIVE_SECONDS, "Longest time to live in seconds; a longer one is lowered to it."
    )
    max_idle: float = _field(
        100.0, SECONDS_OR_NEVER, "Exit after this many seconds without a client; 0: never."
    )
    status_interval: float = _field(
        600.0, SECONDS_OR_NEVER, "Seconds between two logs of the statistics; 0: never."
    )
    exchange_timeout: float = _field(
        5.0,
        POSITIVE_SECONDS,
        "Seconds until a client that stops within an exchange is disconnected.",
    )
    max_clients: int = _field(
        1000, POSITIVE_COUNT, "Clients served at the same time; further ones are refused."
    )
    max_connections: int = _field(
        0,
        COUNT,
        "Connections cached at the same time; 0: as open files allow, up to a million.",
        "0",
    )
    max_connections_per_endpoint: int = _field(
        10_000, COUNT, "Connections cached for one endpoint; 0: no limit."
    )
    max_bindings_per_destination: int = _field(
        1000, COUNT, "Bindings of one destination; 0: no limit."
    )
    max_bindings: int = _field(100_000, COUNT, "Bindings in total; 0: no limit.")
    max_bytes: int = _field(
        64 * 1024 * 1024,
        COUNT,
        "Bytes of all labels and properties that are cached; 0: no limit.",
    )
    max_message_size: int = _field(
        65_536, POSITIVE_COUNT, "Bytes of one request; a longer one is malformed."
    )
    max_ahead_size: int = _field(
        262_144, POSITIVE_COUNT, "Bytes of requests that a client may send ahead of a dummy."
    )
    descriptor_reserve: int = _field(
        64, COUNT, "Open files reserved for other uses than connections and clients."
    )
    on_data: OnData = _field(
        "keep", ON_DATA, "Action when the peer of a cached connection sends data: keep or close it."
    )
    audit_rows: int = _field(
        100_000, COUNT, "Newest events that the audit log keeps; 0: record none."
    )
    socket_mode: int = _field(
        0o600, MODE, "Mode of the socket, in octal: the users that may connect."
    )
    socket_owner: str | None = _field(
        None, OWNER, "Owner of the socket, by name or number; empty: unchanged.", "unchanged"
    )
    user: str | None = _field(
        None, OWNER, "User to run as after the socket is created.", "unchanged"
    )
    allow_uids: tuple[str, ...] = _field(
        (), ALLOWED_USERS, "Users served, among those that may connect to the socket."
    )
    allow_gids: tuple[str, ...] = _field(
        (), ALLOWED_GROUPS, "Groups served, in addition to allow_uids."
    )
    admin_uids: tuple[str, ...] = _field(
        (), ADMIN_USERS, "Users who may look inside and purge, besides root and the daemon's user."
    )
    admin_gids: tuple[str, ...] = _field(
        (), ADMIN_GROUPS, "Groups whose members may look inside and purge."
    )
    announce: bool = _field(
        True, SWITCH, "Announce the protocol first, as clients of Postfix 3.6 and later expect."
    )
    log_level: LogLevel = _field(
        "info", LOG_LEVEL, "Lowest level that is logged: debug, info, warning or error."
    )
    log_format: LogFormat = _field(
        "text", LOG_FORMAT, "Form of the log: lines of text, or a JSON object a line."
    )
    classes: tuple[LabelClass, ...] = ()
    """Classes of labels, the tables ``[[class]]`` of a configuration file; no option."""

    def __post_init__(self) -> None:
        for setting in (*SETTINGS, CLASS_TABLES):
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
        return owner_ids(self.socket_owner)

    @property
    def user_ids(self) -> tuple[int, int]:
        """The uid and gid to run as; UNCHANGED for one that is not set."""
        return owner_ids(self.user)

    @property
    def allowed_ids(self) -> tuple[list[int], list[int]]:
        """The uids and gids of `allow_uids` and `allow_gids`; if both are empty, all users."""
        return list(map(user_id, self.allow_uids)), list(map(group_id, self.allow_gids))

    @property
    def admin_ids(self) -> tuple[list[int], list[int]]:
        """The uids and gids of `admin_uids` and `admin_gids`."""
        return list(map(user_id, self.admin_uids)), list(map(group_id, self.admin_gids))


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
        if not each.metadata:
            continue
        kind, text, default = (each.metadata[key] for key in ("kind", "help", "default"))
        found.append(Setting(each.name, kind, text, default or kind.write(each.default)))
    return tuple(found)


SETTINGS: Final = _settings()
"""Every setting, in the order of the fields of `Settings`."""

CLASS_TABLES: Final = Setting("classes", CLASSES, "Classes of labels.", "none")
"""The tables of a configuration file; they have neither an option nor a variable."""

RETIRED: Final = ("priority_boost",)
"""Settings of earlier versions. Options, variables and configuration files may still have them;
their only effect is a warning. `Settings` itself raises TypeError, as for any unknown keyword."""
