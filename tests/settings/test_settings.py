"""Settings: allowed values, refused values, and the errors."""

from __future__ import annotations

import grp
import math
import os
import pwd
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scache.errors import EXIT_SETTINGS, SettingsError
from scache.settings.declarations import CLASS_TABLES, SETTINGS, Setting, Settings, default_socket
from scache.settings.values import MAX_SECONDS
from scache.unix.namespace import UNCHANGED

MISSING = "no-such-user-of-scache"
USER = pwd.getpwuid(os.getuid()).pw_name
GROUP = grp.getgrgid(os.getgid()).gr_name

SECONDS = ["ttl_limit", "max_idle", "status_interval", "exchange_timeout"]
NEVER_ALLOWED = ["max_idle", "status_interval"]


def make(name: str, value: object) -> Settings:
    """Return settings with one value, as a configuration file may give it."""
    arguments: dict[str, Any] = {name: value}
    return Settings(**arguments)


def setting(name: str) -> Setting:
    """Return the description of a setting."""
    return next(each for each in SETTINGS if each.name == name)


def test_defaults_are_those_of_the_documentation() -> None:
    """The help and the manual name the same values."""
    settings = Settings()
    assert settings.socket == default_socket()
    assert settings.database == ":memory:"
    assert settings.on_corrupt == "set-aside"
    assert settings.ttl_limit == 300
    assert settings.max_idle == 100
    assert settings.status_interval == 600
    assert settings.exchange_timeout == 5
    assert settings.socket_mode == 0o600
    assert settings.socket_owner is None
    assert settings.announce is True
    assert settings.log_level == "info"


def test_socket_may_be_a_file_whose_name_begins_with_an_at_sign() -> None:
    """Only the notation of an abstract socket is refused."""
    assert setting("socket").check("./@name", "socket") == Path("@name")
    assert Settings(socket=Path("@name")).socket == Path("@name")


def test_settings_are_frozen() -> None:
    """The settings of a running daemon cannot change."""
    with pytest.raises(FrozenInstanceError):
        Settings().ttl_limit = 1  # type: ignore[misc]


def test_every_field_is_described_once() -> None:
    """Its help is one sentence of less than 80 characters."""
    named = [each.name for each in (*SETTINGS, CLASS_TABLES)]
    assert named == [field.name for field in fields(Settings)]
    for each in SETTINGS:
        assert each.help.endswith(".")
        assert each.help.isprintable()
        assert len(each.help) < 80


def test_option_and_variable_are_derived_from_the_field() -> None:
    """An option has hyphens, and a variable has capitals and a prefix."""
    assert setting("ttl_limit").option == "--ttl-limit"
    assert setting("ttl_limit").variable == "SCACHE_TTL_LIMIT"


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize(("value", "seconds"), [(1, 1.0), (0.25, 0.25), (MAX_SECONDS, 1e9)])
def test_seconds_are_numbers(name: str, value: float, seconds: float) -> None:
    """The number may have a fraction, and is stored as a float."""
    held = getattr(make(name, value), name)
    assert held == seconds
    assert type(held) is float


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize(
    "value",
    [-1, -0.001, math.nan, math.inf, -math.inf, MAX_SECONDS + 1, 10**400, True, "5", None, [5]],
)
def test_invalid_times_are_refused(name: str, value: object) -> None:
    """A time is a finite number from 0 to MAX_SECONDS. The error names the setting."""
    with pytest.raises(SettingsError, match=rf"^{name} must be a number of seconds ") as caught:
        make(name, value)
    assert caught.value.exit_code == EXIT_SETTINGS


@pytest.mark.parametrize("name", SECONDS)
def test_zero_means_never_or_is_refused(name: str) -> None:
    """The idle time and the interval of the statistics may be never; other times may not."""
    if name in NEVER_ALLOWED:
        assert getattr(make(name, 0), name) == 0
    else:
        with pytest.raises(SettingsError, match="above 0"):
            make(name, 0)


@pytest.mark.parametrize(
    ("value", "mode"),
    [("0660", 0o660), ("660", 0o660), ("0o660", 0o660), (0o660, 0o660), ("0", 0), ("0777", 0o777)],
)
def test_mode_is_octal(value: object, mode: int) -> None:
    """A text has octal digits, and an integer has the bits of the mode."""
    assert make("socket_mode", value).socket_mode == mode


@pytest.mark.parametrize(
    "value", ["0999", "1000", "", "rw", "-1", 660, 0o1000, -1, True, 6.0, None]
)
def test_invalid_mode_is_refused(value: object) -> None:
    """Decimal 660 is above 0777."""
    with pytest.raises(SettingsError, match=r"^socket_mode must be an octal mode"):
        make("socket_mode", value)


@pytest.mark.parametrize(
    ("owner", "ids"),
    [
        (USER, (os.getuid(), UNCHANGED)),
        (f"{USER}:{GROUP}", (os.getuid(), os.getgid())),
        ("12345", (12345, UNCHANGED)),
        ("12345:54321", (12345, 54321)),
        (f"{USER}:54321", (os.getuid(), 54321)),
        ("", (UNCHANGED, UNCHANGED)),
        (None, (UNCHANGED, UNCHANGED)),
    ],
)
def test_owner_is_names_or_numbers(owner: str | None, ids: tuple[int, int]) -> None:
    """The form is that of chown(1). An empty owner means no change."""
    assert Settings(socket_owner=owner).owner_ids == ids


@pytest.mark.parametrize(
    ("owner", "complaint"),
    [
        (MISSING, f"socket_owner names a user that does not exist: '{MISSING}'"),
        (f"{USER}:{MISSING}", f"socket_owner names a group that does not exist: '{MISSING}'"),
        (f"{USER}:", "socket_owner names a group that does not exist: ''"),
        (f":{GROUP}", "socket_owner names a user that does not exist: ''"),
        ("4294967295", "socket_owner names a user that does not exist: '4294967295'"),
        ("9" * 5000, f"socket_owner names a user that does not exist: '{'9' * 5000}'"),
        ("a\0b", r"socket_owner names a user that does not exist: 'a\x00b'"),
        (0, "socket_owner must be USER or USER:GROUP, not 0"),
    ],
)
def test_owner_that_does_not_exist_is_refused(owner: object, complaint: str) -> None:
    """The error names the user or group."""
    with pytest.raises(SettingsError) as caught:
        make("socket_owner", owner)
    assert str(caught.value) == complaint


@pytest.mark.parametrize(
    ("name", "unlisted"),
    [("allow_uids", "any"), ("allow_gids", "any"), ("admin_uids", "none"), ("admin_gids", "none")],
)
@pytest.mark.parametrize("value", ["", ",", " , ", [], None, 0])
def test_list_of_users_or_groups_may_not_be_empty(name: str, unlisted: str, value: object) -> None:
    """A variable that is not set must not permit all users. A word stands for an empty list."""
    with pytest.raises(SettingsError) as caught:
        setting(name).check(value, name)
    what = "users" if name.endswith("uids") else "groups"
    assert str(caught.value) == (
        f"{name} must be {what}, names or numbers, with commas in between, "
        f'or "{unlisted}", not {value!r}'
    )
    assert getattr(make(name, unlisted), name) == ()
    assert getattr(make(name, ["0", 1]), name) == getattr(make(name, "0, 1,"), name) == ("0", "1")


@pytest.mark.parametrize("name", ["socket", "database"])
@pytest.mark.parametrize("value", ["", "a\0b", 5, None, ["x"]])
def test_invalid_path_is_refused(name: str, value: object) -> None:
    """A path is a text that is not empty and has no NUL."""
    with pytest.raises(SettingsError, match=f"^{name} must be a path, not "):
        make(name, value)


def test_socket_becomes_a_path_and_database_stays_text() -> None:
    """The text of a database may be ``:memory:``, which is not a path."""
    assert make("socket", "dir/s").socket == Path("dir/s")
    assert Settings(socket=Path("s")).socket == Path("s")
    assert Settings(database="dir//x.db").database == "dir//x.db"


@pytest.mark.parametrize("value", ["true", 1, 0, None])
def test_switch_is_true_or_false(value: object) -> None:
    """TOML has these values, so no other value stands for them."""
    with pytest.raises(SettingsError, match=r"^announce must be true or false, not "):
        make("announce", value)


@pytest.mark.parametrize("value", ["loud", "INFO", "", 10, None, ["info"]])
def test_log_level_is_one_of_four(value: object) -> None:
    """The error lists the levels."""
    allowed = "debug, info, warning, error"
    with pytest.raises(SettingsError, match=f"^log_level must be one of {allowed}, not "):
        make("log_level", value)


@pytest.mark.parametrize(
    ("text", "value"),
    [(word, True) for word in ("1", "true", "Yes", "on")]
    + [(word, False) for word in ("0", "false", "NO", "off")],
)
def test_switch_as_text_has_four_words_for_each_value(text: str, value: object) -> None:
    """Text comes from a variable of the environment. Case does not matter."""
    assert setting("announce").kind.read(text) is value


@given(st.sampled_from(SETTINGS), st.text())
def test_any_text_is_accepted_or_raises_settings_error(which: Setting, text: str) -> None:
    """A value that is accepted is the same after it was written and read."""
    try:
        value = which.check(which.kind.read(text), "it")
    except SettingsError:
        return
    assert which.check(which.kind.read(which.kind.write(value)), "it") == value


def test_default_socket_of_root_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_RUNTIME_DIR is ignored."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    assert default_socket() == Path("/run/scache/scache.sock")


def test_default_socket_of_a_user_is_in_the_runtime_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """XDG_RUNTIME_DIR names it."""
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    assert default_socket() == Path("/run/user/1234/scache.sock")


@pytest.mark.parametrize("runtime_directory", ["", "relative", None])
def test_default_socket_is_in_tmp_without_a_runtime_directory(
    monkeypatch: pytest.MonkeyPatch, runtime_directory: str | None
) -> None:
    """The name of its directory has the uid."""
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    if runtime_directory is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_directory)
    assert default_socket() == Path("/tmp/scache-1234/scache.sock")


def test_socket_is_default_only_with_the_default_path(tmp_path: Path) -> None:
    """The daemon creates the directory of the default socket only."""
    assert Settings().socket_is_default
    assert not Settings(socket=tmp_path / "s").socket_is_default
