"""Settings: what each takes, what it refuses, and in which words."""

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
from scache.settings.declarations import SETTINGS, Setting, Settings, default_socket
from scache.settings.values import MAX_SECONDS
from scache.unix.namespace import UNCHANGED

NOBODY = "no-such-user-of-scache"
USER = pwd.getpwuid(os.getuid()).pw_name
GROUP = grp.getgrgid(os.getgid()).gr_name

SECONDS = ["ttl_limit", "max_idle", "status_interval", "exchange_timeout"]
NEVER_ALLOWED = ["max_idle", "status_interval"]


def make(name: str, value: object) -> Settings:
    """Return settings with this one value given, as a configuration file might give it."""
    arguments: dict[str, Any] = {name: value}
    return Settings(**arguments)


def setting(name: str) -> Setting:
    """Return the description of a setting."""
    return next(each for each in SETTINGS if each.name == name)


def test_defaults_are_those_of_the_documentation() -> None:
    """With nothing given, the settings are those that the help and the manual name."""
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


def test_settings_are_frozen() -> None:
    """Nobody changes the settings of a running daemon behind its back."""
    with pytest.raises(FrozenInstanceError):
        Settings().ttl_limit = 1  # type: ignore[misc]


def test_every_field_is_described_once() -> None:
    """Each field has its spelling, its kind and one line of help without a break."""
    assert [each.name for each in SETTINGS] == [field.name for field in fields(Settings)]
    for each in SETTINGS:
        assert each.help.endswith(".")
        assert each.help.isprintable()
        assert len(each.help) < 80


def test_names_follow_from_the_field() -> None:
    """Option and variable are the field's name in the manner of the place."""
    assert setting("ttl_limit").option == "--ttl-limit"
    assert setting("ttl_limit").variable == "SCACHE_TTL_LIMIT"


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize(("value", "seconds"), [(1, 1.0), (0.25, 0.25), (MAX_SECONDS, 1e9)])
def test_seconds_are_numbers(name: str, value: float, seconds: float) -> None:
    """A time is any number of seconds, whole or not, and is held as a float."""
    held = getattr(make(name, value), name)
    assert held == seconds
    assert type(held) is float


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize(
    "value",
    [-1, -0.001, math.nan, math.inf, -math.inf, MAX_SECONDS + 1, 10**400, True, "5", None, [5]],
)
def test_times_that_make_no_sense_are_refused(name: str, value: object) -> None:
    """Only finite numbers of a sensible size are times; the error names the setting."""
    with pytest.raises(SettingsError, match=rf"^{name} must be a number of seconds ") as caught:
        make(name, value)
    assert caught.value.exit_code == EXIT_SETTINGS


@pytest.mark.parametrize("name", SECONDS)
def test_zero_means_never_where_that_makes_sense(name: str) -> None:
    """The daemon may live for ever and keep its statistics to itself; 0 says so."""
    if name in NEVER_ALLOWED:
        assert getattr(make(name, 0), name) == 0
    else:
        with pytest.raises(SettingsError, match="above 0"):
            make(name, 0)


@pytest.mark.parametrize(
    ("value", "mode"),
    [("0660", 0o660), ("660", 0o660), ("0o660", 0o660), (0o660, 0o660), ("0", 0), ("0777", 0o777)],
)
def test_a_mode_is_octal(value: object, mode: int) -> None:
    """A mode is octal digits as text, or an integer that means those bits."""
    assert make("socket_mode", value).socket_mode == mode


@pytest.mark.parametrize(
    "value", ["0999", "1000", "", "rw", "-1", 660, 0o1000, -1, True, 6.0, None]
)
def test_a_mode_that_makes_no_sense_is_refused(value: object) -> None:
    """Decimal 660 is above 0777 and is refused rather than taken for other bits."""
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
def test_an_owner_is_names_or_numbers(owner: str | None, ids: tuple[int, int]) -> None:
    """As for chown(1): a name or a number, alone or with a group; without, nothing changes."""
    assert Settings(socket_owner=owner).owner_ids == ids


@pytest.mark.parametrize(
    ("owner", "complaint"),
    [
        (NOBODY, f"socket_owner names a user that does not exist: '{NOBODY}'"),
        (f"{USER}:{NOBODY}", f"socket_owner names a group that does not exist: '{NOBODY}'"),
        (f"{USER}:", "socket_owner names a group that does not exist: ''"),
        (f":{GROUP}", "socket_owner names a user that does not exist: ''"),
        ("4294967295", "socket_owner names a user that does not exist: '4294967295'"),
        ("9" * 5000, f"socket_owner names a user that does not exist: '{'9' * 5000}'"),
        ("a\0b", r"socket_owner names a user that does not exist: 'a\x00b'"),
        (0, "socket_owner must be USER or USER:GROUP, not 0"),
    ],
)
def test_an_owner_must_exist(owner: object, complaint: str) -> None:
    """An unknown user or group is told by its name before anything is started."""
    with pytest.raises(SettingsError) as caught:
        make("socket_owner", owner)
    assert str(caught.value) == complaint


@pytest.mark.parametrize(
    ("name", "unlisted"),
    [("allow_uids", "any"), ("allow_gids", "any"), ("admin_uids", "none"), ("admin_gids", "none")],
)
@pytest.mark.parametrize("value", ["", ",", " , ", [], None, 0])
def test_who_may_is_not_left_empty(name: str, unlisted: str, value: object) -> None:
    """A variable that was not set opens the daemon to nobody; a word says that nobody is listed."""
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
def test_a_path_that_is_none_is_refused(name: str, value: object) -> None:
    """Nothing is listened on and nothing opened whose name no file can have."""
    with pytest.raises(SettingsError, match=f"^{name} must be a path, not "):
        make(name, value)


def test_paths_are_taken_as_they_are() -> None:
    """A socket's path is a Path however it was given, and a database's stays text."""
    assert make("socket", "dir/s").socket == Path("dir/s")
    assert Settings(socket=Path("s")).socket == Path("s")
    assert Settings(database="dir//x.db").database == "dir//x.db"


@pytest.mark.parametrize("value", ["true", 1, 0, None])
def test_a_switch_is_true_or_false(value: object) -> None:
    """Where a file has true and false, nothing else is taken for them."""
    with pytest.raises(SettingsError, match=r"^announce must be true or false, not "):
        make("announce", value)


@pytest.mark.parametrize("value", ["loud", "INFO", "", 10, None, ["info"]])
def test_a_log_level_is_one_of_four(value: object) -> None:
    """The error lists the levels that there are."""
    allowed = "debug, info, warning, error"
    with pytest.raises(SettingsError, match=f"^log_level must be one of {allowed}, not "):
        make("log_level", value)


@pytest.mark.parametrize(
    ("text", "value"),
    [(word, True) for word in ("1", "true", "Yes", "on")]
    + [(word, False) for word in ("0", "false", "NO", "off")],
)
def test_text_says_true_and_false_in_the_usual_words(text: str, value: object) -> None:
    """A variable of the environment may say it in any of the customary ways."""
    assert setting("announce").kind.read(text) is value


@given(st.sampled_from(SETTINGS), st.text())
def test_any_text_is_a_value_or_one_sentence(which: Setting, text: str) -> None:
    """Whatever a person types, a setting either takes it or refuses it with a SettingsError."""
    try:
        value = which.check(which.kind.read(text), "it")
    except SettingsError:
        return
    assert which.check(which.kind.read(which.kind.write(value)), "it") == value


def test_root_has_one_socket_for_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's daemon is the machine's, whatever session root is in."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    assert default_socket() == Path("/run/scache/scache.sock")


def test_a_user_has_a_socket_in_the_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each user's daemon is where that user's other sockets are."""
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    assert default_socket() == Path("/run/user/1234/scache.sock")


@pytest.mark.parametrize("runtime_directory", ["", "relative", None])
def test_without_a_runtime_directory_there_is_one_in_tmp(
    monkeypatch: pytest.MonkeyPatch, runtime_directory: str | None
) -> None:
    """A user without XDG_RUNTIME_DIR gets a directory named after the user's number."""
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    if runtime_directory is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_directory)
    assert default_socket() == Path("/tmp/scache-1234/scache.sock")


def test_only_the_default_socket_is_the_default(tmp_path: Path) -> None:
    """The daemon makes the directory of the default socket, and nobody else's."""
    assert Settings().socket_is_default
    assert not Settings(socket=tmp_path / "s").socket_is_default
