"""The command ``scache purge``: selection, lists, questions and hints."""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from scache import Client, errors
from scache.cli.commands.purge import EPILOG
from scache.cli.daemon_socket import given_socket
from scache.cli.main import EXIT_INTERRUPTED, execute
from scache.cli.target import Target
from scache.escape import shown
from tests.support.daemon import Daemon
from tests.support.manual import PAGES
from tests.support.sample_database import ODD

EXAMPLES = [
    line
    for line in re.findall(r"^ *(scache purge --.*)$", EPILOG + PAGES["commands"], re.MULTILINE)
    if " --id " not in line
]

Capture = pytest.CaptureFixture[str]

ENDPOINTS = [
    b"smtp\n203.0.113.5\n587\n0\n",
    b"smtp\n203.0.113.5\n25\n0\n",
    b"smtp\n203.0.113.55\n25\n0\n",
    b"smtp\n2001:db8::1\n25\n0\n",
    b"mx1.example.org:25",
]
DESTINATIONS = [
    (b"smtp\n[mx1.example.org]:587\n", ENDPOINTS[0]),
    (b"smtp\nexample.org\n", ENDPOINTS[2]),
    (b"smtp\n[2001:db8::1]\n", ENDPOINTS[3]),
]
"""Labels as smtp(8) makes them (tests/system/test_postfix.py), and one of another program."""


def save(client: Client, *endpoints: bytes) -> None:
    """Save a connection under each of these endpoints."""
    with open(os.devnull) as something:  # noqa: PTH123
        assert all(client.save_many([(60, label, "", something) for label in endpoints]))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run a daemon for all tests of this module; return where it listens."""
    with Daemon(tmp_path_factory.mktemp("purge") / "socket") as daemon:
        yield daemon.path


@pytest.fixture
def client(path: Path) -> Iterator[Client]:
    """Connect to the daemon, which is empty."""
    with Client(path) as client:
        yield client
        client.purge(*left(str(path)))


@pytest.fixture
def socket(client: Client, path: Path) -> str:
    """Fill the daemon with labels of Postfix; return where it listens."""
    save(client, *ENDPOINTS)
    client.save_dest_many((60, destination, "", endpoint) for destination, endpoint in DESTINATIONS)
    return str(path)


def left(socket: str) -> tuple[list[bytes], list[bytes]]:
    """Return the endpoints of the connections, and the destinations of the bindings."""
    with Target(given_socket(socket, None)).image() as image:
        endpoints, destinations = (
            [label for (label,) in image.execute(sql).rows]
            for sql in (
                "SELECT endpoint FROM connection ORDER BY id",
                "SELECT destination FROM binding ORDER BY id",
            )
        )
    return endpoints, destinations  # type: ignore[return-value]


def purge(capsys: Capture, socket: str, *options: str) -> tuple[str, str]:
    """Purge; return the text on stdout and on stderr."""
    assert execute(["purge", "--socket", socket, *options]) == errors.EXIT_OK
    output = capsys.readouterr()
    return output.out, output.err


class TestNaming:
    @pytest.mark.parametrize(
        ("options", "endpoints", "destinations"),
        [
            (["--endpoint", "smtp*"], [0, 1, 2, 3], []),
            (["--endpoint", r"smtp\n203.0.113.5\n587\n0\n"], [0], []),
            (["--endpoint", r"smtp\n203.0.113.5\n*"], [0, 1], []),
            (["--endpoint", "smtp\n203.0.113.5\n587\n0\n"], [0], []),
            (["--endpoint", "mx1.example.org:*"], [4], []),
            (["--destination", r"smtp\n[mx1.example.org]:587\n"], [0], [0]),
            (["--destination", r"*[[]mx1.example.org]*"], [0], [0]),
            (["--destination", r"*example.org\n"], [2], [1]),
            (["--field", "203.0.113.5"], [0, 1], []),
            (["--field", "203.0.113.5", "--field", "587"], [0], []),
            (["--field", "2001:db8::1"], [3], []),
            (["--field", "[mx1.example.org]:587"], [0], [0]),
            (["--field", "[2001:db8::1]"], [3], [2]),
            (["--field", "mx1.example.org:25"], [4], []),
            (["--field", "smtp"], [0, 1, 2, 3], [0, 1, 2]),
            (["--all"], [0, 1, 2, 3, 4], [0, 1, 2]),
        ],
    )
    def test_purge_closes_exactly_the_selection(
        self,
        capsys: Capture,
        socket: str,
        options: list[str],
        endpoints: Sequence[int],
        destinations: Sequence[int],
    ) -> None:
        """It prints the numbers. A destination selects the connections of its endpoints as well."""
        out, err = purge(capsys, socket, *options)
        assert re.findall(r"\d+", out) == [str(len(endpoints)), str(len(destinations))]
        assert err == ""
        assert left(socket) == (
            [label for at, label in enumerate(ENDPOINTS) if at not in endpoints],
            [label for at, (label, _) in enumerate(DESTINATIONS) if at not in destinations],
        )

    @pytest.mark.parametrize(
        "label", [*ODD.values(), rb"a\nb", b"a\nb", rb"\xff", b"\xa0", "\xa0".encode(), b"\xc2\\"]
    )
    @pytest.mark.parametrize("option", ["--endpoint", "--destination", "--field"])
    def test_purge_accepts_printed_form_of_any_label(
        self, capsys: Capture, client: Client, path: Path, label: bytes, option: str
    ) -> None:
        """A label with a backslash of its own can be selected as well."""
        if option == "--field":
            label = label.replace(b"\n", b"") or b"field"
        save(client, label, b"other")
        client.save_dest_many([(60, label, "", label), (60, "other", "", "other")])
        socket = str(path)
        out, err = purge(capsys, socket, option, shown(label))
        of_destination = option != "--endpoint"
        assert out == (
            f"1 connection closed, {'1 binding' if of_destination else '0 bindings'} removed\n"
        )
        assert err == ""
        assert left(socket) == ([b"other"], [b"other"] if of_destination else [label, b"other"])

    def test_purge_matches_printed_form_only_with_a_backslash(
        self, capsys: Capture, socket: str
    ) -> None:
        """The letter of an escape is not part of the label: no label has n203."""
        out, _ = purge(capsys, socket, "--endpoint", "*n203*")
        assert out.startswith("0 connections")

    def test_purge_refuses_an_empty_field(self, capsys: Capture, socket: str) -> None:
        """It may come from a variable that is not set. Nearly every label has an empty field."""
        assert execute(["purge", "--socket", socket, "--field", ""]) == errors.EXIT_SETTINGS
        assert "--field must not be empty" in capsys.readouterr().err
        assert len(left(socket)[0]) == len(ENDPOINTS)

    @pytest.mark.parametrize(
        "options",
        [
            *("", "--all --endpoint x", "--endpoint x --destination y", "--field x --endpoint y"),
            *("--id 1 --all", "--id 1 --field x"),
        ],
    )
    def test_purge_takes_exactly_one_selection(self, capsys: Capture, options: str) -> None:
        """The options are checked before any question."""
        arguments = ["purge", "--socket", "none", *options.split()]
        assert execute(arguments) == errors.EXIT_SETTINGS
        sentence = (
            "scache: give exactly one of --endpoint, --destination, --field, --id and --all\n"
        )
        assert capsys.readouterr().err == sentence

    @pytest.mark.parametrize("line", EXAMPLES)
    def test_purge_examples_match_labels_of_postfix(
        self, capsys: Capture, socket: str, line: str
    ) -> None:
        """Each example of the help and of the manual selects something in a cache of Postfix."""
        options = shlex.split(line, comments=True)[2:]
        out, err = purge(capsys, socket, "--dry-run", *options)
        assert out.startswith("connections:\n")
        assert err == ""


class TestListing:
    def test_dry_run_lists_and_closes_nothing(self, capsys: Capture, socket: str) -> None:
        """Each line has an id and whole labels, which can be pasted back."""
        out, _ = purge(capsys, socket, "--dry-run", "--field", "[mx1.example.org]:587")
        title, connection, bindings, binding, total = out.splitlines()
        assert (title, bindings) == ("connections:", "bindings:")
        assert connection.split() == [connection.split()[0], r"smtp\n203.0.113.5\n587\n0\n"]
        assert connection.split()[0].isdecimal()
        assert binding.split()[1:] == [
            r"smtp\n[mx1.example.org]:587\n",
            ">",
            r"smtp\n203.0.113.5\n587\n0\n",
        ]
        assert total == "1 connection and 1 binding would be purged"
        assert [len(each) for each in left(socket)] == [len(ENDPOINTS), len(DESTINATIONS)]

    @pytest.mark.parametrize(
        ("typed", "yes", "code"),
        [
            ("y\n", False, errors.EXIT_OK),
            ("n\n", False, errors.EXIT_OK),
            ("\n", False, errors.EXIT_OK),
            ("", False, EXIT_INTERRUPTED),
            ("", True, errors.EXIT_OK),
        ],
        ids=["y", "n", "enter", "end", "yes"],
    )
    def test_purge_lists_and_asks_on_a_terminal(
        self,
        capsys: Capture,
        monkeypatch: pytest.MonkeyPatch,
        socket: str,
        typed: str,
        yes: bool,
        code: int,
    ) -> None:
        """Nothing is closed until the user has seen the list and answered yes."""
        keyboard = io.StringIO(typed)
        monkeypatch.setattr(keyboard, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", keyboard)
        command = ["purge", "--socket", socket, "--field", "203.0.113.5", *["--yes"] * yes]
        assert execute(command) == code
        output = capsys.readouterr()
        said = output.out + output.err
        question = "Purge what matches the field 203.0.113.5: 2 connections and 0 bindings"
        listed = r"  smtp\n203.0.113.5\n25\n0\n"
        assert (question in said and listed in said) == (not yes)
        assert (len(left(socket)[0]) < len(ENDPOINTS)) == (yes or typed == "y\n")

    def test_purge_does_not_ask_if_nothing_matches(
        self, capsys: Capture, monkeypatch: pytest.MonkeyPatch, socket: str
    ) -> None:
        """There is nothing to decide."""
        keyboard = io.StringIO()
        monkeypatch.setattr(keyboard, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", keyboard)
        out, err = purge(capsys, socket, "--field", "nothing")
        assert out == "0 connections closed, 0 bindings removed\n"
        assert "Purge" not in err

    def test_purge_shortens_a_long_list_before_its_question(
        self, capsys: Capture, monkeypatch: pytest.MonkeyPatch, socket: str, client: Client
    ) -> None:
        """The question stays on the screen; a dry run lists all."""
        save(client, *[b"many"] * 1000)
        keyboard = io.StringIO("n\n")
        monkeypatch.setattr(keyboard, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", keyboard)
        out, err = purge(capsys, socket, "--endpoint", "many")
        assert "  and 980 more, which --dry-run lists\n" in out + err
        assert (out + err).count("\n") < 30
        out, _ = purge(capsys, socket, "--endpoint", "many", "--dry-run")
        assert out.count("  many\n") == 1000


class TestHints:
    @pytest.mark.parametrize(
        ("pattern", "hint"),
        [
            ("*[mx1.example.org]*", "[mx1.example.org] is one of these characters"),
            ("*[mx1.example.org]*", "write *[[]mx1.example.org]*"),
            (r"*\n[mx1.example.org]:*", r"write *\n[[]mx1.example.org]:*"),
            ("[203.0.113.5]:[0-9]*", "write [[]203.0.113.5]:[0-9]*"),
            ("*[2001:db8::1]*", "write *[[]2001:db8::1]*"),
            ("*[IPv6:2001:db8::1]*", "write *[[]IPv6:2001:db8::1]*"),
            ("*[::1]", "write *[[]::1]"),
            ("*[localhost]:*", "write *[[]localhost]:*"),
        ],
    )
    @pytest.mark.parametrize("option", ["--endpoint", "--destination"])
    def test_purge_hints_at_brackets_that_hold_a_name_or_an_address(
        self, capsys: Capture, socket: str, option: str, pattern: str, hint: str
    ) -> None:
        """In a GLOB they stand for one character, and may fit far more than was meant."""
        _, err = purge(capsys, socket, option, pattern, "--dry-run")
        assert hint in err

    @pytest.mark.parametrize(
        "pattern",
        [
            "*[a-z]*",
            "*[0-9.]*",
            "*[0-9.a-f]*",
            "*[0-9a-f:]*",
            "*[^.]*",
            "smtp[^a.b]*",
            "*[aeiou]*",
            "*[xyz]*",
        ],
    )
    def test_purge_gives_no_hint_at_lists_of_characters(
        self, capsys: Capture, socket: str, pattern: str
    ) -> None:
        """Brackets that hold no name or address are those of GLOB."""
        _, err = purge(capsys, socket, "--endpoint", pattern, "--dry-run")
        assert err == ""

    def test_purge_gives_no_hint_at_brackets_of_an_exact_label(
        self, capsys: Capture, client: Client, path: Path
    ) -> None:
        """The pattern matches this label and no other."""
        save(client, b"[::1]:25", b"1:26")
        out, err = purge(capsys, str(path), "--endpoint", "[::1]:25")
        assert (out, err) == ("1 connection closed, 0 bindings removed\n", "")

    def test_purge_hints_if_a_label_matches_only_by_brackets(
        self, capsys: Capture, client: Client, path: Path
    ) -> None:
        """So it does if another label matches exactly."""
        save(client, b"[::1]:25", b"1:25")
        _, err = purge(capsys, str(path), "--endpoint", "[::1]:25", "--dry-run")
        assert "write [[]::1]:25" in err

    @pytest.mark.parametrize(
        ("options", "hint"),
        [
            (["--endpoint", "203.0.113.55:*"], r"similar labels: smtp\n203.0.113.55\n25\n0\n"),
            (["--endpoint", "MX1.example.org"], "similar labels: mx1.example.org:25, smtp"),
            (["--destination", r"smtp\n2001:db8::1\n"], r"labels: smtp\n2001:db8::1\n25\n0\n"),
            (["--field", "mx1.example.org"], r"smtp\n[mx1.example.org]:587\n"),
            (["--field", "203.0.113.*"], r"smtp\n203.0.113.5\n25\n0\n"),
            (["--field", "203.0.113.5", "--field", "26"], "the field 203.0.113.5 and 26;"),
            (["--field", r"203.0.113.5\n587"], r"the field 203.0.113.5\n587;"),
            (["--endpoint", "smtp\\n203.0.11…"], "--format json"),
            (["--endpoint", ""], "nothing matches the endpoint \n"),
            (["--endpoint", "x\x1b[2J\n"], r"nothing matches the endpoint x\x1b[2J\n" + "\n"),
        ],
    )
    def test_purge_hints_at_similar_labels_if_nothing_matches(
        self, capsys: Capture, socket: str, options: list[str], hint: str
    ) -> None:
        """Nothing is closed, and the hint shows labels for the next attempt."""
        out, err = purge(capsys, socket, *options)
        assert out == "0 connections closed, 0 bindings removed\n"
        assert hint in err
        assert err.startswith("scache: nothing matches the ")

    def test_purge_of_an_empty_cache_gives_no_hint(
        self, capsys: Capture, client: Client, path: Path
    ) -> None:
        """With ``--all`` there is no name that could be wrong."""
        client.find_endp("x")
        out, err = purge(capsys, str(path), "--all")
        assert (out, err) == ("0 connections closed, 0 bindings removed\n", "")
