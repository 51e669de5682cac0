"""The man pages of the commands, made from the help texts that click shows."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from scache.cli.commands.help import page
from scache.cli.main import cli
from scache.cli.master import command as master
from scache.version import __version__

WIDTH = 72
"""Columns of the text in the source of a page."""

_ESCAPES = str.maketrans({"\\": r"\e", "-": r"\-", "^": r"\(ha", "~": r"\(ti", "'": r"\(aq"})

_ENVIRONMENT = {
    "SCACHE_SOCKET": "The socket of the daemon, if there is no --socket.",
    "SCACHE_CONFIG": "A configuration file, whose socket is used if neither is given.",
}


def write_pages(directory: Path, date: str) -> list[Path]:
    """Write all pages into a directory; return their files, such as ``scache.1``."""
    pages = {
        "scache.1": _scache(date),
        "scache-serve.8": _serve(date),
        "scache-master.8": _master(date),
    }
    for name, text in pages.items():
        directory.joinpath(name).write_text(text, encoding="utf-8")
    return [directory / name for name in pages]


def release_date(changelog: str) -> str:
    """Return the date of this version in the changelog, or else of the last version before."""
    dates = dict(re.findall(r"^## \[(.+?)\] - (\S+)$", changelog, re.MULTILINE))
    return str(dates.get(__version__) or next(iter(dates.values())))


def _scache(date: str) -> str:
    lines = _begin("scache", 1, cli, date)
    lines.append(".SH COMMANDS")
    context = _context(cli, "scache")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        inner = click.Context(command, context)
        lines += [f".SS {name}", *roff(command.help), ".PP"]
        lines += _usage(command, inner, f"scache {name}")
        if name == "serve":
            lines += [".PP", *roff("The options are in `scache-serve`(8).")]
            continue
        lines += _options(command.params, inner)
        lines += [".PP", *roff(command.epilog)]
    lines += [".SH ENVIRONMENT", *_definitions(_ENVIRONMENT.items())]
    return _ended(lines, "`scache-serve`(8), `scache-master`(8)")


def _serve(date: str) -> str:
    command = cli.get_command(click.Context(cli), "serve")
    assert command is not None
    lines = _begin("scache serve", 8, command, date)
    lines += [".SH SIGNALS", *_definitions(_table("Signals"))]
    return _ended(lines, "`scache`(1), `scache-master`(8)")


def _master(date: str) -> str:
    lines = _begin("scache-master", 8, master, date)
    lines += [".SH EXIT STATUS", *_definitions({"0": "done", "1": "cannot start"}.items())]
    see = "`scache`(1), `scache-serve`(8), `master`(8), `postconf`(5); `scache help master`."
    return "\n".join([*lines, ".SH SEE ALSO", *roff(see)]) + "\n"


def _begin(program: str, section: int, command: click.Command, date: str) -> list[str]:
    """Return a page up to the options of the command."""
    context = _context(command, program)
    lines = [*_head(program.replace(" ", "-"), section, command, date)]
    lines += [".SH SYNOPSIS", *_usage(command, context, program)]
    lines += [".SH DESCRIPTION", *roff(command.help)]
    if command.epilog:
        lines += [".PP", *roff(command.epilog)]
    return [*lines, ".SH OPTIONS", *_options(command.get_params(context), context)]


def _context(command: click.Command, program: str) -> click.Context:
    return click.Context(command, info_name=program, **cli.context_settings)


def _head(name: str, section: int, command: click.Command, date: str) -> Iterator[str]:
    yield f'.TH {name.upper().translate(_ESCAPES)} {section} {date} "scache {__version__}"'
    yield ".nh"
    yield ".SH NAME"
    summary = re.split(r"\.\s|[.,;]", command.help or "", maxsplit=1)[0]
    yield from roff(f"{name} - {summary[0].lower()}{summary[1:]}")


def _ended(lines: list[str], others: str) -> str:
    lines += [".SH EXIT STATUS", *_definitions(_table("Exit codes")), ".SH SEE ALSO"]
    lines += [*roff(f"{others}."), ".PP", *roff("`scache help` shows the manual.")]
    return "\n".join(lines) + "\n"


def _table(title: str) -> Iterator[tuple[str, str]]:
    """Yield the first two columns of the table below a heading of the page ``exit-codes``."""
    _, _, text = page("exit-codes").partition(f"# {title}\n")
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", text.split("\n#")[0], re.MULTILINE)
    return ((term, meaning) for term, meaning in rows[1:])


def _usage(command: click.Command, context: click.Context, program: str) -> Iterator[str]:
    pieces = [_escaped(piece) for piece in command.collect_usage_pieces(context)]
    yield " ".join([rf"\fB{_escaped(program)}\fP", *pieces])


def _options(parameters: Iterable[click.Parameter], context: click.Context) -> Iterator[str]:
    options = (each for each in parameters if isinstance(each, click.Option))
    records = (option.get_help_record(context) for option in options)
    yield from _definitions(record for record in records if record is not None)


def _definitions(terms: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, meaning in terms:
        yield ".TP"
        yield re.sub(r"(^|(?<=[ /]))((?:\\-)[^ ,]*|^[^ ]+)", r"\\fB\2\\fP", _escaped(term))
        yield from roff(meaning)


def roff(text: str | None) -> Iterator[str]:
    """Yield the lines of the paragraphs of a help text.

    A paragraph that begins with a backspace keeps its lines, as in click.
    """
    begin = ""
    for paragraph in re.split(r"\n\s*\n", textwrap.dedent(text or "").strip("\n")):
        if begin:
            yield begin
        begin = ".PP"
        if paragraph.startswith("\b\n"):
            title, *lines = paragraph.removeprefix("\b\n").split("\n")
            yield from (_escaped(title), ".PP", ".nf", ".RS 2")
            yield from map(_escaped, textwrap.dedent("\n".join(lines)).split("\n"))
            yield from (".RE", ".fi")
        else:
            yield from _filled(paragraph)


def _filled(paragraph: str) -> Iterator[str]:
    escaped = re.sub(r"`([^`]+)`", r"\\fB\1\\fP", _escaped(" ".join(paragraph.split())))
    for sentence in re.split(r"(?<=[.?!:;]) ", escaped):
        yield from textwrap.wrap(sentence, WIDTH, break_long_words=False, break_on_hyphens=False)


def _escaped(text: str) -> str:
    """Return one line of text with the characters replaced that roff would interpret."""
    escaped = text.translate(_ESCAPES)
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped
