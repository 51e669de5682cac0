"""Classes of labels: the tables of a configuration file, and their errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scache.cli.commands.serve import describe
from scache.errors import SettingsError
from scache.settings.classes import MAX_CLASSES, LabelClass
from scache.settings.declarations import Settings
from scache.settings.loading import Sourced, from_file, gather

SMTP = '[[class]]\nname = "smtp"\nendpoint = "smtp*"\n'
LMTP = '[[class]]\nname = "lmtp"\ndestination = "lm\\ntp*"\n'


def loaded(tmp_path: Path, text: str) -> Sourced:
    """Return the settings of a file with this text."""
    file = tmp_path / "scache.toml"
    file.write_text(text)
    return gather(from_file(file))


def test_classes_are_tables_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Each has a pattern for endpoints, for destinations, or both."""
    settings = loaded(tmp_path, "ttl_limit = 60\n" + SMTP + LMTP).settings
    assert settings.classes == (
        LabelClass("smtp", "smtp*"),
        LabelClass("lmtp", None, "lm\ntp*"),
    )
    assert settings.ttl_limit == 60
    assert Settings().classes == ()


def test_show_config_writes_classes_as_a_file_has_them(tmp_path: Path) -> None:
    """The text is read as the same settings."""
    sourced = loaded(tmp_path, SMTP + LMTP)
    assert "[[class]]" not in describe(loaded(tmp_path, ""))
    assert loaded(tmp_path, describe(sourced)).settings.classes == sourced.settings.classes


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("class = 5", "class must be tables of their own, each below a line [[class]], not 5"),
        ("class = [5]", "class number 1 must be a table, not 5"),
        ('[class]\nname = "x"', "class must be tables of their own"),
        ('[[class]]\nendpoint = "x"', 'class number 1 has no name: add name = "smtp"'),
        ('[[class]]\nname = "x"', 'class number 1 has no pattern: add endpoint = "x*"'),
        (SMTP + SMTP, "class number 2 has the name 'smtp' of an earlier one"),
        (SMTP.replace('smtp"', 'other"'), "class number 1 must have another name: 'other' is for"),
        (SMTP.replace('"smtp"', '"SMTP"'), "class number 1 must have a name of at most 32 lower"),
        (SMTP.replace('"smtp"', f'"{"a" * 33}"'), "class number 1 must have a name of at most 32"),
        (SMTP.replace("endpoint", "endpiont"), "class number 1 has an unknown key 'endpiont'"),
        (
            SMTP.replace('"smtp*"', "5"),
            "class number 1 must have a pattern as endpoint,",
        ),
        (
            "".join(SMTP.replace('"smtp"', f'"c{n}"') for n in range(MAX_CLASSES + 1)),
            "class must be at most 32 tables, not 33",
        ),
    ],
)
def test_wrong_class_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    """The error names the file, the table by its number, and what to do."""
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, text)
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'scache.toml'}: ")


def test_classes_are_checked_in_python_as_well() -> None:
    """Settings are valid from their creation on."""
    wrong: Any = [{"name": "x"}]
    with pytest.raises(SettingsError, match="has no pattern"):
        Settings(classes=wrong)
