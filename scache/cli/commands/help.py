"""``scache help``: show the pages of the manual."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from io import StringIO
from pathlib import Path

import click

from scache.cli.interrupts import left_to_pager
from scache.cli.option_types import as_text
from scache.cli.shell_completion import words
from scache.cli.streams import colors_forced, drawn, echo
from scache.settings.loading import did_you_mean

TOPICS = (
    "install",
    "postfix",
    "master",
    "systemd",
    "monitoring",
    "python",
    "commands",
    "sql",
    "misses",
    "settings",
    "limits",
    "security",
    "confined",
    "faults",
    "on-call",
    "exit-codes",
    "datasette",
    "protocol",
    "differences",
    "architecture",
)
"""The pages in the order of the list; each is a file of ``scache/manual``."""

EPILOG = """\b
Examples:
  scache help
  scache help postfix
  scache help sql | less
  scache help datasette --metadata > metadata.json
"""

DATABASE = "scache.db"
"""The file for which the metadata is by default."""

WIDEST = 100
"""Most columns of a page on a terminal: longer lines are hard to read."""


@click.command(epilog=EPILOG)
@click.option(
    "--metadata",
    is_flag=True,
    help="With the topic datasette: write a metadata file for Datasette instead.",
)
@click.option(
    "--database",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"With --metadata: the file that Datasette serves.  [default: {DATABASE}]",
)
@click.argument("topic", type=as_text, required=False, shell_complete=words(lambda: TOPICS))
@click.pass_context
def help(  # noqa: A001 - name of the command
    context: click.Context, /, *, topic: str | None, metadata: bool, database: Path | None
) -> None:
    """Show a page of the manual; without TOPIC, list the pages.

    A page is shown in a pager (PAGER) on a terminal, and is Markdown elsewhere.
    """
    if metadata and topic != "datasette":
        raise click.UsageError("--metadata is for the topic datasette: give both")
    if database is not None and not metadata:
        raise click.UsageError("--database is for --metadata: give both")
    if metadata:
        echo(_metadata(database or Path(DATABASE)))
        return
    if topic is None:
        echo(_contents())
        return
    if topic not in TOPICS:
        raise click.UsageError(_no_such_topic(topic, context))
    text = page(topic)
    if sys.stdout.isatty() or colors_forced():
        _show(text)
    else:
        echo(text, nl=False)


def page(topic: str) -> str:
    """Return a page of the manual, as Markdown."""
    from importlib.resources import files

    return files("scache").joinpath("manual", f"{topic}.md").read_text(encoding="utf-8")


def _metadata(database: Path) -> str:
    """Return the metadata for a database file as JSON; the file need not exist."""
    import json

    from scache.cli.datasette_metadata import metadata
    from scache.inspection.empty import empty_image

    with empty_image() as image:
        columns = {relation.name: relation.columns for relation in image.relations()}
    # Datasette takes the name of a database from that of its file, as pathlib does.
    return json.dumps(metadata(page("sql"), database.stem, columns), indent=2)


def summary(text: str) -> str:
    """Return the line below the title of a page: its summary."""
    return text.split("\n", 3)[2]


def _contents() -> str:
    width = max(map(len, TOPICS))
    lines = [f"  {topic:{width}}  {summary(page(topic))}" for topic in TOPICS]
    return "\n".join(["`scache help TOPIC` shows a page of the manual:", "", *lines])


def _no_such_topic(topic: str, context: click.Context) -> str:
    group = context.find_root().command
    if isinstance(group, click.Group) and topic in group.list_commands(context):
        return f"{topic} is a command: see `scache {topic} --help`, or `scache help commands`"
    hint = did_you_mean(topic, TOPICS) or f": there are {', '.join(TOPICS)}"
    return f"the manual has no page {topic!r}{hint}"


class _Page(StringIO):
    """The text of a page, for which rich chooses lines that standard output has."""

    @property
    def encoding(self) -> str:  # type: ignore[override]  # it is read only here
        """The encoding of standard output."""
        return sys.stdout.encoding


def _show(text: str) -> None:
    """Format Markdown for a terminal; on a terminal, show it in a pager."""
    from rich.markdown import Markdown

    from scache.cli.render.color import make_console

    laid_out = _Page()
    width = min(shutil.get_terminal_size().columns, WIDEST)
    console = make_console(file=laid_out)
    console.width = width
    console.print(Markdown(text, code_theme="ansi_dark", hyperlinks=False))
    shown = drawn(laid_out.getvalue())
    if not sys.stdout.isatty() or not _pager_exists():
        sys.stdout.write(shown)
        return
    with left_to_pager():
        click.echo_via_pager(shown)


def _pager_exists() -> bool:
    """Return False if PAGER names no program: click before 8.4 would lose the page then."""
    try:
        program, *_ = shlex.split(os.environ.get("PAGER", "")) or [""]
    except ValueError:  # a quote is not closed
        return False
    return program == "" or shutil.which(program) is not None
