"""``scache check``: verify the consistency of the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from scache.cli.render.formats import Format, format_option, write
from scache.cli.render.progress import progress
from scache.cli.streams import echo
from scache.cli.target import Target, target_options
from scache.errors import Findings
from scache.escape import one_line

if TYPE_CHECKING:
    from scache.inspection.checks import Report

EPILOG = """The exit code is 0 if every rule holds, and 6 if a rule is broken.

\b
Examples:
  scache check
  scache check --database /var/lib/postfix/scache.db
  scache check --format jsonl | jq 'select(.result == "wrong")'
"""


@click.command(epilog=EPILOG)
@target_options
@format_option
def check(*, target: Target, layout: Format) -> None:
    """Verify the consistency of a running daemon or a database file.

    The rules: the file is sound; its tables are those of scache; every
    connection has its descriptor; every connection and binding that was saved
    is there or has left exactly once; the counters agree with the events; no id
    is used twice; times are consistent; the database has no fault. A rule is
    skipped if the image does not have the data for it. A table ends with the
    numbers of rules that hold, are broken and were skipped.
    """
    from scache.inspection.checks import check as look_at

    with (
        progress(f"taking an image of the {one_line(str(target))}") as step,
        target.image(sound=False) as image,
    ):
        report = look_at(
            image,
            live=target.is_live,
            on_progress=lambda done: step("checking the rules", int(100 * done)),
        )
    write(report.result, layout, all_columns=True)
    if layout == "table":
        echo(f"\n{_summary(report)}: {one_line(str(target))}")
    if report.broken:
        checks = "check" if report.broken == 1 else "checks"
        raise Findings(f"{report.broken} {checks} found something wrong in the {target}")


def _summary(report: Report) -> str:
    """Return the numbers of rules by result, in words; 0 is left out."""
    hold = report.rules - report.broken - report.skipped
    parts = [f"{hold} {'rule holds' if hold == 1 else 'rules hold'}"]
    if report.broken:
        parts.append(f"{report.broken} {'is' if report.broken == 1 else 'are'} broken")
    if report.skipped:
        parts.append(f"{report.skipped} {'was' if report.skipped == 1 else 'were'} skipped")
    return ", ".join(parts)
