"""Suggestions for names that do not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from scache import errors
from tests.support.looking import Capture, failure


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["evnts"], "there is no command 'evnts': there are serve, "),
        (["evnts"], "; did you mean events?"),
        (["statistics-of-all"], "there is no command 'statistics-of-all': there are serve, "),
        (["events", "--kind", "find_dst"], "; did you mean find_dest?"),
        (["dump", "live_conection"], "; did you mean live_connection?"),
        (["sql", "SELECT * FROM live_conection"], "no such table: live_conection, did you mean"),
        (["sql", "SELECT endpiont FROM event"], "no such column: endpiont, did you mean endpoint?"),
        (["sql", "SELECT e.endpiont FROM event e"], "endpiont, did you mean endpoint?"),
        (["sql", "SELECT remaining FROM event"], "remaining: it is a column of live_"),
        (["sql", "SELECT Remaining FROM event"], "Remaining: it is a column of live_"),
        (["HELP"], "; did you mean help?"),
        (["help", "SQL"], ", did you mean sql?"),
        (["dump", "LIVE_CONECTION"], "; did you mean live_connection?"),
        (["events", "--kind", "FOUND"], "; did you mean found?"),
        (["sql", "SELECT :since", "-p", "sinse=1"], ":sinse, did you mean since?"),
    ],
)
def test_unknown_name_is_answered_with_a_similar_one(
    filled: Path, capsys: Capture, arguments: list[str], sentence: str
) -> None:
    """The exit code is 2."""
    if arguments[0] in ("events", "dump", "sql"):
        arguments = [*arguments, "--database", str(filled)]
    code, said = failure(capsys, *arguments)
    assert (code, sentence in said) == (errors.EXIT_SETTINGS, True)


def test_unknown_name_without_similar_one_has_no_suggestion(filled: Path, capsys: Capture) -> None:
    """A suggestion that is far from the name would mislead."""
    for arguments in (["xyz"], ["dump", "xyz"], ["sql", "SELECT * FROM xyz"]):
        more = [] if len(arguments) == 1 else ["--database", str(filled)]
        assert "did you mean" not in failure(capsys, *arguments, *more)[1]
