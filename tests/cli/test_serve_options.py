"""Settings of ``scache serve``: their sources, ``--show-config``, and refusals."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from scache import errors
from scache.cli.main import execute
from scache.settings.declarations import SETTINGS, Settings
from tests.support.looking import Capture


def refused(capsys: Capture, *arguments: str) -> str:
    """Return the one line that refuses this command line as a matter of settings."""
    assert execute(arguments) == errors.EXIT_SETTINGS
    output = capsys.readouterr()
    assert output.out == ""
    prefix, _, sentence = output.err.partition(" ")
    assert prefix == "scache:"
    assert sentence.count("\n") == 1
    assert sentence.endswith("\n")
    return sentence.rstrip("\n")


def test_option_wins_over_variable_over_file_over_default(
    served: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each setting comes from the first source that has it."""
    file = tmp_path / "scache.toml"
    file.write_text("ttl_limit = 10\nmax_idle = 20\nstatus_interval = 30\n")
    monkeypatch.setenv("SCACHE_TTL_LIMIT", "11")
    monkeypatch.setenv("SCACHE_MAX_IDLE", "21")
    assert execute(["serve", "--config", str(file), "--ttl-limit", "12"]) == errors.EXIT_OK
    (settings,) = served
    assert settings == Settings(ttl_limit=12, max_idle=21, status_interval=30)


def test_setting_is_an_option(served: list[Settings], tmp_path: Path) -> None:
    """Options are converted to the types of the settings."""
    line = (
        f"serve --socket {tmp_path}/s --database {tmp_path}/d --ttl-limit 1.5 --max-idle 0"
        " --status-interval 2 --exchange-timeout 3 --socket-mode 0660 --socket-owner 1:2"
        " --no-announce --log-level error --on-corrupt refuse"
    )
    assert execute(line.split()) == errors.EXIT_OK
    (settings,) = served
    assert settings == Settings(
        socket=tmp_path / "s",
        database=f"{tmp_path}/d",
        on_corrupt="refuse",
        ttl_limit=1.5,
        max_idle=0,
        status_interval=2,
        exchange_timeout=3,
        socket_mode=0o660,
        socket_owner="1:2",
        announce=False,
        log_level="error",
    )


def test_setting_is_an_environment_variable(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable takes the same text as the option."""
    for setting in SETTINGS:
        monkeypatch.setenv(setting.variable, setting.default)
    monkeypatch.setenv("SCACHE_SOCKET", "s")
    for variable in ("SCACHE_SOCKET_OWNER", "SCACHE_USER"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setenv("SCACHE_ANNOUNCE", "no")
    assert execute(["serve"]) == errors.EXIT_OK
    assert served == [Settings(socket=Path("s"), announce=False)]


def test_option_can_restore_a_default(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A switch and an owner can be set back to their defaults, for any value of the variable."""
    monkeypatch.setenv("SCACHE_ANNOUNCE", "false")
    monkeypatch.setenv("SCACHE_SOCKET_OWNER", "1:2")
    assert execute(["serve", "--announce", "--socket-owner", ""]) == errors.EXIT_OK
    assert served == [Settings()]


def test_configuration_file_is_named_by_variable(
    served: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SCACHE_CONFIG does the same as ``--config``."""
    file = tmp_path / "scache.toml"
    file.write_text('ttl_limit = 7\nsocket_mode = "0666"\nannounce = false\n')
    monkeypatch.setenv("SCACHE_CONFIG", str(file))
    assert execute(["serve"]) == errors.EXIT_OK
    assert served == [Settings(ttl_limit=7, socket_mode=0o666, announce=False)]


def test_show_config_names_source_of_each_value(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line has a setting, its value and its source."""
    file = tmp_path / "scache.toml"
    file.write_text("max_idle = 20\nttl_limit = 1\n")
    monkeypatch.setenv("SCACHE_TTL_LIMIT", "60")
    options = ["--log-level", "debug", "--no-announce", "--config", str(file)]
    assert execute(["serve", *options, "--show-config"]) == errors.EXIT_OK
    shown = dict(line.split("  # ") for line in capsys.readouterr().out.splitlines())
    origins = {line.rstrip(): origin for line, origin in shown.items()}
    assert origins["ttl_limit = 60"] == "environment variable SCACHE_TTL_LIMIT"
    assert origins["max_idle = 20"] == f"file {file}"
    assert origins['log_level = "debug"'] == "command line"
    assert origins["announce = false"] == "command line"
    assert origins['database = ":memory:"'] == "default; read at the start only"
    assert len(origins) == len(SETTINGS)


def test_show_config_prints_a_configuration_file(
    capsys: Capture, served: list[Settings], tmp_path: Path
) -> None:
    """The output, used as ``--config``, gives the same settings."""
    odd = tmp_path / 'a "b" \\ c\nd é'
    options = ["--socket", str(odd), "--socket-mode", "640", "--ttl-limit", "0.1"]
    assert execute(["serve", *options, "--show-config"]) == errors.EXIT_OK
    file = tmp_path / "scache.toml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    assert set(tomllib.loads(file.read_text(encoding="utf-8"))) == {s.name for s in SETTINGS}
    assert execute(["serve", "--config", str(file)]) == errors.EXIT_OK
    assert served == [Settings(socket=odd, socket_mode=0o640, ttl_limit=0.1)]


def test_show_config_starts_no_daemon(capsys: Capture, served: list[Settings]) -> None:
    """It prints and exits."""
    assert execute(["serve", "--show-config"]) == errors.EXIT_OK
    assert capsys.readouterr().err == ""
    assert served == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--ttl"], "--ttl"),
        (["extra"], "extra"),
        (["--ttl-limit"], "--ttl-limit"),
        (["--ttl-limit", "abc"], "--ttl-limit must be a number of seconds above 0"),
        (["--max-idle", "nan"], "--max-idle must be a number of seconds from 0"),
        (["--socket-mode", "9"], "--socket-mode must be an octal mode"),
        (["--socket-owner", "no-such-user"], "--socket-owner names a user that does not"),
        (["--log-level", "loud"], "--log-level must be one of debug, info, warning, error"),
        (["--socket", ""], "--socket must be a path, not ''"),
        (["--socket", "@name"], "--socket must be a path, not '@name': an abstract socket has no"),
        (["--a\nb"], r"--a\nb"),
        (["--ttl-limit", "\x1b[2J"], r"\x1b[2J"),
    ],
)
def test_wrong_option_is_one_line(capsys: Capture, arguments: list[str], sentence: str) -> None:
    """The message names an option that does not exist or has a wrong value."""
    assert sentence in refused(capsys, "serve", *arguments)


def test_wrong_command_is_one_line(capsys: Capture) -> None:
    """The message names the command."""
    assert "'sevre'" in refused(capsys, "sevre")


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("SCACHE_TTL_LIMIT", "0", "SCACHE_TTL_LIMIT must be a number of seconds above 0"),
        ("SCACHE_ANNOUNCE", "maybe", "SCACHE_ANNOUNCE must be true or false, not 'maybe'"),
        ("SCACHE_SOCKET", "", "SCACHE_SOCKET must be a path, not ''"),
        ("SCACHE_SOCKET", "@name", "SCACHE_SOCKET must be a path, not '@name'"),
        ("SCACHE_CONFIG", "", "SCACHE_CONFIG must be a path, not ''"),
        ("SCACHE_SOKET", "/x", "there is no environment variable SCACHE_SOKET, did you mean"),
        ("SCACHE_DATABASE", "", "SCACHE_DATABASE must be a path, not ''"),
        ("SCACHE_TTLLIMIT", "5", "there is no environment variable SCACHE_TTLLIMIT, did you"),
        ("SCACHE_", "", "there is no environment variable SCACHE_"),
    ],
)
def test_wrong_variable_is_one_line(
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    sentence: str,
) -> None:
    """Each variable that begins with SCACHE_ must be one of scache."""
    monkeypatch.setenv(variable, value)
    assert refused(capsys, "serve").startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ttl-limit = 5", "there is no setting 'ttl-limit', did you mean ttl_limit?"),
        (
            "[serve]\nttl_limit = 5",
            "[serve] is a table, but a configuration file has no tables except",
        ),
        ("[server]", "[server] is a table, but a configuration file has no tables except"),
        ("[socket]\npath = 's'", "[socket] is a table"),
        ("[priority_boost]", "[priority_boost] is a table"),
        ("[[user]]\nname = 'x'", "[user] is a table"),
        ("a.b = 1", "[a] is a table"),
        ('ttl_limit = "5"', "ttl_limit must be a number of seconds"),
        ("ttl_limit = true", "ttl_limit must be a number of seconds"),
        ("ttl_limit = inf", "ttl_limit must be a number of seconds"),
        ("socket_mode = 660", "socket_mode must be an octal mode"),
        ("socket = 5", "socket must be a path, not 5"),
        ('socket = "@name"', "socket must be a path, not '@name'"),
        ("announce = 1", "announce must be true or false, not 1"),
        ("socket_owner = 0", "socket_owner must be USER or USER:GROUP"),
        ("log_level = 2000-01-01", "log_level must be one of"),
        ("ttl_limit = ", "is not TOML: "),
        ("ttl_limit = 1\nttl_limit = 2", "is not TOML: "),
        ("x = " + "[" * 100_000, "is not TOML: "),
        ("x = " + "1" * 10_000, "is not TOML: "),
    ],
)
def test_wrong_key_of_file_is_one_line(
    capsys: Capture, tmp_path: Path, text: str, sentence: str
) -> None:
    """The message names the file and the key."""
    file = tmp_path / "scache.toml"
    file.write_text(text)
    assert refused(capsys, "serve", "--config", str(file)).startswith(f"{file}: {sentence}")


def test_missing_configuration_file_is_refused(capsys: Capture, tmp_path: Path) -> None:
    """A file that was named must exist."""
    file = tmp_path / "none.toml"
    sentence = refused(capsys, "serve", "--config", str(file))
    assert sentence == f"{file}: cannot be read: No such file or directory"


def test_directory_as_configuration_file_is_refused(capsys: Capture, tmp_path: Path) -> None:
    """The message says that it is a directory."""
    sentence = refused(capsys, "serve", "--config", str(tmp_path))
    assert sentence == f"{tmp_path}: cannot be read: Is a directory"


def test_configuration_file_that_is_not_utf8_is_refused(capsys: Capture, tmp_path: Path) -> None:
    """It is not TOML."""
    file = tmp_path / "scache.toml"
    file.write_bytes(b"\xff\xfe")
    assert "is not TOML" in refused(capsys, "serve", "--config", str(file))


def test_wrong_variable_is_refused_although_option_overrides_it(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the error would show only when the option is removed."""
    monkeypatch.setenv("SCACHE_TTL_LIMIT", "abc")
    assert "SCACHE_TTL_LIMIT" in refused(capsys, "serve", "--ttl-limit", "5")
